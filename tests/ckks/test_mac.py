"""Tags against a second implementation in Python's integers."""

from __future__ import annotations

import os

import numpy as np
import pytest
from packed_support import new_secret

from hefl.ckks.context import SecretContext
from hefl.ckks.mac import Mac, tag_bytes, tag_from_bytes, tag_to_bytes
from hefl.ckks.ring import Basis, basis_of
from hefl.ckks.sampling import draw_uniform
from hefl.errors import MalformedError
from hefl.params import RINGS, Ring


def _residues(basis: Basis, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.uint32]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, basis.moduli[:, None], (basis.limbs, basis.degree)).astype(np.uint32)


def _reference(secret: SecretContext, ctx: bytes, basis: Basis, blocks: list[list[list[int]]]) -> list[list[int]]:
    key, out = secret.derive("hefl/v1/hash", ctx), []
    for j, q in enumerate(basis.primes):
        beta = draw_uniform(key, 2 * j, 3 * basis.degree, basis.limb_bits, q).tolist()
        alpha = draw_uniform(key, 2 * j + 1, 3 * len(blocks), basis.limb_bits, q).tolist()
        row = []
        for r in range(3):
            inner = [
                sum(x * y for x, y in zip(block[j], beta[r * basis.degree : (r + 1) * basis.degree], strict=True))
                for block in blocks
            ]
            row.append(sum(alpha[3 * b + r] * h for b, h in enumerate(inner)) % q)
        out.append(row)
    return out


@pytest.mark.parametrize("ring", [RINGS[0], RINGS[1]], ids=lambda ring: str(ring.degree))
def test_the_hash_is_the_announced_double_sum(ring: Ring) -> None:
    secret, ctx, basis = new_secret(), os.urandom(32), basis_of(ring, 2)
    blocks = [_residues(basis, seed) for seed in range(3)]
    blocks[0][:] = basis.moduli[:, None] - 1  # the largest products
    mac = Mac(secret, ctx, basis, 3)
    total = mac.total(mac.hash(block) for block in blocks)
    assert total.tolist() == _reference(secret, ctx, basis, [block.tolist() for block in blocks])


def test_tags_add_up_as_updates_do() -> None:
    secret, ctx, basis = new_secret(), os.urandom(32), basis_of(RINGS[1], 3)
    mac, weights, moduli = Mac(secret, ctx, basis, 1), (3, 65535), basis.moduli[:, None].astype(np.uint64)
    seeds = [os.urandom(32), os.urandom(32)]
    parts = [_residues(basis, 1), _residues(basis, 2)]
    tags = [mac.add_pad(mac.total([mac.hash(p)]), f"c{i}", seeds[i], 1) for i, p in enumerate(parts)]
    summed = sum(np.uint64(w) * p.astype(np.uint64) for w, p in zip(weights, parts, strict=True)) % moduli
    expected = mac.total([mac.hash(summed.astype(np.uint32))])
    for i, weight in enumerate(weights):
        expected = mac.add_pad(expected, f"c{i}", seeds[i], weight)
    assert ((tags[0] * np.uint64(weights[0]) + tags[1] * np.uint64(weights[1])) % moduli == expected).all()


def test_pads_depend_on_key_context_seed_and_name() -> None:
    secret, ctx, seed, basis = new_secret(), os.urandom(32), os.urandom(32), basis_of(RINGS[1], 2)
    zero = np.zeros((2, 3), np.uint64)
    pads = [
        Mac(s, c, basis, 1).add_pad(zero, name, d, 1).tobytes()
        for s, c, d, name in (
            (secret, ctx, seed, "a"),
            (new_secret(), ctx, seed, "a"),
            (secret, os.urandom(32), seed, "a"),
            (secret, ctx, os.urandom(32), "a"),
            (secret, ctx, seed, "b"),
        )
    ]
    assert len(set(pads)) == 5


def test_tags_are_packed_to_the_bit() -> None:
    basis = basis_of(RINGS[1], 7)
    tag = np.tile(basis.moduli[:, None].astype(np.uint64) - 1, 3)
    data = tag_to_bytes(tag, 28)
    assert len(data) == tag_bytes(7, 28) == 74
    assert (tag_from_bytes(data, basis) == tag).all()


def test_tags_that_are_no_tags_are_refused() -> None:
    basis = basis_of(RINGS[1], 7)
    for length in (0, 73, 75):
        with pytest.raises(MalformedError, match=f"{length} bytes where 74"):
            tag_from_bytes(bytes(length), basis)
    for number in (basis.primes[0], 1 << (28 * 21)):
        with pytest.raises(MalformedError, match="not reduced"):
            tag_from_bytes(number.to_bytes(74, "little"), basis)


@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_a_pad_is_what_each_primes_stream_draws(ring: Ring) -> None:
    """Also where a word is not below its prime, which a narrowed modulus makes common."""
    basis = basis_of(ring, len(ring.limb_bits))
    mac = Mac(new_secret(), bytes(32), basis, 1)
    for i in range(50):
        key = i.to_bytes(32, "big")
        drawn = [draw_uniform(key, j, 3, basis.limb_bits, q) for j, q in enumerate(basis.primes)]
        np.testing.assert_array_equal(mac._pad(key), drawn)
        mac._moduli = np.full_like(mac._moduli, 1 << (basis.limb_bits - 1))  # half of all words are passed over
        np.testing.assert_array_equal(mac._pad(key), drawn)
        mac._moduli = basis.moduli[:, None].astype(np.uint64)
