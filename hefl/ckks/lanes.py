"""Pack several fixed-point numbers into one coefficient, and read their sums exactly.

From its low bits a coefficient is ``margin | lane 0 | lane 1 | ...``. The margin takes the noise; a lane is
precision plus headroom bits wide. A lane holds value + 2**(width-1) and the margin noise + 2**(margin-1), so that
fields are never negative and a coefficient is their concatenation: no carry crosses from one field to the next.
That constant, the bias, is subtracted before encryption and added back after decryption.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hefl.ckks.jit import kernel
from hefl.ckks.ntt import U32, U64
from hefl.ckks.ring import Basis, add_products, combine, separate
from hefl.ckks.sampling import I32

I64 = NDArray[np.int64]

CHUNK = 512
"""Coefficients that are worked on together, so that their words stay in the first-level cache."""

TOP, NOISE, LANE = 1, 2, 4
"""What ``decode`` found out of range."""


@dataclass(frozen=True, slots=True, eq=False)
class Lanes:
    """A lane layout in a basis, with the constants of both directions.

    Attributes:
        margin, width: Bits.
        at: Low bit of each lane, shape (lanes,).
        words: 32-bit words that the fields fill.
        bias: 2**(width-1) in each lane and 2**(margin-1) in the margin, modulo each prime.
        powers: 2**(32 t) * 2**32 modulo each prime, shape (limbs, words); the last factor undoes Montgomery's.
        start: -bias * 2**32 modulo each prime.
        negated_inverse: -1/q modulo 2**32 for each prime q.
        steps: What brings a value below 2**(32-limb_bits) q below q, in four conditional subtractions; (4, limbs).
        radix: Entry (t, j) is 32-bit word t of q_0 ... q_{j-1}; shape (words of Q and two to spare, limbs).
    """

    basis: Basis
    margin: int
    width: int
    at: I64
    words: int
    bias: U32
    powers: U64
    start: U64
    negated_inverse: U32
    steps: U32
    radix: U64

    @classmethod
    def of(cls, basis: Basis, margin: int, width: int, lanes: int) -> Lanes:
        """The layout of so many lanes.

        Raises:
            ValueError: They do not fit, or a word could overflow.
        """
        primes, bits, top = basis.primes, basis.limb_bits, margin + lanes * width
        words = -(-top // 32)
        spare = 1 << (32 - bits)
        fits = (1 << top) <= basis.modulus and 1 <= margin <= 32 and 2 <= width <= 63 and lanes >= 1
        if not fits or words + 1 > spare or basis.limbs > spare or max(primes) >= 2 * min(primes):
            raise ValueError(
                f"{lanes} lanes of {width} bits over a margin of {margin} in {basis.limbs} limbs of {bits}"
            )
        at = [margin + k * width for k in range(lanes)]
        bias = sum(1 << (low + width - 1) for low in at) + (1 << (margin - 1))
        radix = np.zeros((-(-basis.modulus.bit_length() // 32) + 2, len(primes)), np.uint64)
        product = 1
        for j, q in enumerate(primes):
            radix[:, j] = [(product >> (32 * t)) & 0xFFFFFFFF for t in range(radix.shape[0])]
            product *= q
        multiples = [min(m, spare // 2) for m in (8, 4, 2, 1)]
        return cls(
            basis=basis,
            margin=margin,
            width=width,
            at=np.array(at, np.int64),
            words=words,
            bias=np.array([bias % q for q in primes], np.uint32),
            powers=np.array([[pow(2, 32 * t + 32, q) for t in range(words)] for q in primes], np.uint64),
            start=np.array([(-bias << 32) % q for q in primes], np.uint64),
            negated_inverse=np.array([-pow(q, -1, 1 << 32) % (1 << 32) for q in primes], np.uint32),
            steps=np.array([[m * q for q in primes] for m in multiples], np.uint32),
            radix=radix,
        )

    def encode(self, values: I64, noise: I32, products: U32, out: U32) -> None:
        """Residues out (limbs, N) of values (lanes, N) in their lanes, plus noise (N,), minus products (limbs, N).

        The caller has checked that every value fits its lane and the noise its margin.
        """
        encode(
            values,
            noise,
            products,
            self.margin,
            self.width,
            self.at,
            self.words,
            self.powers,
            self.start,
            self.negated_inverse,
            self.steps,
            self.basis.moduli,
            out,
        )

    def decode(self, residues: U32, products: U32, noise_bound: int, lane_bound: int, out: I64) -> int:
        """Lanes out (lanes, N) of residues plus products, both (limbs, N).

        Returns:
            0, or what was out of range: TOP, NOISE and LANE, added.
        """
        basis = self.basis
        return decode(
            residues,
            products,
            self.bias,
            basis.moduli,
            basis.unmix,
            basis.unmix_shoup,
            self.radix,
            self.margin,
            self.width,
            self.at,
            noise_bound,
            lane_bound,
            out,
        )


@kernel
def put(words: U32, bit: int, width: int, values: I64) -> None:
    """Add fields value + 2**(width-1), from ``bit`` on, to words (w, n) in which those bits are zero."""
    t, shift = bit >> 5, np.uint64(bit & 31)
    half = np.int64(1) << np.int64(width - 1)
    low, high = words[t], words[t + 1]
    for i in range(values.size):
        field = np.uint64(values[i] + half) << shift
        low[i] |= np.uint32(field)
        high[i] |= np.uint32(field >> np.uint64(32))
    if (bit & 31) + width > 64:
        rest = np.uint64(64) - shift
        for i in range(values.size):
            words[t + 2, i] |= np.uint32(np.uint64(values[i] + half) >> rest)


@kernel
def take(words: U64, bit: int, width: int, out: I64) -> None:
    """Inverse of put, on 32-bit words held in 64."""
    t, shift = bit >> 5, np.uint64(bit & 31)
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    half = np.int64(1) << np.int64(width - 1)
    low, high = words[t], words[t + 1]
    if (bit & 31) + width > 64:
        rest = np.uint64(64) - shift
        for i in range(out.size):
            v = (low[i] >> shift) | (high[i] << (np.uint64(32) - shift)) | (words[t + 2, i] << rest)
            out[i] = np.int64(v & mask) - half
    else:
        for i in range(out.size):
            v = (low[i] >> shift) | (high[i] << (np.uint64(32) - shift))
            out[i] = np.int64(v & mask) - half


@kernel
def reduce_words(
    words: U32, powers: U64, start: np.uint64, negated_inverse: np.uint32, steps: U32, q: np.uint32, out: U32
) -> None:
    """Integers in words (w, n) and the constant behind start, modulo q, to out (n,).

    The sum of w products of 32 bits by one below q stays under w * 2**32 q; Montgomery's reduction adds at most
    2**32 q and divides by 2**32, which leaves less than (w + 1) q <= 2**(32 - limb_bits) q.

    Source: Montgomery, "Modular multiplication without trial division", 1985.
    """
    n = out.size
    acc = np.empty(n, np.uint64)
    for i in range(n):
        acc[i] = start
    add_products(acc, words, powers)
    s0, s1, s2, s3 = steps[0], steps[1], steps[2], steps[3]
    for i in range(n):
        m = np.uint32(np.uint32(acc[i]) * negated_inverse)
        x = np.uint32((acc[i] + np.uint64(m) * np.uint64(q)) >> np.uint64(32))
        x = min(x, np.uint32(x - s0))
        x = min(x, np.uint32(x - s1))
        x = min(x, np.uint32(x - s2))
        out[i] = min(x, np.uint32(x - s3))


@kernel
def subtract(a: U32, b: U32, q: np.uint32) -> None:
    """Subtract b from a modulo q; both are below q."""
    for i in range(a.size):
        v = np.uint32(a[i] + q - b[i])
        a[i] = min(v, np.uint32(v - q))


@kernel
def add(a: U32, b: U32, constant: np.uint32, q: np.uint32, out: U32) -> None:
    """Write a + b + constant modulo q to out; all are below q."""
    for i in range(a.size):
        v = np.uint32(a[i] + b[i])
        v = np.uint32(min(v, np.uint32(v - q)) + constant)
        out[i] = min(v, np.uint32(v - q))


@kernel
def encode(
    values: I64,
    noise: I32,
    products: U32,
    margin: int,
    width: int,
    at: I64,
    count: int,
    powers: U64,
    start: U64,
    negated_inverse: U32,
    steps: U32,
    moduli: U32,
    out: U32,
) -> None:
    """See Lanes.encode."""
    words = np.empty((count + 2, CHUNK), np.uint32)  # put writes up to two words beyond a field
    first = np.empty(CHUNK, np.int64)
    for c in range(0, noise.size, CHUNK):
        words[:] = 0
        for i in range(CHUNK):
            first[i] = noise[c + i]
        put(words, 0, margin, first)
        for k in range(at.size):
            put(words, at[k], width, values[k, c : c + CHUNK])
        for j in range(moduli.size):
            part = out[j, c : c + CHUNK]
            reduce_words(words, powers[j], start[j], negated_inverse[j], steps[:, j], moduli[j], part)
            subtract(part, products[j, c : c + CHUNK], moduli[j])


@kernel
def largest(values: I64) -> np.int64:
    """The largest magnitude."""
    m = np.int64(0)
    for i in range(values.size):
        m = max(m, abs(values[i]))
    return m


@kernel
def decode(
    residues: U32,
    products: U32,
    bias: U32,
    moduli: U32,
    unmix: U32,
    unmix_shoup: U32,
    radix: U64,
    margin: int,
    width: int,
    at: I64,
    noise_bound: int,
    lane_bound: int,
    out: I64,
) -> int:
    """See Lanes.decode."""
    limbs, n = residues.shape
    part = np.empty((limbs, CHUNK), np.uint32)
    digits = np.empty((limbs, CHUNK), np.uint32)
    words = np.empty((radix.shape[0], CHUNK), np.uint64)
    noise = np.empty(CHUNK, np.int64)
    top = at[-1] + width
    found = 0
    for c in range(0, n, CHUNK):
        for j in range(limbs):
            add(residues[j, c : c + CHUNK], products[j, c : c + CHUNK], bias[j], moduli[j], part[j])
        separate(part, moduli, unmix, unmix_shoup, digits)
        combine(digits, radix, words)
        above = np.uint64(0)
        for i in range(CHUNK):
            above |= words[top >> 5, i] >> np.uint64(top & 31)
        for t in range((top >> 5) + 1, words.shape[0]):
            for i in range(CHUNK):
                above |= words[t, i]
        take(words, 0, margin, noise)
        found |= (TOP if above else 0) | (NOISE if largest(noise) > noise_bound else 0)
        for k in range(at.size):
            take(words, at[k], width, out[k, c : c + CHUNK])
            found |= LANE if largest(out[k, c : c + CHUNK]) > lane_bound else 0
    return found
