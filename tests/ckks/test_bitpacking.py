"""Packed bits against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest

from hefl.ckks.bitpacking import add_multiple, pack_block, unpack_block
from hefl.ckks.ring import basis_of, shoup
from hefl.params import RINGS, Ring

BY_BITS = pytest.mark.parametrize("ring", [RINGS[0], RINGS[1]], ids=lambda ring: f"{ring.limb_bits[0]} bits")


@BY_BITS
def test_packed_residues_are_one_little_endian_number(ring: Ring) -> None:
    basis, bits = basis_of(ring, 2), ring.limb_bits[0]
    residues = np.random.default_rng(0).integers(0, basis.moduli[:, None], (2, ring.degree)).astype(np.uint32)
    residues[:, 0], residues[:, -1] = basis.moduli - 1, basis.moduli - 1
    words = np.empty(residues.size * bits // 32, np.uint32)
    pack_block(residues, bits, words)
    number = 0
    for value in reversed(residues.reshape(-1).tolist()):
        number = number << bits | value
    assert words.tobytes() == number.to_bytes(residues.size * bits // 8, "little")
    back = np.empty_like(residues)
    assert unpack_block(words, bits, basis.moduli, back)
    assert (back == residues).all()


@BY_BITS
def test_a_residue_that_is_its_prime_is_noticed_wherever_it_is(ring: Ring) -> None:
    basis, bits = basis_of(ring, 2), ring.limb_bits[0]
    words, out = np.empty(2 * ring.degree * bits // 32, np.uint32), np.empty((2, ring.degree), np.uint32)
    for limb, at in ((0, 0), (0, ring.degree - 1), (1, 1), (1, ring.degree - 1)):
        residues = np.tile(basis.moduli[:, None] - np.uint32(1), ring.degree)
        pack_block(residues, bits, words)
        assert unpack_block(words, bits, basis.moduli, out)
        residues[limb, at] += 1
        pack_block(residues, bits, words)
        assert not unpack_block(words, bits, basis.moduli, out)


@BY_BITS
def test_multiples_of_the_largest_residues_by_the_largest_factor_are_exact(ring: Ring) -> None:
    basis = basis_of(ring, 2)
    total = np.tile(basis.moduli[:, None] - np.uint32(1), ring.degree)
    residues, factors = total.copy(), basis.moduli - np.uint32(1)
    add_multiple(total, residues, factors, shoup(factors, basis.moduli), basis.moduli)
    expected = [((q - 1) + (q - 1) ** 2) % q for q in basis.primes]
    assert (total == np.array(expected, np.uint32)[:, None]).all()
