"""Each lie about a sum is refused, by the check that is meant for it, before a secret touches the sum."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
from builders import Array

from hefl.ckks.context import PublicContext, SecretContext
from hefl.demo.forgeries import SUM_LIES, LiarState, LyingAggregation
from hefl.engines import packed
from hefl.engines.packed import PackedEngine
from hefl.errors import ProtocolError
from hefl.protocol.records import Announcement, Participant, Record
from hefl.protocol.updates import read_aggregate, write_update

NAMES = ("alice", "bob", "carol")
VALUES = 50_000
"""Several blocks."""

CHECKS = {
    "other-weight": "weights-announced",
    "member-twice": "names-distinct",
    "truncate": "form",
    "unreduced": "form",
}
"""By which check a lie is caught, where that is not the tag."""


@dataclass
class Run:
    """A run of the packed engine without a network: the same people and weights each round."""

    secret: SecretContext
    public: PublicContext
    engine: PackedEngine
    memory: LiarState
    weights: tuple[int, ...] = (3, 2, 2)

    def attempt(self, number: int, attempt: int = 1) -> tuple[Announcement, LyingAggregation]:
        announcement = Announcement(
            run="ab" * 16,
            round=number,
            attempt=attempt,
            exchange="training",
            engine="packed",
            precision_bits=24,
            weighting="server",
            nonce=f"{10 * number + attempt:064x}",
            head="cd" * 32,
            values=VALUES,
            deadline_s=60.0,
            participants=tuple(
                Participant(name=n, num_examples=w, join_nonce="00" * 16)
                for n, w in zip(NAMES, self.weights, strict=True)
            ),
        )
        aggregation = LyingAggregation(self.public, self.engine, announcement, self.memory)
        for i, name in enumerate(NAMES):
            out = io.BytesIO()
            vector: Array = np.arange(VALUES) * (i + 1) % 1000 - 500
            write_update(out, vector, self.secret, self.engine, announcement, name)
            aggregation.add(aggregation.open(out.getvalue(), name), name)
        return announcement, aggregation

    def published(self, number: int, attempt: int = 1) -> tuple[Announcement, bytes, Record]:
        announcement, aggregation = self.attempt(number, attempt)
        out = io.BytesIO()
        record = aggregation.finish(out)
        return announcement, out.getvalue(), record

    def read(self, announcement: Announcement, data: bytes, record: Record) -> None:
        total = read_aggregate(data, self.secret, self.engine, announcement, record)
        expected = sum(w * (np.arange(VALUES) * (i + 1) % 1000 - 500) for i, w in enumerate(self.weights))
        np.testing.assert_array_equal(total.vector, expected)


@pytest.mark.parametrize("lie", SUM_LIES)
def test_a_lie_about_a_sum_is_refused_before_any_secret_operation(
    secret: SecretContext, public: PublicContext, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(secret, public, PackedEngine(), LiarState(lie))
    if lie == "mix-attempts":
        run.memory.abandoned = run.attempt(1, attempt=1)[1].uploads
    for number in (1, 2):
        announcement, data, record = run.published(number, attempt=2)
        if number in run.memory.told:
            break
        run.read(announcement, data, record)
    assert run.memory.told == [2 if lie in ("replay-update", "replay-seed", "replay-sum", "mix-rounds") else 1]

    def forbidden(*_: object) -> None:
        raise AssertionError("a secret was derived for a sum that is a lie")

    monkeypatch.setattr(packed, "one_time_secret", forbidden)
    with pytest.raises(ProtocolError) as caught:
        run.read(announcement, data, record)
    assert caught.value.check == CHECKS.get(lie, "tag")
