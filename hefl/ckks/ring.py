"""Residue number systems: a ring's primes, and the tables that transforms need.

Everything follows SEAL's convention: its primes in its order, its roots of unity. So SEAL reads what is made here.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hefl.ckks.jit import kernel
from hefl.ckks.ntt import TAIL, U32, U64, fill_powers, invert, smallest_root, transform
from hefl.params import Ring


@dataclass(frozen=True, slots=True, eq=False)
class Twiddles:
    """Powers of the root for one direction, with Shoup companions floor(w * 2**32 / q).

    Attributes:
        head, head_shoup: Shape (limbs, N/TAIL).
        tail, tail_shoup: Shape (limbs, TAIL - 1, N/TAIL).
    """

    head: U32
    head_shoup: U32
    tail: U32
    tail_shoup: U32


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """Z_Q[X] / (X^N + 1), Q the product of ``limbs`` primes, each within a factor 2 of every other.

    Attributes:
        degree: N.
        limb_bits: Bits of each prime.
        moduli: The primes, ascending, shape (limbs,).
        forward, inverse: Twiddles.
        scale, scale_shoup: 1/N for each prime, shape (limbs,).
        unmix, unmix_shoup: Entry (k, j), k < j, is 1/q_k modulo q_j.
    """

    degree: int
    limb_bits: int
    moduli: U32
    forward: Twiddles
    inverse: Twiddles
    scale: U32
    scale_shoup: U32
    unmix: U32
    unmix_shoup: U32

    @property
    def limbs(self) -> int:
        """Number of primes."""
        return self.moduli.size

    @property
    def primes(self) -> list[int]:
        """The primes as Python's integers."""
        return [int(q) for q in self.moduli]

    @property
    def modulus(self) -> int:
        """Q."""
        return math.prod(self.primes)

    def spectrum(self, poly: NDArray[np.int64]) -> tuple[U32, U32]:
        """Integer coefficients, shape (N,), to transposed spectra and their Shoup companions, each (limbs, N)."""
        out, twiddles = np.empty((self.limbs, self.degree), np.uint32), self.forward
        for j, q in enumerate(self.moduli):
            residues = (poly % np.int64(q)).astype(np.uint32)
            transform(
                residues,
                out[j],
                twiddles.head[j],
                twiddles.head_shoup[j],
                twiddles.tail[j],
                twiddles.tail_shoup[j],
                q,
            )
        return out, shoup(out, self.moduli[:, None])

    def coefficients(self, spectrum: U32) -> U32:
        """Inverse of ``spectrum``, below each prime; shape (limbs, N)."""
        out, twiddles = np.empty_like(spectrum), self.inverse
        for j, q in enumerate(self.moduli):
            invert(
                spectrum[j].copy(),
                out[j],
                twiddles.head[j],
                twiddles.head_shoup[j],
                twiddles.tail[j],
                twiddles.tail_shoup[j],
                self.scale[j],
                self.scale_shoup[j],
                q,
            )
        return out


@kernel
def separate(residues: U32, moduli: U32, unmix: U32, unmix_shoup: U32, digits: U32) -> None:
    """Residues (limbs, n) to mixed-radix digits of the integer: x = d_0 + d_1 q_0 + d_2 q_0 q_1 + ...

    A digit is below its own prime, so below twice any other: one subtraction reduces it.

    Source: Garner, "The residue number system", 1959.
    """
    for j in range(moduli.size):
        q = moduli[j]
        for i in range(residues.shape[1]):
            digits[j, i] = residues[j, i]
        for k in range(j):
            w, ws = np.uint64(unmix[k, j]), np.uint64(unmix_shoup[k, j])
            for i in range(residues.shape[1]):
                d = min(digits[k, i], np.uint32(digits[k, i] - q))
                x = np.uint32(digits[j, i] + q - d)
                h = np.uint32((np.uint64(x) * ws) >> np.uint64(32))
                v = np.uint32(np.uint32(np.uint64(x) * w) - np.uint32(np.uint64(h) * np.uint64(q)))
                digits[j, i] = min(v, np.uint32(v - q))


@kernel
def add_four_products(total: U64, w: U32, x: U32, y: U32, z: U32, factors: U64) -> None:
    """Add w f_0 + x f_1 + y f_2 + z f_3 to total: one pass over total for four products."""
    f0, f1, f2, f3 = factors[0], factors[1], factors[2], factors[3]
    for i in range(total.size):
        first = np.uint64(w[i]) * f0 + np.uint64(x[i]) * f1
        total[i] += first + np.uint64(y[i]) * f2 + np.uint64(z[i]) * f3


@kernel
def add_product(total: U64, x: U32, factor: np.uint64) -> None:
    """Add x * factor to total."""
    for i in range(total.size):
        total[i] += np.uint64(x[i]) * factor


@kernel
def add_products(total: U64, rows: U32, factors: U64) -> None:
    """Add sum_k rows[k] * factors[k] to total (n,), modulo 2**64; rows is (k, n)."""
    whole = factors.size // 4 * 4
    for k in range(0, whole, 4):
        add_four_products(total, rows[k], rows[k + 1], rows[k + 2], rows[k + 3], factors[k : k + 4])
    for k in range(whole, factors.size):
        add_product(total, rows[k], factors[k])


@kernel
def combine(digits: U32, radix: U64, words: U64) -> None:
    """Mixed-radix digits (limbs, n) to 32-bit words (w, n) of the integer, lowest first.

    radix[t] holds word t of 1, q_0, q_0 q_1, ... A word's sum stays under limbs * 2**(limb_bits + 32) <= 2**64.
    """
    count, n = words.shape
    words[0] = 0
    for t in range(count):
        # Words of the larger products only: those of the smaller ones end before.
        first = 0
        while first < radix.shape[1] and radix[t, first] == 0:
            first += 1
        add_products(words[t], digits[first:], radix[t, first:])
        if t + 1 < count:
            for i in range(n):
                words[t + 1, i] = words[t, i] >> np.uint64(32)
                words[t, i] &= np.uint64(0xFFFFFFFF)


def shoup(values: U32, moduli: U32) -> U32:
    """floor(value * 2**32 / q)."""
    companions: U64 = (values.astype(np.uint64) << np.uint64(32)) // moduli
    return companions.astype(np.uint32)


@functools.cache
def data_primes(ring: Ring) -> tuple[int, ...]:
    """The ring's data primes, ascending, as SEAL's CoeffModulus.Create chooses and orders them.

    They are the largest primes of limb_bits bits that are 1 modulo 2N.
    """
    step, (bits,) = 2 * ring.degree, set(ring.limb_bits)
    found: list[int] = []
    candidate = ((1 << bits) - 1) // step * step + 1
    while len(found) < len(ring.limb_bits):
        if candidate >> (bits - 1) != 1:
            raise ValueError(f"there are not {len(ring.limb_bits)} primes of {bits} bits that are 1 modulo {step}")
        if candidate < 1 << bits and _is_prime(candidate):
            found.append(candidate)
        candidate -= step
    return tuple(reversed(found))


@functools.lru_cache(maxsize=8)
def basis_of(ring: Ring, limbs: int) -> Basis:
    """The basis of the ring's first ``limbs`` primes."""
    primes, n = data_primes(ring)[:limbs], ring.degree
    moduli = np.array(primes, np.uint32)
    roots = [_root(n, q) for q in primes]
    scale = np.array([pow(n, -1, q) for q in primes], np.uint32)
    unmix = np.zeros((limbs, limbs), np.uint32)
    for j in range(limbs):
        for k in range(j):
            unmix[k, j] = pow(primes[k], -1, primes[j])
    return Basis(
        degree=n,
        limb_bits=ring.limb_bits[0],
        moduli=moduli,
        forward=_twiddles(n, moduli, roots),
        inverse=_twiddles(n, moduli, [pow(root, -1, q) for root, q in zip(roots, primes, strict=True)]),
        scale=scale,
        scale_shoup=shoup(scale, moduli),
        unmix=unmix,
        unmix_shoup=shoup(unmix, moduli),
    )


def _twiddles(degree: int, moduli: U32, roots: list[int]) -> Twiddles:
    rows = degree // TAIL
    head = np.empty((moduli.size, rows), np.uint32)
    tail = np.empty((moduli.size, TAIL - 1, rows), np.uint32)
    powers = np.empty(degree, np.uint32)
    for j, root in enumerate(roots):
        fill_powers(np.uint64(root), np.uint64(moduli[j]), powers)
        head[j] = powers[:rows]
        # Stage by stage of the last log2(TAIL); a stage of `groups` butterfly groups in a row has as many twiddles.
        at, groups = 0, 1
        while groups < TAIL:
            tail[j, at : at + groups] = powers[groups * rows : 2 * groups * rows].reshape(rows, groups).T
            at, groups = at + groups, 2 * groups
    return Twiddles(head, shoup(head, moduli[:, None]), tail, shoup(tail, moduli[:, None, None]))


def _root(degree: int, q: int) -> int:
    """The smallest primitive 2N-th root of unity modulo q, which is SEAL's choice."""
    candidates = (pow(x, (q - 1) // (2 * degree), q) for x in range(2, q))
    root = next(r for r in candidates if pow(r, degree, q) == q - 1)
    return int(smallest_root(np.uint64(root), np.uint64(q), degree))


def _is_prime(n: int) -> bool:
    """Miller and Rabin; these bases decide for n < 3,215,031,751."""
    shift = ((n - 1) & (1 - n)).bit_length() - 1
    for base in (2, 3, 5, 7):
        x = pow(base, (n - 1) >> shift, n)
        if x not in (1, n - 1) and not any((x := x * x % n) == n - 1 for _ in range(shift - 1)):
            return False
    return True
