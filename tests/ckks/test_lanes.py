"""Lanes at their bounds, against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hefl.ckks.lanes import LANE, NOISE, TOP, Lanes
from hefl.ckks.ring import Basis, basis_of
from hefl.params import RINGS


def _zeros(basis: Basis) -> np.ndarray[tuple[int, int], np.dtype[np.uint32]]:
    return np.zeros((basis.limbs, basis.degree), np.uint32)


@settings(max_examples=25, deadline=None)
@given(ring=st.sampled_from(RINGS), margin=st.integers(6, 23), width=st.integers(8, 63), seed=st.integers(0, 2**32 - 1))
def test_a_coefficient_is_the_integer_that_its_fields_spell(ring: object, margin: int, width: int, seed: int) -> None:
    assert isinstance(ring, type(RINGS[0]))
    basis = basis_of(ring, len(ring.limb_bits))
    lanes = (basis.modulus.bit_length() - 1 - margin) // width
    layout = Lanes.of(basis, margin, width, lanes)
    rng, n, bound = np.random.default_rng(seed), basis.degree, (1 << (width - 1)) - 1
    values = rng.integers(-bound, bound, (lanes, n), endpoint=True)
    noise = rng.integers(-21, 22, n).astype(np.int32)
    values[:, 0], values[:, 1], noise[0], noise[1] = bound, -bound, 21, -21
    residues, back = _zeros(basis), np.empty_like(values)
    layout.encode(values, noise, _zeros(basis), residues)
    for i in (0, 1, 2, n - 1):
        exact = int(noise[i]) + sum(int(values[k, i]) << (margin + k * width) for k in range(lanes))
        assert residues[:, i].tolist() == [exact % q for q in basis.primes]
    assert layout.decode(residues, _zeros(basis), 21, bound, back) == 0
    assert (back == values).all()
    assert layout.decode(residues, _zeros(basis), 20, bound, back) == NOISE
    assert layout.decode(residues, _zeros(basis), 21, bound - 1, back) == LANE


def test_one_bit_above_the_top_lane_is_noticed() -> None:
    basis = basis_of(RINGS[1], 7)
    layout = Lanes.of(basis, 7, 26, 7)
    for bit in (7 + 7 * 26, basis.modulus.bit_length() - 2):
        residues = _zeros(basis)
        residues[:, 5] = [(1 << bit) % q for q in basis.primes]
        assert layout.decode(residues, _zeros(basis), 21, 2**24, np.empty((7, 8192), np.int64)) & TOP


@pytest.mark.parametrize(
    ("limbs", "margin", "width", "lanes"), [(7, 7, 26, 8), (7, 7, 64, 1), (7, 0, 26, 1), (7, 7, 26, 0), (1, 7, 24, 1)]
)
def test_layouts_that_do_not_fit_are_refused(limbs: int, margin: int, width: int, lanes: int) -> None:
    with pytest.raises(ValueError, match="lanes of"):
        Lanes.of(basis_of(RINGS[1], limbs), margin, width, lanes)
