"""Pack residues to the bit, as they travel, and add packed ones.

Value i of b bits takes bits i*b to (i+1)*b - 1 of a little-endian stream. Groups of 32/(32-b) values fill whole
32-bit words when 32-b divides 32, as it does for 28 and 30.
"""

from __future__ import annotations

import numpy as np

from hefl.ckks.jit import kernel
from hefl.ckks.ntt import U32


@kernel
def pack(values: U32, bits: int, words: U32) -> None:
    """Values (n,), each below 2**bits, to words (n * bits / 32,); called with a literal, so that LLVM unrolls it."""
    spare = 32 - bits
    group = 32 // spare
    for g in range(values.size // group):
        v = values[g * group : (g + 1) * group]
        w = words[g * (group - 1) : (g + 1) * (group - 1)]
        for k in range(group - 1):
            w[k] = np.uint32(v[k] >> np.uint32(spare * k)) | np.uint32(v[k + 1] << np.uint32(bits - spare * k))


@kernel
def unpack(words: U32, bits: int, values: U32) -> None:
    """Inverse of pack."""
    spare = 32 - bits
    group = 32 // spare
    mask = np.uint32((1 << bits) - 1)
    for g in range(values.size // group):
        v = values[g * group : (g + 1) * group]
        w = words[g * (group - 1) : (g + 1) * (group - 1)]
        v[0] = w[0] & mask
        for k in range(1, group - 1):
            v[k] = np.uint32(w[k - 1] >> np.uint32(32 - spare * k)) | np.uint32(
                np.uint32(w[k] << np.uint32(spare * k)) & mask
            )
        v[group - 1] = w[group - 2] >> np.uint32(spare)


@kernel
def unpack_block(words: U32, bits: int, moduli: U32, out: U32) -> bool:
    """Words to residues out (limbs, N); says whether each is below its prime."""
    count = out.shape[1] * bits // 32
    reduced = True
    for j in range(moduli.size):
        part, row = words[j * count : (j + 1) * count], out[j]
        if bits == 28:
            unpack(part, 28, row)
        else:
            unpack(part, 30, row)
        largest = np.uint32(0)
        for i in range(row.size):
            largest = max(largest, row[i])
        reduced = reduced and largest < moduli[j]
    return reduced


@kernel
def pack_block(residues: U32, bits: int, words: U32) -> None:
    """Residues (limbs, N) to words, limb after limb."""
    count = residues.shape[1] * bits // 32
    for j in range(residues.shape[0]):
        part, row = words[j * count : (j + 1) * count], residues[j]
        if bits == 28:
            pack(row, 28, part)
        else:
            pack(row, 30, part)


@kernel
def add_multiple(total: U32, residues: U32, factors: U32, factors_shoup: U32, moduli: U32) -> None:
    """Add factor * residues to total, all (limbs, N), modulo each prime; both are below their primes and stay so."""
    for j in range(moduli.size):
        q, w, ws = moduli[j], np.uint64(factors[j]), np.uint64(factors_shoup[j])
        row, x = total[j], residues[j]
        for i in range(x.size):
            h = np.uint32((np.uint64(x[i]) * ws) >> np.uint64(32))
            v = np.uint32(np.uint32(np.uint64(x[i]) * w) - np.uint32(np.uint64(h) * np.uint64(q)))
            v = np.uint32(row[i] + min(v, np.uint32(v - q)))
            row[i] = min(v, np.uint32(v - q))
