"""The state machine of a run, as one table.

A ``Run`` is a value; ``advance(run, event)`` gives the next one, or refuses an event that has no place in the phase.
What a server should do next, ``schedule`` says. Clocks, sockets and files are the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from hefl.encoding.codec import RoundKind
from hefl.errors import ConflictError, StaleError
from hefl.protocol.records import Announcement, Record
from hefl.rounds.events import (
    Abandoned,
    AllowedChanged,
    Announced,
    Closed,
    Committed,
    Confirmed,
    Declined,
    Ended,
    Event,
    Extended,
    Finished,
    Joined,
    Left,
    Published,
    Reopened,
    Stopped,
    Useless,
)


class Phase(Enum):
    """Where a run is."""

    GATHERING = "gathering"
    """No attempt is open: waiting for enough clients."""
    COLLECTING = "collecting"
    """An attempt is open: waiting for updates."""
    SUMMING = "summing"
    """The attempt is closed: its aggregate is being made."""
    FINISHING = "draining"
    """The last round is over: waiting until everyone has fetched its record, and gone."""
    ENDED = "ended"


TABLE: Mapping[Phase, Mapping[type[Event], Phase]] = {
    Phase.GATHERING: {
        Joined: Phase.GATHERING,
        Left: Phase.GATHERING,
        AllowedChanged: Phase.GATHERING,
        Useless: Phase.GATHERING,
        Announced: Phase.COLLECTING,
        Finished: Phase.FINISHING,
        Extended: Phase.GATHERING,
    },
    Phase.COLLECTING: {
        Joined: Phase.COLLECTING,
        Left: Phase.COLLECTING,
        AllowedChanged: Phase.COLLECTING,
        Committed: Phase.COLLECTING,
        Declined: Phase.COLLECTING,
        Useless: Phase.COLLECTING,
        Closed: Phase.SUMMING,
        Abandoned: Phase.GATHERING,
        Stopped: Phase.GATHERING,
        Extended: Phase.COLLECTING,
    },
    Phase.SUMMING: {
        Joined: Phase.SUMMING,
        Left: Phase.SUMMING,
        AllowedChanged: Phase.SUMMING,
        Useless: Phase.SUMMING,
        Published: Phase.GATHERING,
        Abandoned: Phase.GATHERING,
        Extended: Phase.SUMMING,
    },
    Phase.FINISHING: {
        Joined: Phase.FINISHING,
        Left: Phase.FINISHING,
        AllowedChanged: Phase.FINISHING,
        Confirmed: Phase.FINISHING,
        Ended: Phase.ENDED,
        Extended: Phase.GATHERING,
    },
    Phase.ENDED: {Reopened: Phase.FINISHING, Extended: Phase.GATHERING},
}


@dataclass(frozen=True, slots=True)
class Session:
    """A client that has joined and not left."""

    num_examples: int
    join_nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a federation.

    Attributes:
        run: Its id.
        rounds: How many trainings it is to have.
        stopped: The clients had enough before: there will be no more.
        min_clients: Fewer than this in a sum is refused.
        known: The clients that may join.
        head: Of the history so far.
        next_round: The round that is open or comes next; 0 carries initial arrays, the one after the last training
            closes.
        attempt: Attempts made at that round so far.
        sessions: Who is here.
        announcement: Of the open attempt.
        committed: Digests of the open attempt's updates, by name.
        enough: Participants of the open attempt that will not train any more.
        whole: Participants of the open attempt whose updates may only be in a sum of all.
        useless: Who says that the last training's sum made no model.
        useless_rounds: Trainings in a row of which half of their members or more have said that.
        called_off: Attempts at the next round that do not count: they came too early, or were still to train.
        failed_senders: Who has failed to send the initial arrays.
        model, closing: The last records that carry a model, and the closing metrics.
        closing_rounds: Closing rounds that came before further trainings; each has a number of its own.
        confirmations: What those who have the last record confirm, by name.
    """

    run: str
    rounds: int
    min_clients: int
    known: tuple[str, ...]
    head: str
    phase: Phase = Phase.GATHERING
    stopped: bool = False
    next_round: int = 0
    attempt: int = 0
    sessions: Mapping[str, Session] = field(default_factory=dict)
    announcement: Announcement | None = None
    committed: Mapping[str, str] = field(default_factory=dict)
    enough: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    useless: frozenset[str] = frozenset()
    useless_rounds: tuple[int, ...] = ()
    called_off: int = 0
    failed_senders: frozenset[str] = frozenset()
    model: Record | None = None
    closing: Record | None = None
    closing_rounds: frozenset[int] = frozenset()
    confirmations: Mapping[str, str] = field(default_factory=dict)

    @property
    def exchange(self) -> RoundKind:
        """What the next round carries."""
        if self.next_round == 0:
            return "initial"
        return "training" if self.next_round <= self.last_training and not self.stopped else "closing"

    @property
    def last_training(self) -> int:
        """Number of the last training's round, where the clients do not have enough before."""
        return self.rounds + len(self.closing_rounds)

    @property
    def is_over(self) -> bool:
        """There are no more rounds, unless it is extended."""
        return self.phase in (Phase.FINISHING, Phase.ENDED)

    @property
    def shown_round(self) -> int:
        """The round that is open or comes next; of a run that is over, the last one with a model."""
        return self.model_round if self.is_over else self.next_round

    @property
    def model_round(self) -> int:
        """The round that the last model stands for; 0 also where there is none."""
        return self.model.announcement.round if self.model else 0

    @property
    def again(self) -> Mapping[str, int] | None:
        """Who is to answer the next round, with which weights: the members of a useless sum.

        None where nobody who is here says that the last one was.
        """
        if self.model is None or not self.useless & self.sessions.keys():
            return None
        return {member.name: member.weight for member in self.model.members}

    @property
    def holds(self) -> bool:
        """No others may answer: so many say that the sum was useless that they do not all lie.

        Of a sum that made no model all honest members say so. A few alone may lie, to hold a run up.
        """
        return self.again is not None and 2 * len(self.useless) >= len(self.again)

    @property
    def needs_all(self) -> bool:
        """The open attempt may only end in a sum of all who are announced.

        Where few want that, in a round's first attempt only.
        """
        asked = len(self.announcement.names) if self.announcement else 0
        many = 2 * len(self.whole) >= asked or self.attempt <= self.called_off + 1
        return self.holds or (bool(self.whole) and many)

    def misfit(self, announcement: Announcement) -> str | None:
        """What keeps an announcement from being answered after a useless sum, in words; None where nothing does."""
        if self.again is None or announcement.as_attempt().weights == self.again:
            return None
        who, number = ", ".join(sorted(self.useless & self.sessions.keys())), self.model_round
        return f"by {who} the sum of round {number} made no model: only its members train again, with the same weights"

    @property
    def closed(self) -> bool:
        """The closing metrics of the last model are out."""
        out = self.closing is not None and self.closing.announcement.round == self.next_round - 1
        return out and self.exchange == "closing"

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        """Allowed clients that have not confirmed the final model."""
        return tuple(name for name in self.known if self.is_over and name not in self.confirmations)

    @property
    def awaited(self) -> tuple[str, ...]:
        """Participants whose update may still come; before, known clients that are not here; after, who fetches."""
        if self.is_over:
            return tuple(sorted(self.sessions.keys() - self.confirmations.keys()))
        if self.announcement is None:
            return tuple(name for name in self.known if name not in self.sessions)
        done = self.committed.keys() | self.enough | set(self.lost)
        return tuple(name for name in self.announcement.names if name not in done and name in self.sessions)

    @property
    def lost(self) -> tuple[str, ...]:
        """Participants that are here again without their state, and cannot answer the open attempt any more."""
        asked = self.announcement.participants if self.announcement else ()
        missing = (p for p in asked if p.name not in self.committed and p.name not in self.enough)
        return tuple(p.name for p in missing if (s := self.sessions.get(p.name)) and s.join_nonce != p.join_nonce)


def advance(run: Run, event: Event) -> Run:
    """The run after an event.

    Raises:
        StaleError: The event has no place in this phase.
        ConflictError: An update that is committed already, with other bytes, or of no participant; or one that has
            had enough, or the other way round.
    """
    phase = TABLE[run.phase].get(type(event))
    if phase is None:
        raise StaleError(f"{type(event).__name__.lower()} has no place while the run is {run.phase.value}")
    _check(run, event)
    return replace(_apply(run, event), phase=phase)


def _check(run: Run, event: Event) -> None:
    """Refuse an announcement or a record that does not continue this run."""
    match event:
        case Announced(announcement):
            continues = (announcement.run, announcement.round, announcement.attempt, announcement.head)
            if continues != (run.run, run.next_round, run.attempt + 1, run.head):
                raise ConflictError(f"round {announcement.round}, attempt {announcement.attempt} does not come next")
        case Published(record):
            members = {m.name for m in record.members}
            if record.announcement != run.announcement or not members <= run.committed.keys():
                raise ConflictError(f"the record of round {record.announcement.round} is not of the closed attempt")
            _check_whole(run, record)
        case Declined(name):
            if run.announcement is None or name not in run.announcement.names:
                raise ConflictError(f"{name} takes no part in this attempt")
            if run.exchange != "training" or run.next_round == 1 or name in run.committed:
                raise ConflictError(f"{name} cannot have had enough in round {run.next_round} ({run.exchange})")
        case Useless(name, number):
            _check_useless(run, name, number)
        case Extended(rounds):
            if rounds <= run.rounds:
                raise ConflictError(f"a run of {run.rounds} rounds cannot be extended to {rounds}")
        case _:
            pass


def _check_useless(run: Run, name: str, number: int) -> None:
    """Refuse what is said of another sum than the last training's, or by whom it cannot concern."""
    last = run.model
    if last is None or last.announcement.exchange != "training" or last.announcement.round != number:
        raise StaleError(f"round {number} is not the last training")
    if name not in {m.name for m in last.members}:
        raise ConflictError(f"{name} was not in the sum of round {number}")


def _check_whole(run: Run, record: Record) -> None:
    """Refuse a sum of fewer or others than those who are in it would be in: with another it gives updates away."""
    missing = set(record.announcement.names) - {m.name for m in record.members}
    if run.needs_all and missing:
        raise ConflictError(
            f"round {record.announcement.round} may only be summed whole, and there is nothing of "
            f"{', '.join(sorted(missing))}"
        )
    if run.holds and (misfit := run.misfit(record.announcement)):
        raise ConflictError(f"round {record.announcement.round} may not be summed so: {misfit}")


def _apply(run: Run, event: Event) -> Run:
    match event:
        case Joined(name, num_examples, join_nonce):
            # Whoever comes again says again what it thinks of the last sum.
            joined = {**run.sessions, name: Session(num_examples, join_nonce)}
            return replace(run, sessions=joined, useless=run.useless - {name})
        case Left(name):
            return replace(run, sessions={n: s for n, s in run.sessions.items() if n != name})
        case AllowedChanged(names):
            return replace(run, known=names, sessions={n: s for n, s in run.sessions.items() if n in names})
        case Confirmed(name, confirmation):
            return replace(run, confirmations={**run.confirmations, name: confirmation})
        case Extended(rounds):
            sessions = {} if run.is_over else run.sessions  # whoever was here has gone, or is about to
            before = run.closing_rounds | ({run.next_round - 1} if run.closed else set())
            return replace(
                run, rounds=rounds, stopped=False, closing_rounds=before, confirmations={}, sessions=sessions
            )
        case Reopened():
            return replace(run, sessions={})  # whoever was here has gone
        case Closed() | Finished() | Ended():
            return run
        case Committed():
            return _commit(run, event)
        case Declined(name):
            return replace(run, enough=run.enough | {name})
        case Useless():
            return _useless(run, event)
        case Announced() | Abandoned() | Stopped() | Published():
            idle = replace(run, announcement=None, committed={}, enough=frozenset(), whole=frozenset())
            return _open_or_end(idle, event)


def _open_or_end(run: Run, event: Announced | Abandoned | Stopped | Published) -> Run:
    """The run after an attempt was opened, or came to an end; nobody has answered yet."""
    match event:
        case Announced(announcement):
            return replace(run, announcement=announcement, attempt=announcement.attempt)
        case Abandoned(culprits, is_counted):
            called_off = run.called_off if is_counted else run.attempt
            return replace(run, failed_senders=run.failed_senders | culprits, called_off=called_off)
        case Stopped():
            return replace(run, stopped=True, called_off=run.attempt)
        case Published(record):
            closing = record.announcement.exchange == "closing"
            return replace(
                run,
                useless=run.useless if closing else frozenset(),
                useless_rounds=run.useless_rounds if closing or run.again is not None else (),
                model=run.model if closing else record,
                closing=record if closing else run.closing,
                # Extended while it closed.
                closing_rounds=run.closing_rounds
                | ({run.next_round} if closing and run.exchange == "training" else set()),
                head=record.head,
                next_round=run.next_round + 1,
                attempt=0,
                called_off=0,
                failed_senders=frozenset(),
            )


def _useless(run: Run, event: Useless) -> Run:
    useless = run.useless | {event.name}
    in_a_row = tuple(number for number in run.useless_rounds if number != event.round)
    # Of a sum that made no model all honest members say so. One alone may lie, to end the run.
    if run.model and 2 * len(useless) >= len(run.model.members):
        in_a_row = (*in_a_row, event.round)
    return replace(run, useless=useless, useless_rounds=in_a_row)


def _commit(run: Run, event: Committed) -> Run:
    if run.announcement is None or event.name not in run.announcement.names:
        raise ConflictError(f"{event.name} takes no part in this attempt")
    if event.name in run.enough:
        raise ConflictError(f"{event.name} has said that it will not train any more")
    if run.committed.get(event.name, event.digest) != event.digest:
        raise ConflictError(f"another update of {event.name} is committed in this attempt already")
    sessions = dict(run.sessions)
    if event.name in sessions:
        sessions[event.name] = replace(sessions[event.name], num_examples=event.num_examples)
    whole = run.whole | {event.name} if event.whole else run.whole
    return replace(run, committed={**run.committed, event.name: event.digest}, sessions=sessions, whole=whole)
