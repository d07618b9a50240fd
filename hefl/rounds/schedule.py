"""Decide what a server does next, from the state of its run and the time.

``decide`` reads a ``rounds.Run``; whoever carries a decision out tells the run with an event.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from hefl.encoding.codec import RoundKind
from hefl.engines.engine import Terms
from hefl.params import (
    JOIN_WAIT_S,
    KEEP_AGGREGATES,
    MAX_USELESS_SUMS,
    MAX_VALUES,
    MIN_CLIENTS,
    ROUND_TIMEOUT_S,
    SERVED_NUM_EXAMPLES,
)
from hefl.protocol.records import Announcement, Participant
from hefl.rounds.events import Extended, Reopened
from hefl.rounds.kept_settings import KeptSettings
from hefl.rounds.run import Phase, Run


@dataclass(frozen=True, slots=True)
class Announce:
    """Open an attempt with these participants."""

    exchange: RoundKind
    names: tuple[str, ...]
    weights: Mapping[str, int] | None = None
    """Those of a useless sum, which is tried again; None are what each client has said last."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the attempt and make its aggregate."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give the attempt up."""

    reason: str
    culprits: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Stop:
    """Call the open attempt and all later trainings off."""


@dataclass(frozen=True, slots=True)
class Finish:
    """No more rounds."""


@dataclass(frozen=True, slots=True)
class End:
    """Stop serving."""


Decision = Announce | Close | Abandon | Stop | Finish | End


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What an operator decides of a run; times in seconds.

    Attributes:
        rounds: Trainings that the run is to have; None are its own.
        min_clients, join_wait_s, round_timeout_s, max_values, max_num_examples: As KeptSettings has them.
        linger_s: How long to stay after the end for known clients that may not have the result.
        keep: How many of the last aggregates stay.
    """

    rounds: int | None = None
    min_clients: int = MIN_CLIENTS
    join_wait_s: float = JOIN_WAIT_S
    round_timeout_s: float = ROUND_TIMEOUT_S
    linger_s: float = 0.0
    keep: int = KEEP_AGGREGATES
    max_values: int = MAX_VALUES
    max_num_examples: int = SERVED_NUM_EXAMPLES

    @property
    def kept(self) -> KeptSettings:
        """Those that the run keeps, also over the server's next start."""
        return msgspec.convert(self, KeptSettings, from_attributes=True)


@dataclass(frozen=True, slots=True)
class Clock:
    """What a decision needs to know of time.

    Attributes:
        silent: Sessions that have not been heard of for too long.
        phase_s: Seconds since the phase began.
        enough_s: Seconds since enough clients were here to start.
        join_wait_s, round_timeout_s, linger_s: As RunSettings has them.
    """

    silent: frozenset[str]
    phase_s: float
    enough_s: float
    join_wait_s: float
    round_timeout_s: float
    linger_s: float = 0.0


def at_start(run: Run, settings: RunSettings) -> Extended | Reopened | None:
    """What becomes of a run before a server goes on with it; None for one that has ended leaves nothing to do."""
    if settings.rounds and settings.rounds > run.rounds:
        return Extended(settings.rounds)
    return Reopened() if run.phase is Phase.ENDED and settings.linger_s and run.unconfirmed else None


def decide(run: Run, clock: Clock) -> Decision | None:
    """What the server should do now; None is to wait."""
    match run.phase:
        case Phase.GATHERING:
            return _gather(run, clock)
        case Phase.COLLECTING:
            return _collect(run, clock)
        case Phase.FINISHING:
            return None if _is_needed(run, clock) else End()
    return None


def _is_needed(run: Run, clock: Clock) -> bool:
    """Whether anybody may still want the result. A client goes when it has the others' confirmations."""
    if run.unconfirmed and clock.phase_s < clock.linger_s:
        return True
    # One that is silent and has not confirmed may have been killed, and come back for it.
    here = [name for name in run.sessions if name not in clock.silent or name not in run.confirmations]
    return bool(here) and clock.phase_s < clock.round_timeout_s + clock.linger_s


def _gather(run: Run, clock: Clock) -> Decision | None:
    present = tuple(sorted(name for name in run.sessions if name not in clock.silent))
    failed = run.attempt > run.called_off or clock.phase_s >= clock.round_timeout_s
    closing_failed = run.exchange == "closing" and failed
    if run.closed or closing_failed:
        return Finish()  # the model stands; only its metrics may be missing
    if run.again is not None and run.again.keys() <= set(present) and len(run.useless_rounds) < MAX_USELESS_SUMS:
        return Announce(run.exchange, tuple(run.again), run.again)
    if run.holds:
        return None
    if len(present) < max(run.min_clients, MIN_CLIENTS):
        return None
    if run.exchange != "initial":
        return Announce(run.exchange, present)
    if run.attempt == 0 and len(present) < len(run.known) and clock.enough_s < clock.join_wait_s:
        return None
    # The first by name who has not failed; once everyone has, the first again.
    sender = next((name for name in present if name not in run.failed_senders), present[0])
    return Announce("initial", (sender,))


def _collect(run: Run, clock: Clock) -> Decision | None:
    announcement = run.announcement
    if announcement is None:
        raise ValueError("collecting without an announcement")
    first = run.attempt == run.called_off + 1
    if run.lost and (first or run.needs_all) and run.exchange != "closing":
        # In a round's first attempt only: who does so again and again is left out. A closing round has no other.
        return Abandon(f"{run.lost[0]} came back without its state")
    late = clock.phase_s >= announcement.deadline_s
    missing = frozenset(announcement.names) - run.committed.keys()
    if run.awaited and not late:
        return None
    needed = 1 if run.exchange == "initial" else max(run.min_clients, MIN_CLIENTS)
    whole = not (run.needs_all and missing)
    if len(run.committed) >= needed and whole:
        return Close()
    if len(run.enough) >= needed:
        return Stop()
    if run.enough and not late:
        return None  # all decide alike, but for one that lies or skipped a sum: the others may still come
    some = len(run.committed) < needed <= len(run.committed) + len(run.enough)
    if run.enough and run.attempt > run.called_off + 1 and some:
        return Stop()  # an attempt has failed before, and the next one would be answered no better
    why = "the deadline passed" if late else "clients left"
    if run.enough:
        why = f"{', '.join(sorted(run.enough))} had enough, and the others not: {why}"
    if not whole:
        return Abandon(f"{why}, and only a sum with {', '.join(sorted(missing))} may be made", missing)
    return Abandon(f"{why} with {len(run.committed)} of at least {needed} updates in", missing)


def announcement_of(run: Run, decision: Announce, *, values: int, terms: Terms, deadline_s: float) -> Announcement:
    """The announcement that a decision asks for, with a nonce of its own."""
    return Announcement(
        run=run.run,
        round=run.next_round,
        attempt=run.attempt + 1,
        exchange=decision.exchange,
        engine=terms.engine,
        precision_bits=terms.precision_bits,
        weighting=terms.weighting,
        nonce=os.urandom(32).hex(),
        head=run.head,
        values=values,
        deadline_s=float(deadline_s),  # hashed as JSON, where 60 and 60.0 differ
        participants=tuple(
            Participant(
                name=name,
                num_examples=(decision.weights or {}).get(name, run.sessions[name].num_examples),
                join_nonce=run.sessions[name].join_nonce,
            )
            for name in decision.names
        ),
    )
