"""The ``tenseal`` engine: stock TenSEAL. Nothing but SEAL touches the numbers.

A vector is cut into chunks of N/2 slots, each a symmetric CKKS ciphertext. The server multiplies by
num_examples / (total of the sum's members) and rescales once. Sums are approximate and cannot be authenticated: the
engine is the reference, for an honest server. Its decrypted values carry noise that depends on the key (Li and
Micciancio, eprint 2020/1533), so a model that is published needs a key of its own, used for nothing afterwards.

Source: Cheon, Kim, Kim, Song, "Homomorphic Encryption for Arithmetic of Approximate Numbers", eprint 2016/421.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from hefl.ckks.context import PublicContext, SecretContext, open_public, open_secret
from hefl.encoding.codec import FloatCodec, Sum
from hefl.engines.engine import Attempt, BaseEngine, Blocks, Member, Trailer, Vector, Write
from hefl.errors import MalformedError, OutOfRangeError
from hefl.models.layout import Layout
from hefl.params import (
    SLOTS_LIMIT,
    SLOTS_MAX_NUM_EXAMPLES,
    SLOTS_RING,
    SLOTS_SCALE_BITS,
)

SLOTS = SLOTS_RING.degree // 2


class SlotsEngine(BaseEngine):
    """Stock CKKS vectors; see the module and engine.Engine."""

    name = "tenseal"
    max_num_examples = SLOTS_MAX_NUM_EXAMPLES

    def codec(self, layout: Layout) -> FloatCodec:
        """Floating-point values, each below 2**18."""
        return FloatCodec(layout, SLOTS_LIMIT)

    def block_count(self, attempt: Attempt) -> int:
        """One ciphertext for N/2 values."""
        return -(-attempt.values // SLOTS)

    def max_block_bytes(self, attempt: Attempt) -> int:
        """Two polynomials of two limbs in 8-byte words, and room for SEAL's and TenSEAL's headers."""
        return 2 * len(SLOTS_RING.limb_bits) * SLOTS_RING.degree * 8 + 1024

    def encrypt(self, vector: Vector, secret: SecretContext, attempt: Attempt, name: str, write: Write) -> Trailer:
        """Encrypt chunk by chunk with the secret key; see engine.Engine."""
        import tenseal as ts

        context = open_secret(secret)
        if not (np.abs(vector) < SLOTS_LIMIT).all():  # also where it is NaN
            raise OutOfRangeError(f"the engine 'tenseal' holds values of magnitude below {SLOTS_LIMIT:g} only")
        for at in range(0, attempt.values, SLOTS):
            write(ts.ckks_vector(context, vector[at : at + SLOTS].tolist()).serialize())
        return Trailer()

    def aggregator(
        self, public: PublicContext, attempt: Attempt, members: Collection[str] | None = None
    ) -> SlotsAggregator:
        """An empty sum; see engine.Engine."""
        return SlotsAggregator(public, attempt, attempt.weights.keys() if members is None else members)

    def decrypt(
        self,
        blocks: Blocks,
        tag: bytes,
        secret: SecretContext,
        attempt: Attempt,
        members: Sequence[Member],
    ) -> Sum:
        """Decrypt sum_i (weight_i / the members' total) * vector_i; see engine.Engine."""
        context = open_secret(secret)
        out = np.empty(attempt.values, np.float64)
        for k, block in enumerate(blocks()):
            part = out[k * SLOTS : (k + 1) * SLOTS]
            part[:] = _parse(block, context, part.size, limbs=1).decrypt()
        return Sum(out, 1.0)


class SlotsAggregator:
    """One sum of ciphertexts."""

    def __init__(self, public: PublicContext, attempt: Attempt, members: Collection[str]) -> None:
        self._context = open_public(public)
        self._attempt = attempt
        self._total = math.fsum(attempt.weights[name] for name in members)
        self._sums: list[Any] = []
        self._broken = False

    def add(self, name: str, blocks: Blocks, trailer: Trailer) -> None:
        """Multiply and add; see engine.Aggregator."""
        # SEAL rescales by its prime, not by 2**40, and TenSEAL then states the scale as 2**40: the factor makes that
        # true. Without it every value would be off by 6e-7 of itself.
        factor = self._attempt.weights[name] / self._total * _rescale_prime() / 2.0**SLOTS_SCALE_BITS
        for _ in self._parsed(blocks):
            pass  # every block is in form before the first one counts
        try:
            for k, vector in enumerate(self._parsed(blocks)):
                vector *= factor
                if k < len(self._sums):
                    self._sums[k] += vector
                else:
                    self._sums.append(vector)
        except BaseException:
            self._broken = True
            raise

    def finish(self, write: Write) -> bytes:
        """Write the sum; see engine.Aggregator."""
        if self._broken:
            raise MalformedError("an update was added in part: the sum cannot be used")
        for vector in self._sums:
            write(vector.serialize())
        self._sums.clear()
        return b""

    def _parsed(self, blocks: Blocks) -> Iterator[Any]:
        for k, block in enumerate(blocks()):
            size = min(SLOTS, self._attempt.values - k * SLOTS)
            yield _parse(block, self._context, size, limbs=len(SLOTS_RING.limb_bits))


def _parse(block: bytes, context: Any, size: int, *, limbs: int) -> Any:
    """One ciphertext, as hefl makes them: so many values, two polynomials of so many limbs, the one scale."""
    import tenseal as ts

    try:
        vector = ts.ckks_vector_from(context, bytes(block))
        (ciphertext,) = vector.ciphertext()
        found = vector.size(), ciphertext.size(), ciphertext.coeff_modulus_size(), ciphertext.scale
    except Exception as error:  # what TenSEAL raises depends on which byte is broken
        raise MalformedError(f"a ciphertext does not parse: {error}") from error
    if found != (size, 2, limbs, 2.0**SLOTS_SCALE_BITS):
        raise MalformedError(
            f"a ciphertext has {found[0]} values, {found[1]} polynomials, {found[2]} limbs and scale {found[3]:g}, "
            f"where {size}, 2, {limbs} and {2.0**SLOTS_SCALE_BITS:g} belong"
        )
    return vector


@functools.cache
def _rescale_prime() -> int:
    """The data prime that a rescale divides by: the last but the special one."""
    import tenseal.sealapi as seal

    primes: list[int] = [q.value() for q in seal.CoeffModulus.Create(SLOTS_RING.degree, SLOTS_RING.chain)]
    return primes[-2]
