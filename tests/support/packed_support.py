"""One weighted sum through the packed engine, in pieces that tests can bend."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hefl.ckks.context import Fingerprints, PublicContext, SecretContext
from hefl.encoding.codec import Sum
from hefl.engines.engine import Attempt, Blocks, Member, Trailer
from hefl.engines.packed import PackedEngine
from hefl.identity import Identity
from hefl.params import RINGS

I64 = NDArray[np.int64]


def new_secret() -> SecretContext:
    """A secret context of the packed engine alone, without a TenSEAL context."""
    return SecretContext(Identity("00" * 16, 1), b"", RINGS, os.urandom(32))


def public_of(secret: SecretContext) -> PublicContext:
    return PublicContext(secret.identity, b"", secret.rings, Fingerprints("", ""))


def new_attempt(values: int, weights: Sequence[int]) -> Attempt:
    return Attempt(os.urandom(32), values, {f"client-{i}": w for i, w in enumerate(weights)})


def again(blocks: Sequence[bytes]) -> Blocks:
    def start() -> Iterator[bytes]:
        return iter(blocks)

    return start


@dataclass
class Update:
    blocks: list[bytes]
    trailer: Trailer


@dataclass
class Total:
    """A sum as a server publishes it."""

    blocks: list[bytes]
    tag: bytes
    members: list[Member]

    def open(self, engine: PackedEngine, secret: SecretContext, attempt: Attempt) -> Sum:
        return engine.decrypt(again(self.blocks), self.tag, secret, attempt, self.members)


def encrypt(engine: PackedEngine, secret: SecretContext, attempt: Attempt, name: str, vector: I64) -> Update:
    blocks: list[bytes] = []
    seal = engine.encrypt(vector, secret, attempt, name, lambda data: blocks.append(bytes(data)))
    return Update(blocks, seal)


def add_up(engine: PackedEngine, secret: SecretContext, attempt: Attempt, updates: Mapping[str, Update]) -> Total:
    aggregator, blocks = engine.aggregator(public_of(secret), attempt), list[bytes]()
    for name, update in updates.items():
        aggregator.add(name, again(update.blocks), update.trailer)
    tag = aggregator.finish(lambda data: blocks.append(bytes(data)))
    members = [Member(name, u.trailer.seed, attempt.weights[name]) for name, u in updates.items()]
    return Total(blocks, tag, members)


def vectors_of(attempt: Attempt, precision_bits: int, seed: int = 0) -> dict[str, I64]:
    rng, top = np.random.default_rng(seed), 2 ** (precision_bits - 1) - 1
    return {name: rng.integers(-top, top, attempt.values, endpoint=True) for name in attempt.weights}


def sum_of(engine: PackedEngine, secret: SecretContext, attempt: Attempt, vectors: Mapping[str, I64]) -> Total:
    updates = {name: encrypt(engine, secret, attempt, name, vector) for name, vector in vectors.items()}
    return add_up(engine, secret, attempt, updates)


def chi_square(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Standard deviations by which counts of equal cells are off; above 7 a chance far below 1e-9."""
    expected = counts.mean()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - (counts.size - 1)) / np.sqrt(2 * (counts.size - 1)))
