"""Rings against SEAL's choices and a schoolbook product."""

from __future__ import annotations

import numpy as np
import pytest
import tenseal.sealapi as seal
from numpy.typing import NDArray

from hefl.ckks.ntt import TAIL
from hefl.ckks.ring import basis_of, data_primes
from hefl.params import RINGS, Ring

BY_DEGREE = pytest.mark.parametrize("ring", RINGS, ids=lambda ring: str(ring.degree))


@BY_DEGREE
def test_primes_are_those_that_seal_chooses_in_its_order(ring: Ring) -> None:
    chain = [q.value() for q in seal.CoeffModulus.Create(ring.degree, ring.chain)]
    assert list(data_primes(ring)) == chain[:-1]


def test_primes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="not 9 primes of 17 bits"):
        data_primes(Ring(8192, (17,) * 9, 17))


@BY_DEGREE
def test_pointwise_products_of_spectra_are_negacyclic_products(ring: Ring) -> None:
    basis, n = basis_of(ring, 2), ring.degree
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2**15, n), rng.integers(0, 2**15, n)
    b[rng.permutation(n)[64:]] = 0  # sparse, so that the schoolbook product takes no minutes
    spectra = [basis.spectrum(x)[0].astype(np.uint64) for x in (a, b)]
    product = basis.coefficients((spectra[0] * spectra[1] % basis.moduli[:, None]).astype(np.uint32))
    expected = _schoolbook(a, b)
    assert (product == expected[None] % basis.moduli[:, None].astype(np.int64)).all()


def _schoolbook(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """a * b modulo X**N + 1; the entries stay below 2**37."""
    out = np.zeros_like(a)
    for k in np.flatnonzero(b):
        out += b[k] * np.concatenate([-a[a.size - k :], a[: a.size - k]])
    return out


@BY_DEGREE
def test_a_spectrum_in_seals_order_is_what_seal_reads(ring: Ring) -> None:
    # Entry i in SEAL's order is the value at psi**(2 * bitreverse(i) + 1); X itself shows the points.
    basis, n = basis_of(ring, 1), ring.degree
    q, x = basis.primes[0], np.zeros(n, np.int64)
    x[1] = 1
    points = basis.spectrum(x)[0][0].reshape(TAIL, -1).T.reshape(-1)
    psi = int(points[0])
    assert psi == min(int(p) for p in points)
    for i in (1, 2, 3, n // 2, n - 1):
        exponent = 2 * int(format(i, f"0{n.bit_length() - 1}b")[::-1], 2) + 1
        assert points[i] == pow(psi, exponent, q)
