"""The ``plaintext`` engine: float32 and no encryption. For benchmarks and the demo's comparison, on one machine."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hefl.ckks.context import PublicContext, SecretContext
from hefl.encoding.codec import FloatCodec, Sum
from hefl.engines.engine import Attempt, BaseEngine, Blocks, Member, Trailer, Vector, Write
from hefl.errors import MalformedError
from hefl.models.layout import Layout
from hefl.params import MAX_NUM_EXAMPLES

BLOCK = 1 << 18
"""Values in a block."""


class PlaintextEngine(BaseEngine):
    """No encryption; see engine.Engine."""

    name = "plaintext"
    loopback_only = True
    max_num_examples = MAX_NUM_EXAMPLES

    def codec(self, layout: Layout) -> FloatCodec:
        """Floating-point values that float32 can hold."""
        return FloatCodec(layout, float(np.finfo(np.float32).max), np.float32)

    def block_count(self, attempt: Attempt) -> int:
        """One block for 2**18 values."""
        return -(-attempt.values // BLOCK)

    def max_block_bytes(self, attempt: Attempt) -> int:
        """Four bytes a value."""
        return 4 * BLOCK

    def encrypt(self, vector: Vector, secret: SecretContext, attempt: Attempt, name: str, write: Write) -> Trailer:
        """Write the vector as little-endian float32; see engine.Engine."""
        for at in range(0, attempt.values, BLOCK):
            write(_bytes(vector[at : at + BLOCK]))
        return Trailer()

    def aggregator(
        self, public: PublicContext, attempt: Attempt, members: Collection[str] | None = None
    ) -> PlaintextAggregator:
        """An empty sum; see engine.Engine."""
        return PlaintextAggregator(attempt, attempt.weights.keys() if members is None else members)

    def decrypt(
        self,
        blocks: Blocks,
        tag: bytes,
        secret: SecretContext,
        attempt: Attempt,
        members: Sequence[Member],
    ) -> Sum:
        """Read the sum of (weight_i / the members' total) * vector_i; see engine.Engine."""
        out = np.empty(attempt.values, np.float32)
        for k, block in enumerate(blocks()):
            part = out[k * BLOCK : (k + 1) * BLOCK]
            part[:] = _parse(block, part.size)
        return Sum(out, 1.0)


class PlaintextAggregator:
    """One sum in float32."""

    def __init__(self, attempt: Attempt, members: Collection[str]) -> None:
        self._attempt = attempt
        self._total = math.fsum(attempt.weights[name] for name in members)
        self._sum = np.zeros(attempt.values, np.float32)

    def add(self, name: str, blocks: Blocks, trailer: Trailer) -> None:
        """Multiply and add; see engine.Aggregator."""
        factor = np.float32(self._attempt.weights[name] / self._total)
        parts = [self._sum[at : at + BLOCK] for at in range(0, self._attempt.values, BLOCK)]
        for part, block in zip(parts, blocks(), strict=True):
            _parse(block, part.size)  # every block parses before the first one counts
        for part, block in zip(parts, blocks(), strict=True):
            part += factor * _parse(block, part.size)

    def finish(self, write: Write) -> bytes:
        """Write the sum; see engine.Aggregator."""
        for at in range(0, self._attempt.values, BLOCK):
            write(_bytes(self._sum[at : at + BLOCK]))
        return b""


def _bytes(values: NDArray[Any]) -> memoryview:
    return values.astype("<f4", copy=False).data.cast("B")


def _parse(block: bytes, size: int) -> NDArray[np.float32]:
    if len(block) != 4 * size:
        raise MalformedError(f"a block has {len(block)} bytes where {4 * size} belong")
    return np.frombuffer(block, "<f4")
