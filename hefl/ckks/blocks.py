"""Encrypt and decrypt one block: values to the bytes of a ciphertext, and a sum's bytes to values.

A block b has a public polynomial a_b, common to all who take part and drawn in the NTT domain, in SEAL's order, prime
after prime from stream b of the key SHA-256("hefl/v1/a" || ctx). An update has a secret of its own, s, and its block
is c0_b = m_b + e_b - a_b s. What is negligible about this: nothing is reused, since ctx binds one attempt.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hefl.ckks.bitpacking import pack_block, unpack_block
from hefl.ckks.jit import kernel
from hefl.ckks.lanes import Lanes
from hefl.ckks.ntt import U32, invert, to_columns
from hefl.ckks.plan import Plan
from hefl.ckks.ring import Basis, basis_of
from hefl.ckks.sampling import Streams, require_drawn, uniform, words_for
from hefl.errors import MalformedError


@kernel
def draw_products(
    stream: U32,
    mask: np.uint32,
    moduli: U32,
    spectrum: U32,
    spectrum_shoup: U32,
    head: U32,
    head_shoup: U32,
    tail: U32,
    tail_shoup: U32,
    scale: U32,
    scale_shoup: U32,
    out: U32,
) -> int:
    """Draw a from the stream and write a*s, as coefficients, to out (limbs, N); -1 where the stream ran out.

    spectrum and spectrum_shoup are those of s, transposed, (limbs, N).
    """
    at = 0
    a, turned = np.empty(out.shape[1], np.uint32), np.empty(out.shape[1], np.uint32)
    for j in range(moduli.size):
        q = moduli[j]
        at = uniform(stream, at, mask, q, a)
        if at < 0:
            return at
        to_columns(a, turned)
        multiply(turned, spectrum[j], spectrum_shoup[j], q)
        invert(turned, out[j], head[j], head_shoup[j], tail[j], tail_shoup[j], scale[j], scale_shoup[j], q)
    return at


@kernel
def multiply(a: U32, b: U32, b_shoup: U32, q: np.uint32) -> None:
    """Multiply a by b modulo q; the products are left below 2q."""
    for i in range(a.size):
        h = np.uint32((np.uint64(a[i]) * np.uint64(b_shoup[i])) >> np.uint64(32))
        a[i] = np.uint32(np.uint32(a[i] * b[i]) - np.uint32(h * q))


@dataclass(frozen=True, slots=True, eq=False)
class Secret:
    """A secret polynomial, ready to multiply: its transposed spectrum and companions, each (limbs, N)."""

    spectrum: U32
    spectrum_shoup: U32


class BlockCoder:
    """The blocks of one attempt.

    Attributes:
        plan: Theirs.
        basis: The primes that they use.
        lanes: Where values stand in a coefficient.
    """

    def __init__(self, plan: Plan, ctx: bytes) -> None:
        self.plan = plan
        self.basis: Basis = basis_of(plan.ring, plan.limbs)
        self.lanes = lane_layout(plan)
        self._streams = Streams(hashlib.sha256(b"hefl/v1/a" + ctx).digest())
        self._mask = np.uint32((1 << plan.limb_bits) - 1)
        self._words = sum(words_for(plan.ring.degree, plan.limb_bits, q) for q in self.basis.primes)

    def secret(self, poly: NDArray[np.int64]) -> Secret:
        """A secret polynomial (N,) with integer coefficients."""
        return Secret(*self.basis.spectrum(poly))

    def products(self, block: int, secret: Secret) -> U32:
        """a_b * s as coefficients, (limbs, N).

        Raises:
            KernelError: The stream ran dry.
        """
        out = np.empty((self.basis.limbs, self.basis.degree), np.uint32)
        stream = self._streams.words(block, self._words)
        require_drawn(multiply_drawn(stream, self._mask, self.basis, secret, out))
        return out

    def to_bytes(self, residues: U32) -> memoryview:
        """Residues (limbs, N) packed to the bit."""
        words = np.empty(self.plan.block_bytes // 4, "<u4")
        pack_block(residues, self.plan.limb_bits, words)
        return words.data.cast("B")

    def from_bytes(self, data: bytes) -> U32:
        """Inverse of to_bytes.

        Raises:
            MalformedError: Its length is another, or a residue is not below its prime.
        """
        if len(data) != self.plan.block_bytes:
            raise MalformedError(f"a block has {len(data)} bytes where {self.plan.block_bytes} belong")
        residues = np.empty((self.basis.limbs, self.basis.degree), np.uint32)
        if not unpack_block(np.frombuffer(data, "<u4"), self.plan.limb_bits, self.basis.moduli, residues):
            raise MalformedError("a block holds a residue that is not below its prime")
        return residues

    def counted(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks as they come.

        Raises:
            MalformedError: There are more or fewer than belong; before one too many is passed on.
        """
        count = 0
        for count, block in enumerate(blocks, 1):
            if count > self.plan.blocks:
                break
            yield block
        if count != self.plan.blocks:
            raise MalformedError(f"an update or a sum has {self.plan.blocks} blocks here, not {count}")


def multiply_drawn(stream: U32, mask: np.uint32, basis: Basis, secret: Secret, out: U32) -> int:
    """See draw_products."""
    twiddles = basis.inverse
    return draw_products(
        stream,
        mask,
        basis.moduli,
        secret.spectrum,
        secret.spectrum_shoup,
        twiddles.head,
        twiddles.head_shoup,
        twiddles.tail,
        twiddles.tail_shoup,
        basis.scale,
        basis.scale_shoup,
        out,
    )


@functools.lru_cache(maxsize=8)
def lane_layout(plan: Plan) -> Lanes:
    """The constants of a plan's lanes."""
    return Lanes.of(basis_of(plan.ring, plan.limbs), plan.margin_bits, plan.width_bits, plan.lanes)
