"""The negacyclic number-theoretic transform modulo one prime below 2**30.

Harvey's butterflies on uint32, values kept below 4q. The last log2(TAIL) stages would have inner loops too short to
vectorise, so they run on the transposed array: a spectrum is held as (TAIL, N/TAIL), where entry c*N/TAIL + r is
entry r*TAIL + c in SEAL's order (bit-reversed powers of the smallest primitive 2N-th root).

Sources: Harvey, "Faster arithmetic for number-theoretic transforms", 2014 (arXiv 1205.2926), algorithms 4 and 5;
Longa and Naehrig, eprint 2016/504, for merging the twist into the twiddles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hefl.ckks.jit import kernel

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

TAIL = 16


@kernel
def forward_scalar(x: U32, y: U32, w: np.uint64, w_shoup: np.uint64, q: np.uint64, q2: np.uint32) -> None:
    """(x, y) becomes (x + w*y, x - w*y), all below 4q; one twiddle for all."""
    for i in range(x.size):
        a, b = x[i], y[i]
        a = min(a, np.uint32(a - q2))
        h = np.uint32((np.uint64(b) * w_shoup) >> np.uint64(32))
        v = np.uint32(np.uint32(np.uint64(b) * w) - np.uint32(np.uint64(h) * q))
        x[i] = np.uint32(a + v)
        y[i] = np.uint32(np.uint32(a + q2) - v)


@kernel
def forward_vector(x: U32, y: U32, w: U32, w_shoup: U32, q: np.uint64, q2: np.uint32) -> None:
    """forward_scalar with a twiddle for each pair."""
    for i in range(x.size):
        a, b = x[i], y[i]
        a = min(a, np.uint32(a - q2))
        h = np.uint32((np.uint64(b) * np.uint64(w_shoup[i])) >> np.uint64(32))
        v = np.uint32(np.uint32(b * w[i]) - np.uint32(np.uint64(h) * q))
        x[i] = np.uint32(a + v)
        y[i] = np.uint32(np.uint32(a + q2) - v)


@kernel
def inverse_scalar(x: U32, y: U32, w: np.uint64, w_shoup: np.uint64, q: np.uint64, q2: np.uint32) -> None:
    """(x, y) becomes (x + y, w*(x - y)), all below 2q; one twiddle for all."""
    for i in range(x.size):
        a, b = x[i], y[i]
        s = np.uint32(a + b)
        d = np.uint32(np.uint32(a + q2) - b)
        h = np.uint32((np.uint64(d) * w_shoup) >> np.uint64(32))
        x[i] = min(s, np.uint32(s - q2))
        y[i] = np.uint32(np.uint32(np.uint64(d) * w) - np.uint32(np.uint64(h) * q))


@kernel
def inverse_vector(x: U32, y: U32, w: U32, w_shoup: U32, q: np.uint64, q2: np.uint32) -> None:
    """inverse_scalar with a twiddle for each pair."""
    for i in range(x.size):
        a, b = x[i], y[i]
        s = np.uint32(a + b)
        d = np.uint32(np.uint32(a + q2) - b)
        h = np.uint32((np.uint64(d) * np.uint64(w_shoup[i])) >> np.uint64(32))
        x[i] = min(s, np.uint32(s - q2))
        y[i] = np.uint32(np.uint32(d * w[i]) - np.uint32(np.uint64(h) * q))


@kernel
def to_columns(a: U32, out: U32) -> None:
    """Transpose (N/TAIL, TAIL) to (TAIL, N/TAIL), by dealing out to four heaps twice.

    Loops that read four neighbours and write four streams vectorise, and spare the cache sixteen streams at once.
    """
    n = a.size // 4
    heaps = np.empty(a.size, np.uint32)
    for source, target in ((a, heaps), (heaps, out)):
        for i in range(n):
            target[i] = source[4 * i]
            target[n + i] = source[4 * i + 1]
            target[2 * n + i] = source[4 * i + 2]
            target[3 * n + i] = source[4 * i + 3]


@kernel
def to_rows(a: U32, out: U32) -> None:
    """Inverse of to_columns."""
    n = a.size // 4
    heaps = np.empty(a.size, np.uint32)
    for source, target in ((a, heaps), (heaps, out)):
        for i in range(n):
            target[4 * i] = source[i]
            target[4 * i + 1] = source[n + i]
            target[4 * i + 2] = source[2 * n + i]
            target[4 * i + 3] = source[3 * n + i]


@kernel
def transform(a: U32, out: U32, head: U32, head_shoup: U32, tail: U32, tail_shoup: U32, q: np.uint32) -> None:
    """Coefficients a (N,), below q and destroyed, to the spectrum out (N,), below q, transposed.

    Twiddles are one prime's row of ring.Twiddles.
    """
    n = a.size
    qq, q2 = np.uint64(q), np.uint32(2 * q)
    t, m = n >> 1, 1
    while t >= TAIL:
        for i in range(m):
            j = 2 * i * t
            forward_scalar(
                a[j : j + t], a[j + t : j + 2 * t], np.uint64(head[m + i]), np.uint64(head_shoup[m + i]), qq, q2
            )
        m <<= 1
        t >>= 1
    rows = n // TAIL
    to_columns(a, out)
    k, t = 0, TAIL // 2
    while t >= 1:
        for s in range(TAIL // (2 * t)):
            for j in range(t):
                lo = (s * 2 * t + j) * rows
                hi = lo + t * rows
                forward_vector(out[lo : lo + rows], out[hi : hi + rows], tail[k], tail_shoup[k], qq, q2)
            k += 1
        t >>= 1
    for i in range(n):
        x = out[i]
        x = min(x, np.uint32(x - q2))
        out[i] = min(x, np.uint32(x - q))


@kernel
def invert(
    spectrum: U32,
    out: U32,
    head: U32,
    head_shoup: U32,
    tail: U32,
    tail_shoup: U32,
    scale: np.uint32,
    scale_shoup: np.uint32,
    q: np.uint32,
) -> None:
    """Inverse of ``transform``: spectrum (N,), below 2q and destroyed, to coefficients out (N,), below q.

    Twiddles are those of the inverse root; scale is 1/N modulo q.
    """
    n = out.size
    qq, q2 = np.uint64(q), np.uint32(2 * q)
    rows = n // TAIL
    k, t = TAIL - 1, 1
    while t < TAIL:
        groups = TAIL // (2 * t)
        k -= groups
        for s in range(groups):
            for j in range(t):
                lo = (s * 2 * t + j) * rows
                hi = lo + t * rows
                inverse_vector(
                    spectrum[lo : lo + rows], spectrum[hi : hi + rows], tail[k + s], tail_shoup[k + s], qq, q2
                )
        t <<= 1
    to_rows(spectrum, out)
    t, m = TAIL, n // (2 * TAIL)
    while m >= 1:
        for i in range(m):
            j = 2 * i * t
            inverse_scalar(
                out[j : j + t], out[j + t : j + 2 * t], np.uint64(head[m + i]), np.uint64(head_shoup[m + i]), qq, q2
            )
        m >>= 1
        t <<= 1
    for i in range(n):
        x = out[i]
        h = np.uint32((np.uint64(x) * np.uint64(scale_shoup)) >> np.uint64(32))
        v = np.uint32(np.uint32(np.uint64(x) * np.uint64(scale)) - np.uint32(np.uint64(h) * qq))
        out[i] = min(v, np.uint32(v - q))


@kernel
def smallest_root(root: np.uint64, q: np.uint64, degree: int) -> np.uint64:
    """The smallest primitive 2N-th root of unity modulo q, from any one: all are its odd powers."""
    step = root * root % q
    best = root
    for _ in range(degree):
        best = min(best, root)
        root = root * step % q
    return best


@kernel
def fill_powers(base: np.uint64, q: np.uint64, out: U32) -> None:
    """Powers 0 to N - 1 of base modulo q, in bit-reversed order; N = out.size."""
    n, power = out.size, np.uint64(1)
    at = 0
    for _ in range(n):
        out[at] = power
        power = power * base % q
        # Count up from the top bit down.
        bit = n >> 1
        while at & bit:
            at ^= bit
            bit >>= 1
        at |= bit
