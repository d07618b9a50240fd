"""Runs in the phase that a test needs, built by their own events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from builders import HEAD, RUN, announcement, record

from hefl.engines.engine import Terms
from hefl.protocol.records import Announcement
from hefl.rounds.events import Announced, Closed, Committed, Published
from hefl.rounds.run import Phase, Run, Session, advance
from hefl.rounds.schedule import Announce, Clock, announcement_of

KNOWN = ("alice", "bob", "carol")
NONCE = {name: f"{i:032x}" for i, name in enumerate(KNOWN, 1)}


def clock(**changes: Any) -> Clock:
    """A moment at which nothing is due."""
    fields: dict[str, Any] = {
        "silent": frozenset(),
        "phase_s": 0.0,
        "enough_s": 0.0,
        "join_wait_s": 2.0,
        "round_timeout_s": 60.0,
    }
    return Clock(**{**fields, **changes})


def gathering(present: Iterable[str] = KNOWN, **changes: Any) -> Run:
    sessions = {name: Session(10 * i, NONCE[name]) for i, name in enumerate(KNOWN, 1) if name in present}
    fields: dict[str, Any] = {
        "run": RUN,
        "rounds": 2,
        "min_clients": 2,
        "known": KNOWN,
        "head": HEAD,
        "sessions": sessions,
    }
    return Run(**{**fields, **changes})


def announced(run: Run, names: Iterable[str] | None = None) -> Announcement:
    names = tuple(sorted(run.sessions if names is None else names))
    return announcement_of(run, Announce(run.exchange, names), values=3, terms=Terms("tenseal"), deadline_s=30.0)


def collecting(committed: Iterable[str] = (), next_round: int = 1, names: Iterable[str] = KNOWN, **changes: Any) -> Run:
    run = gathering(next_round=next_round, **changes)
    run = advance(run, Announced(announced(run, names)))
    for name in committed:
        run = advance(run, Committed(name, digest(name), 10))
    return run


def digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def played(run: Run) -> Run:
    """The run after the round that comes next, which everybody answers."""
    run = advance(run, Announced(announced(run)))
    for name in KNOWN:
        run = advance(run, Committed(name, digest(name), 10))
    run = advance(run, Closed())
    assert run.announcement
    return advance(run, Published(record(run.announcement)))


def in_phase(phase: Phase) -> Run:
    """After a training, of which the sum that the phase may need is of everybody."""
    trained = record(announcement({name: 10 * i for i, name in enumerate(KNOWN, 1)}, round=1))
    if phase is Phase.COLLECTING:
        return collecting(next_round=2, model=trained)
    if phase is Phase.SUMMING:
        return advance(collecting(["alice", "bob"], next_round=2, model=trained), Closed())
    return gathering(phase=phase, next_round=2, model=trained)
