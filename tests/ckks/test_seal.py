"""SEAL's own Decryptor, through TenSEAL's bindings, reads weighted sums made by the packed engine."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
from numpy.typing import NDArray
from packed_support import new_attempt, new_secret, sum_of, vectors_of

from hefl.ckks.blocks import BlockCoder
from hefl.ckks.ntt import TAIL
from hefl.ckks.ring import basis_of, data_primes
from hefl.ckks.sampling import Streams, uniform, words_for
from hefl.engines.packed import PackedEngine, one_time_secret


def _framed(body: bytes) -> bytes:
    """SEAL 4's uncompressed stream format."""
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 0, 0, 16 + len(body)) + body


def _array(values: NDArray[Any]) -> bytes:
    return _framed(struct.pack("<Q", values.size) + np.ascontiguousarray(values, np.uint64).tobytes())


def _in_seals_order(spectrum: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return np.stack([row.reshape(TAIL, -1).T.reshape(-1) for row in spectrum])


def _public_polynomial(coder: BlockCoder, ctx: bytes, block: int) -> NDArray[np.uint32]:
    """a_b in SEAL's order, expanded as the module of blocks says, by the sampler alone."""
    plan, basis = coder.plan, coder.basis
    words = sum(words_for(basis.degree, plan.limb_bits, q) for q in basis.primes)
    stream, at = Streams(hashlib.sha256(b"hefl/v1/a" + ctx).digest()).words(block, words), 0
    out = np.empty((basis.limbs, basis.degree), np.uint32)
    for j, q in enumerate(basis.moduli):
        at = uniform(stream, at, np.uint32((1 << plan.limb_bits) - 1), q, out[j])
    return out


def _context(plan: Any) -> tuple[Any, Any]:
    """SEAL's context of the plan's ring, and the parms_id of its first plan.limbs primes."""
    parms = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parms.set_poly_modulus_degree(plan.ring.degree)
    parms.set_coeff_modulus(seal.CoeffModulus.Create(plan.ring.degree, plan.ring.chain))
    context = seal.SEALContext(parms, True, seal.SEC_LEVEL_TYPE.TC128)
    level = context.first_context_data()
    while len(level.parms().coeff_modulus()) > plan.limbs:
        level = level.next_context_data()
    return context, level.parms_id()


@pytest.mark.parametrize(
    ("values", "weights", "degree"), [(100, [3, 5, 9], 4096), (40_000, [1, 1, 1], 8192), (100_000, [3, 5, 9], 16384)]
)
def test_seal_decrypts_our_sums_under_the_sum_of_secrets(
    values: int, weights: list[int], degree: int, tmp_path: Path
) -> None:
    secret, engine, attempt = new_secret(), PackedEngine(threads=1), new_attempt(values, weights)
    vectors = vectors_of(attempt, engine.precision_bits)
    total, plan = sum_of(engine, secret, attempt, vectors), engine.plan(attempt)
    assert plan.ring.degree == degree
    coder = BlockCoder(plan, attempt.ctx)
    context, level = _context(plan)
    basis, n = coder.basis, degree

    reduced = engine.weights(attempt).of
    poly = np.zeros(n, np.int64)
    for m in total.members:
        poly += reduced[m.name] * one_time_secret(secret, attempt.ctx, m.name, m.seed, n)
    # A SEAL key lives modulo the whole chain, special prime included; only the data primes matter here.
    whole = basis_of(plan.ring, len(plan.ring.limb_bits))
    spectrum = np.concatenate([_in_seals_order(whole.spectrum(poly)[0]), np.ones((1, n), np.uint32)])
    key = struct.pack("<4QQd", *context.key_parms_id(), spectrum.size, 1.0) + _array(spectrum.reshape(-1))
    (tmp_path / "key").write_bytes(_framed(key))
    seal_key = seal.SecretKey()
    seal_key.load(context, str(tmp_path / "key"))

    residues = coder.from_bytes(total.blocks[0])
    c0 = np.stack([whole.spectrum(row.astype(np.int64))[0][j] for j, row in enumerate(residues)])
    pair = np.stack([_in_seals_order(c0), _public_polynomial(coder, attempt.ctx, 0)])
    meta = struct.pack("<4Q?QQQdQ", *level, True, 2, n, plan.limbs, 2.0**20, 1)
    (tmp_path / "ciphertext").write_bytes(_framed(meta + _array(pair.reshape(-1))))
    ciphertext, plain = seal.Ciphertext(), seal.Plaintext()
    ciphertext.load(context, str(tmp_path / "ciphertext"))
    seal.Decryptor(context, seal_key).decrypt(ciphertext, plain)

    decrypted = np.array([plain.data(i) for i in range(plan.limbs * n)], np.uint32).reshape(plan.limbs, n)
    coefficients = basis.coefficients(np.stack([row.reshape(-1, TAIL).T.reshape(-1) for row in decrypted]))
    crt = [basis.modulus // q * pow(basis.modulus // q, -1, q) for q in data_primes(plan.ring)[: plan.limbs]]
    expected = np.sum([reduced[name] * vector for name, vector in vectors.items()], axis=0)
    for i in range(n):
        exact = sum(int(r) * f for r, f in zip(coefficients[:, i], crt, strict=True)) % basis.modulus
        exact -= basis.modulus if exact > basis.modulus // 2 else 0
        # Lanes from the low end: the nearest multiple of the next lane's unit is the rest.
        rest = (exact + (1 << (plan.margin_bits - 1))) >> plan.margin_bits
        for k in range(plan.lanes):
            half = 1 << (plan.width_bits - 1)
            lane = (rest + half) % (2 * half) - half
            rest = (rest - lane) >> plan.width_bits
            index = k * n + i
            assert lane == (int(expected[index]) if index < values else 0)
        assert rest == 0
