"""Collect what the page shows, from the server's events and the state of the run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hefl.encoding.codec import Metrics
from hefl.protocol.records import Record
from hefl.rounds.run import Phase, Run
from hefl.rounds.schedule import Clock

KEPT_ROUNDS = 500
"""A page shows so many of the last rounds: what a run of days needs is bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One finished round; of one from before the server's start only the record is known.

    Attributes:
        round, exchange: As announced.
        members, missed: Whose updates are in the sum, and whose were announced and are not.
        bytes_up, bytes_down: Of all clients together.
        seconds: By phase of the round table: gathering, collecting, summing.
        metrics: Of the model that it published, where a client told.
        reporter: Who told first.
        changed: When it last changed, as Watch.seq.
    """

    round: int
    changed: int
    exchange: str = ""
    members: Sequence[str] = ()
    missed: Sequence[str] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: Mapping[str, float] | None = None
    metrics: Metrics | None = None
    reporter: str | None = None


class Watch:
    """Remembers of the server's events what the round table does not.

    Args:
        run: As it stands now.
        records: The last that it has.
        clock: Seconds, rising.

    Attributes:
        seq: Rises with every event.
        rows: The last KEPT_ROUNDS rounds, by number.
        left: Who said goodbye and has not come back.
        refused: Refused requests by reason.
        bytes_up: Of the open attempt so far.
    """

    def __init__(
        self, run: Run, records: Iterable[Record] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seq = 0
        self.rows: dict[int, Row] = {}
        self.left: set[str] = set()
        self.refused: Counter[str] = Counter()
        self.bytes_up = 0
        self._clock = clock
        self._ended_at = self._announced_at = clock()
        self._exchange: str = run.exchange
        for record in records:
            names, members = record.announcement.names, [m.name for m in record.members]
            self._change(
                record.announcement.round,
                exchange=record.announcement.exchange,
                members=members,
                missed=[name for name in names if name not in members],
            )

    def see(self, event: Mapping[str, Any]) -> None:
        """Take one event in; kinds that are of no interest here pass."""
        self.seq += 1
        match event:
            case {"event": "joined", "client": name}:
                self.left.discard(name)
            case {"event": "left", "client": name}:
                self.left.add(name)
            case {"event": "refused", "reason": reason}:
                self.refused[reason] += 1
            case {"event": "announced", "exchange": exchange}:
                self._announced_at, self._exchange, self.bytes_up = self._clock(), exchange, 0
            case {"event": "update", "bytes": size}:
                self.bytes_up += size
            case {"event": "round", "round": number}:
                self._close(number, event)
            case {"event": "download", "round": number, "bytes": size}:
                self._change(number, bytes_down=self._row(number).bytes_down + size)
            case {"event": "metrics", "round": number, "client": name, "metrics": metrics}:
                if self._row(number).exchange != "closing":  # where a run was extended: no model is of that round
                    self._change(number, metrics=metrics, reporter=name)

    def _close(self, number: int, event: Mapping[str, Any]) -> None:
        now, summing_s = self._clock(), event["seconds"].get("aggregate", 0.0)
        self._change(
            number,
            exchange=self._exchange,
            members=event["in"],
            missed=event["missed"],
            bytes_up=event["bytes_up"],
            seconds={
                "gathering": self._announced_at - self._ended_at,
                # Updates are added to the sum while others are still awaited.
                "collecting": max(now - self._announced_at - summing_s, 0.0),
                "summing": summing_s,
            },
        )
        self._ended_at, self.bytes_up = now, 0

    def _row(self, number: int) -> Row:
        return self.rows.get(number) or Row(round=number, changed=self.seq)

    def _change(self, number: int, **changes: Any) -> None:
        self.rows[number] = replace(self._row(number), changed=self.seq, **changes)
        if len(self.rows) > KEPT_ROUNDS:
            del self.rows[min(self.rows)]

    def changed_since(self, seq: int) -> list[Row]:
        """Rows that have changed after ``seq``, in order of rounds."""
        return sorted((row for row in self.rows.values() if row.changed > seq), key=lambda row: row.round)


def deadline_s(run: Run, clock: Clock) -> float | None:
    """Seconds until the open attempt closes with whoever is in; None where nothing is open."""
    if run.phase is not Phase.COLLECTING or run.announcement is None:
        return None
    return max(run.announcement.deadline_s - clock.phase_s, 0.0)


def awaited(run: Run, clock: Clock) -> tuple[str, ...]:
    """Whose update of the open attempt may still come; at the end, who has not fetched the last record."""
    if run.phase is Phase.FINISHING:
        return tuple(name for name in run.awaited if name not in clock.silent)
    return run.awaited if run.announcement else ()


def standing(run: Run, clock: Clock, watch: Watch) -> dict[str, str]:
    """Where each known client stands, by name.

    ``sent`` its update, or ``done`` with the whole run; ``awaited``; ``silent`` for too long; ``here`` with nothing to
    do; ``left``; ``absent``.
    """
    expected = frozenset(awaited(run, clock))
    return {name: _standing(name, run, clock, watch, expected) for name in run.known}


def _standing(name: str, run: Run, clock: Clock, watch: Watch, expected: frozenset[str]) -> str:
    if name in run.confirmations:
        return "done"
    if run.announcement and name in run.committed:
        return "sent"
    if name not in run.sessions:
        return "left" if name in watch.left else "absent"
    if name in clock.silent:
        return "silent"
    return "awaited" if name in expected else "here"


def describe(run: Run, clock: Clock, watch: Watch) -> dict[str, Any]:
    """The run as the page shows it, without the seconds to its deadline, which change all the time."""
    return {
        "run": run.run,
        "phase": run.phase.value,
        "exchange": run.exchange,
        "round": run.shown_round,
        "rounds": run.last_training,
        "trainings": run.rounds,
        "done": run.model_round,
        "attempt": run.attempt,
        "min_clients": run.min_clients,
        "awaited": awaited(run, clock),
        "clients": standing(run, clock, watch),
        "bytes_up": watch.bytes_up,
        "refused": dict(watch.refused),
    }
