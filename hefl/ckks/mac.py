"""A linear homomorphic MAC on ciphertexts: sums of tags authenticate sums of updates.

    H(c)  = sum_b alpha_b * sum_j beta_j * c[b, j]   modulo each prime, REPEATS times independently
    tag_i = H(c0_i) + pad_i

alpha and beta come from HKDF(group key, ctx), pad_i from HKDF(group key, ctx || seed_i) and the client's name. Tags
add as updates do. Whoever changes a sum without the group key must hit random equations modulo every prime that the
change touches: the chance is at most (2/q)**REPEATS, under 2**-80. Alpha and beta stay hidden, because a pad covers
one update only.

Source: Agrawal and Boneh, "Homomorphic MACs", ACNS 2009 (HomMac), here with a product of two vectors for its one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from hefl.ckks.context import SecretContext
from hefl.ckks.jit import kernel
from hefl.ckks.ntt import U32, U64
from hefl.ckks.ring import Basis
from hefl.ckks.sampling import draw_uniform
from hefl.errors import MalformedError
from hefl.params import TAG_REPEATS as REPEATS


@kernel
def hash_block(residues: U32, beta: U32, moduli: U32, run: int, out: U64) -> None:
    """out[j, r] = sum_i beta[j, r, i] * residues[j, i] modulo q_j; ``run`` products fit 64 bits and run divides N."""
    for j in range(moduli.size):
        q = np.uint64(moduli[j])
        t0, t1, t2 = np.uint64(0), np.uint64(0), np.uint64(0)
        for k in range(0, residues.shape[1], run):
            x = residues[j, k : k + run]
            y0, y1, y2 = beta[j, 0, k : k + run], beta[j, 1, k : k + run], beta[j, 2, k : k + run]
            p0, p1, p2 = np.uint64(0), np.uint64(0), np.uint64(0)
            for i in range(run):
                v = np.uint64(x[i])
                p0 += v * np.uint64(y0[i])
                p1 += v * np.uint64(y1[i])
                p2 += v * np.uint64(y2[i])
            t0 += p0 % q
            t1 += p1 % q
            t2 += p2 % q
        out[j, 0], out[j, 1], out[j, 2] = t0 % q, t1 % q, t2 % q


class Mac:
    """The MAC of one attempt.

    Streams under the key "hefl/v1/hash": 2j has beta of prime j, shape (REPEATS, N); 2j + 1 has alpha, shape
    (blocks, REPEATS). Under a pad's key: j has the pad of prime j, shape (REPEATS,).
    """

    def __init__(self, secret: SecretContext, ctx: bytes, basis: Basis, blocks: int) -> None:
        self._secret = secret
        self._ctx = ctx
        self._basis = basis
        key = secret.derive("hefl/v1/hash", ctx)
        beta = [self._draw(key, 2 * j, REPEATS * basis.degree, q) for j, q in enumerate(basis.primes)]
        alpha = [self._draw(key, 2 * j + 1, REPEATS * blocks, q) for j, q in enumerate(basis.primes)]
        self._beta = np.reshape(beta, (basis.limbs, REPEATS, basis.degree))
        self._alpha = np.reshape(alpha, (basis.limbs, blocks, REPEATS)).astype(np.uint64)
        self._moduli = basis.moduli[:, None].astype(np.uint64)
        self._run = products_in_64_bits(basis.limb_bits)
        self._counters = b"".join(j.to_bytes(8, "big") + bytes(8) for j in range(basis.limbs))

    def hash(self, residues: U32) -> U64:
        """The inner sum for one block (limbs, N); shape (limbs, REPEATS)."""
        out = np.empty((self._basis.limbs, REPEATS), np.uint64)
        hash_block(residues, self._beta, self._basis.moduli, self._run, out)
        return out

    def total(self, hashes: Iterable[U64]) -> U64:
        """H of a whole update or sum from its blocks' hashes, in order; shape (limbs, REPEATS)."""
        total: U64 = np.zeros((self._basis.limbs, REPEATS), np.uint64)
        for b, h in enumerate(hashes):
            total = (total + h * self._alpha[:, b]) % self._moduli
        return total

    def add_pad(self, total: U64, name: str, seed: bytes, weight: int) -> U64:
        """The total plus weight times the pad of one client's update."""
        key = self._secret.derive("hefl/v1/pad" + name, self._ctx + seed)
        return (total + np.uint64(weight) * self._pad(key)) % self._moduli

    def _pad(self, key: bytes) -> U64:
        """One client's pad, shape (limbs, REPEATS): of each prime's stream the first draws, in one call where they fit.

        A stream's first words are the encryption of its first counter block. Where one of them is not below its prime,
        as about one in a thousand pads has it, each prime is drawn by itself.
        """
        encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - of counters, as in CTR
        words = np.frombuffer(encryptor.update(self._counters), "<u4").reshape(self._basis.limbs, -1)[:, :REPEATS]
        drawn = (words & np.uint32((1 << self._basis.limb_bits) - 1)).astype(np.uint64)
        if (drawn < self._moduli).all():
            return drawn
        return np.array([self._draw(key, j, REPEATS, q) for j, q in enumerate(self._basis.primes)], np.uint64)

    def _draw(self, key: bytes, number: int, count: int, q: int) -> U32:
        return draw_uniform(key, number, count, self._basis.limb_bits, q)


def products_in_64_bits(limb_bits: int) -> int:
    """How many products of two residues add up in 64 bits."""
    return 1 << (64 - 2 * limb_bits)


def tag_bytes(limbs: int, limb_bits: int) -> int:
    """Length of a tag."""
    return -(-limbs * REPEATS * limb_bits // 8)


def tag_to_bytes(tag: U64, limb_bits: int) -> bytes:
    """A tag (limbs, REPEATS) packed to the bit, little-endian, prime by prime."""
    number = sum(int(v) << (limb_bits * i) for i, v in enumerate(tag.reshape(-1)))
    return number.to_bytes(tag_bytes(tag.shape[0], limb_bits), "little")


def tag_from_bytes(data: bytes, basis: Basis) -> NDArray[np.uint64]:
    """Inverse of tag_to_bytes.

    Raises:
        MalformedError: Its length is another, or it is not reduced modulo the primes.
    """
    bits, count = basis.limb_bits, basis.limbs * REPEATS
    if len(data) != tag_bytes(basis.limbs, bits):
        raise MalformedError(f"a tag has {len(data)} bytes where {tag_bytes(basis.limbs, bits)} belong")
    number = int.from_bytes(data, "little")
    tag = np.array([(number >> (bits * i)) & ((1 << bits) - 1) for i in range(count)], np.uint64)
    tag = tag.reshape(basis.limbs, REPEATS)
    if number >> (bits * count) or (tag >= basis.moduli[:, None]).any():
        raise MalformedError("a tag is not reduced modulo the ring's primes")
    return tag
