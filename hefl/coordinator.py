"""The server's live run: the round table with its clock, its sum, its journal and its files. No HTTP.

State changes happen under one lock, in this order: look at the table, do the work, note the event durably; and only
then does anyone hear of it. What waits for a disk runs in a thread, so that uploads go on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hefl import decisions, rounds
from hefl.ckks.context import PublicContext
from hefl.engine import Engine, check_terms
from hefl.errors import (
    ConflictError,
    DiskFullError,
    HeflError,
    LayoutError,
    MalformedError,
    NameInUseError,
    NumExamplesError,
    StaleError,
    StateError,
)
from hefl.history import Announcement, Record
from hefl.journal import Journal
from hefl.params import KEEP_AGGREGATES, MAX_VALUES, POLL_S, RECORDS_AT_ONCE, SILENT_S
from hefl.protocol import Join, OtherLayoutError, View
from hefl.rounds import Phase, Run, Session
from hefl.spool import Spool, Upload
from hefl.tally import Tally

log = logging.getLogger("hefl")

REMIND_S = 15.0
"""How often a server that waits says for whom."""

FULL_S = 1.0
"""How long a server waits where its disk is full, before it tries again."""

Emit = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What an operator decides of a run; times in seconds.

    Attributes:
        keep: How many of the last aggregates stay.
        max_values: No model has more.
    """

    rounds: int = 20
    min_clients: int = 2
    join_wait_s: float = 2.0
    round_timeout_s: float = 60.0
    keep: int = KEEP_AGGREGATES
    max_values: int = MAX_VALUES


class Coordinator:
    """Takes one run from its first join to its end.

    Args:
        public: The server's context.
        engine: Which clients must run too.
        settings: The operator's.
        journal, spool: The run's, in a folder that is locked.
        emit: Is told every event, as a flat mapping.
    """

    tally_type: ClassVar[type[Tally]] = Tally

    def __init__(
        self,
        public: PublicContext,
        engine: Engine,
        settings: RunSettings,
        journal: Journal,
        spool: Spool,
        emit: Emit,
    ) -> None:
        self.engine = engine
        self.spool = spool
        self._settings = settings
        self._journal = journal
        self._emit = emit
        self._lock = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._stopping = False
        self._news = journal.now.seq  # of the last event that changed what all clients are shown
        self._phase_since = self._enough_since = self._reminded = time.monotonic()
        # Who was here before a restart is taken to be here still, and waited for, until it is silent for too long.
        self._seen = dict.fromkeys(self.run.sessions, time.monotonic())
        self._unheard = set(self.run.sessions)
        self._tally = self.tally_type(public, engine, journal, spool, settings.keep)
        self._remarked: str | None = None
        self._full = False

    @property
    def run(self) -> Run:
        """The run as of the last durable event."""
        return self._journal.now.run

    @property
    def ended(self) -> bool:
        """The run is over."""
        return self.run.phase is Phase.ENDED

    async def stop(self) -> None:
        """Answer everyone who waits for news."""
        self._stopping = True
        async with self._changed:
            self._changed.notify_all()

    async def resume(self) -> None:
        """Go on where the journal ends: with the files that it names, and no others.

        Raises:
            StateError: A file that it names is missing or damaged.
        """
        run, announcement = self.run, self.run.announcement
        await asyncio.to_thread(self._tally.check_files)
        if self._journal.resumed:
            log.info("resumed run %s %s", run.run[:8], describe(run))
        async with self._lock:
            if announcement:
                # Judged by the wall clock; one that went backwards gives no more than the whole time again.
                elapsed_s = max(0.0, time.time() - self._journal.now.announced_at)
                self._phase_since = time.monotonic() - elapsed_s
                late = run.phase is Phase.COLLECTING and elapsed_s >= announcement.deadline_s
                if late and set(announcement.names) - run.committed.keys() - run.enough:
                    await self._abandon("its deadline passed while the server was away", frozenset())
                else:
                    await asyncio.to_thread(self._tally.fold)
            if self._settings.rounds > run.rounds:
                log.info("the run goes on from %d to %d rounds", run.rounds, self._settings.rounds)
                await self._apply(rounds.Extended(self._settings.rounds))

    # --- what time brings ---------------------------------------------------------------------------------------------

    async def tick(self, patience_s: float) -> None:
        """Do what is due; where that is nothing, wait for news, and for so long at most."""
        version = self._journal.now.seq
        try:
            await self._act()
            self._full = False
        except DiskFullError as error:
            if not self._full:
                log.error("%s; trying again every %.0f s until there is room", error, FULL_S)
            self._full, patience_s = True, FULL_S
        if time.monotonic() - self._reminded > REMIND_S:
            self.remind()
        if self._journal.now.seq == version:
            await self._wait(lambda: self._journal.now.seq > version, patience_s)

    async def _wait(self, condition: Callable[[], bool], patience_s: float) -> None:
        """Until it holds, or this server stops."""
        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._changed.wait_for(lambda: condition() or self._stopping)

    async def _act(self) -> None:
        async with self._lock:
            if self.run.phase is Phase.SUMMING:
                await self._publish()
                return
            clock = self._clock()
            if self.run.phase is Phase.GATHERING and (self._unheard & self.run.sessions.keys()) - clock.silent:
                return
            match decisions.decide(self.run, clock):
                case decisions.Announce() as decision:
                    await self._announce(decision)
                case decisions.Close():
                    await self._apply(rounds.Closed())
                case decisions.Abandon(reason, culprits):
                    await self._abandon(reason, culprits)
                case decisions.Stop():
                    await self._stop_training()
                case decisions.Finish():
                    await self._apply(rounds.Finished())
                case decisions.End():
                    await self._apply(rounds.Ended())
                    last = self.run.model.announcement.round if self.run.model else 0
                    log.info("the run has ended after round %(round)d", {"round": last})
                    self._emit({"event": "ended", "rounds": last})

    def remind(self) -> None:
        """Say whom the run waits for."""
        self._reminded = time.monotonic()
        if self.run.phase not in (Phase.GATHERING, Phase.COLLECTING) or not self.run.awaited:
            return
        names = ", ".join(self.run.awaited)
        if self.run.announcement:
            left = self.run.announcement.deadline_s - self._clock().phase_s
            log.info(
                "round %(round)d: waiting for %(awaited)s, for %(deadline_s).0f s more",
                {"round": self.run.next_round, "awaited": names, "deadline_s": max(left, 0)},
            )
        else:
            here = len(self.run.sessions)
            log.info("waiting for %s to join (%d here, at least %d needed)", names, here, self._settings.min_clients)

    def look(self) -> tuple[rounds.Run, decisions.Clock]:
        """The run as it stands, and its clock."""
        return self.run, self._clock()

    def _clock(self) -> decisions.Clock:
        now = time.monotonic()
        return decisions.Clock(
            silent=frozenset(n for n in self.run.sessions if now - self._seen.get(n, now) > SILENT_S),
            phase_s=now - self._phase_since,
            enough_s=now - self._enough_since,
            join_wait_s=self._settings.join_wait_s,
            round_timeout_s=self._settings.round_timeout_s,
        )

    async def _apply(self, event: rounds.Event) -> None:
        before = self.run
        await asyncio.to_thread(self._journal.append, event)
        await self._tell(before)

    async def _tell(self, before: Run) -> None:
        """An event is durable: now it counts for the clock, and whoever waits for news may have them."""
        if self.run.phase is not before.phase:
            self._phase_since = time.monotonic()
        if _shown(self.run) != _shown(before):
            self._news = self._journal.now.seq
        if len(self.run.sessions) < self._settings.min_clients:
            self._enough_since = time.monotonic()
        async with self._changed:
            self._changed.notify_all()

    async def _announce(self, decision: decisions.Announce) -> None:
        if self._journal.reference is None:
            raise StateError("an attempt without a layout")
        announcement = decisions.announcement_of(
            self.run,
            decision,
            values=self._journal.reference.values[decision.exchange],
            terms=self.engine.terms,
            deadline_s=self._settings.round_timeout_s,
        )
        await self._apply(rounds.Announced(announcement))
        what = {"initial": "initial parameters", "training": "training", "closing": "closing metrics"}
        remark = self.engine.remark(announcement.as_attempt())
        if remark and remark != self._remarked:
            log.warning("%s", remark)
            self._remarked = remark
        names, number, attempt = announcement.names, announcement.round, announcement.attempt
        log.info(
            "round %(round)d, attempt %(attempt)d: %(what)s of %(participants)s",
            {
                "round": number,
                "attempt": attempt,
                "what": what[announcement.exchange],
                "participants": ", ".join(names),
            },
        )
        self._emit(
            {
                "event": "announced",
                "round": number,
                "attempt": attempt,
                "exchange": announcement.exchange,
                "participants": list(names),
            }
        )

    async def _abandon(self, reason: str, culprits: frozenset[str]) -> None:
        number = self.run.next_round
        await self._apply(rounds.Abandoned(culprits))
        log.warning("round %(round)d: %(reason)s; trying again", {"round": number, "reason": reason})
        self._emit({"event": "abandoned", "round": number, "reason": reason})
        await asyncio.to_thread(self._tally.end_attempt)

    async def _stop_training(self) -> None:
        await self._apply(rounds.Stopped())
        last, planned = self.run.next_round - 1, self.run.last_training
        log.info("stopped after round %d of %d: the clients had enough", last, planned)
        self._emit({"event": "stopped", "round": last, "rounds": planned})
        await asyncio.to_thread(self._tally.end_attempt)

    async def _publish(self) -> None:
        """Write the closed attempt's aggregate."""
        announcement = self.run.announcement
        if announcement is None:
            raise StateError("an attempt was closed, and none is open")
        bytes_up = self._tally.bytes_up()
        try:
            record = await asyncio.to_thread(self._tally.write_aggregate)
        except DiskFullError:
            raise  # the attempt is closed, and its sum waits for room
        except HeflError as error:
            await self._abandon(str(error), frozenset())
            return
        await self._apply(rounds.Published(record))
        await asyncio.to_thread(self._tally.end_attempt)
        names, seconds = [m.name for m in record.members], self._tally.timings.take()
        log.info(
            "round %(round)d: %(in)d of %(of)d in, %(kilobytes_up).1f kB up, aggregated in %(aggregate_s).3f s",
            {
                "round": announcement.round,
                "in": len(names),
                "of": len(announcement.names),
                "kilobytes_up": bytes_up / 1e3,
                "aggregate_s": seconds["aggregate"],
            },
        )
        self._emit(
            {
                "event": "round",
                "round": announcement.round,
                "in": names,
                "missed": [n for n in announcement.names if n not in names],
                "bytes_up": bytes_up,
                "seconds": seconds,
            }
        )

    # --- what clients bring -------------------------------------------------------------------------------------------

    async def join(self, name: str, join: Join) -> None:
        """A client comes, or comes again.

        Raises:
            EngineError, NumExamplesError, LayoutError, NameInUseError, OtherLayoutError: It does not fit in.
        """
        async with self._lock:
            self._check_join(name, join)
            reference = self._journal.reference
            if reference and (join.layout, join.values) == (reference.layout, reference.values):
                pass
            elif reference is None or (self.run.next_round == 0 and not self.run.sessions):
                await asyncio.to_thread(self._journal.refer, join)
            else:
                raise OtherLayoutError(
                    f"{name}'s model has another layout than the other clients'", reference.sealed_layout
                )
            if self.run.sessions.get(name) != Session(join.num_examples, join.join_nonce):
                await self._apply(rounds.Joined(name, join.num_examples, join.join_nonce))
            self._hear(name)
        log.info(
            "%(client)s joined with %(num_examples)d examples", {"client": name, "num_examples": join.num_examples}
        )
        self._emit({"event": "joined", "client": name, "num_examples": join.num_examples})
        self.remind()

    def _check_join(self, name: str, join: Join) -> None:
        check_terms(self.engine, join.terms, f"client {name}")
        if join.num_examples > self.engine.max_num_examples:
            raise NumExamplesError(
                f"client {name} has {join.num_examples} examples, "
                f"and engine {self.engine.name!r} scales by at most {self.engine.max_num_examples}",
                hint="state fewer with --num-examples, in the same proportion at every client",
            )
        # Initial arrays are 16-bit words, up to four to a value.
        values, most = max(join.values["training"], -(-max(join.values.values()) // 4)), self._settings.max_values
        if values > most:
            raise LayoutError(
                f"client {name}'s model has {values} values, and this server takes at most {most}",
                hint="is it the right model? If so, the server needs a higher --max-values",
            )
        session = self.run.sessions.get(name)
        silent_s = time.monotonic() - self._seen.get(name, 0.0)
        if session and session.join_nonce != join.join_nonce and silent_s < SILENT_S:
            raise NameInUseError(
                f"another client is here as {name}",
                hint=f"stop it first; one that crashed is let go after {SILENT_S:.0f} s of silence",
            )

    def heard_of(self, name: str, join_nonce: str) -> None:
        """Note that a client lives.

        Raises:
            StaleError: It has not joined.
            NameInUseError: Another process has joined under its name since.
        """
        session = self.run.sessions.get(name)
        if session is None:
            raise StaleError(f"{name} has not joined this run")
        if session.join_nonce != join_nonce:
            raise NameInUseError(
                f"another process has joined as {name} since", hint="run one client with each client's folder"
            )
        self._hear(name)

    def _hear(self, name: str) -> None:
        self._seen[name] = time.monotonic()
        self._unheard.discard(name)

    async def view(self, name: str, after: int) -> View:
        """The run as one client needs to see it, once there are news since version ``after``, or after POLL_S.

        What another client does is none: there are as many such events in a round as clients, and each client would
        hear of each.
        """
        await self._wait(lambda: self._news > after or after == 0 < self._journal.now.seq, POLL_S)
        now = self._journal.now
        run = now.run
        return View(
            version=now.seq,
            phase=run.phase.value,
            announcement=run.announcement if run.phase is Phase.COLLECTING else None,
            committed=name in run.committed,
            model=run.model,
            closing=run.closing,
            confirmations=dict(run.confirmations),
            settled=_settled(run),
        )

    def open_attempt(self, name: str, join_nonce: str, round_num: int, attempt: int) -> Announcement:
        """The open attempt, if it is the one that a participant means.

        Raises:
            StaleError: Another attempt is open, or none.
            ConflictError: The client takes no part in it.
        """
        announcement = self.run.announcement
        if announcement is None or self.run.phase is not Phase.COLLECTING:
            raise StaleError(f"round {round_num}, attempt {attempt} is not open")
        if (round_num, attempt) != (announcement.round, announcement.attempt):
            raise StaleError(
                f"an update for round {round_num}, attempt {attempt}, "
                f"and round {announcement.round}, attempt {announcement.attempt} is open"
            )
        if not any(p.name == name and p.join_nonce == join_nonce for p in announcement.participants):
            raise ConflictError(f"{name} takes no part in this attempt")
        return announcement

    def was_taken(self, name: str, round_num: int, attempt: int) -> bool:
        """Whether a client's update is in the sum of an attempt that was published last.

        Its answer may have been lost, and the attempt is over when the client asks.
        """
        records = [record for record in (self.run.model, self.run.closing) if record]
        return any(
            (record.announcement.round, record.announcement.attempt) == (round_num, attempt)
            and any(member.name == name for member in record.members)
            for record in records
        )

    def is_committed(self, name: str, digest: str) -> bool:
        """Whether this update of a client's is in the open attempt's sum.

        Raises:
            ConflictError: Another one of this client is.
        """
        committed = self.run.committed.get(name)
        if committed not in (None, digest):
            raise ConflictError(f"another update of {name} is committed in this attempt already")
        return committed is not None

    async def commit(self, name: str, announcement: Announcement, upload: Upload, next_num_examples: int) -> None:
        """Add a whole and durable upload to the sum, once.

        Raises:
            MalformedError, MismatchError, EngineError: It is not an update of this attempt; nothing has changed.
            StaleError: The attempt was closed meanwhile.
            ConflictError: Another update of this client is in the sum already.
            DiskFullError: It cannot be stored; the upload stays.
        """
        async with self._lock:
            self._check_open(announcement)
            summation = await asyncio.to_thread(self._tally.fold)
        frame = await asyncio.to_thread(summation.open, upload.path, name)
        if frame.digest.hex() != upload.digest:
            raise MalformedError(f"the update's digest is {frame.digest.hex()}, and {upload.digest} was announced")
        async with self._lock:
            self._check_open(announcement)
            event, before = rounds.Committed(name, upload.digest, next_num_examples), self.run
            if self.is_committed(name, upload.digest):
                return
            await asyncio.to_thread(self._tally.take, frame, event)
            log.info("round %(round)d: update of %(client)s is in", {"round": announcement.round, "client": name})
            self._emit({"event": "update", "round": announcement.round, "client": name, "bytes": upload.held_bytes})
            await self._tell(before)

    def _check_open(self, announcement: Announcement) -> None:
        if self.run.phase is not Phase.COLLECTING or self.run.announcement != announcement:
            raise StaleError(f"round {announcement.round}, attempt {announcement.attempt} is not open")

    async def enough(self, name: str, announcement: Announcement) -> None:
        """A participant will not train any more.

        Raises:
            StaleError: The attempt was closed meanwhile.
            ConflictError: Its update is in the sum, or the attempt trains nothing.
        """
        async with self._lock:
            self._check_open(announcement)
            if name not in self.run.enough:
                await self._apply(rounds.Enough(name))
                log.info("round %d: %s has had enough", announcement.round, name)

    async def fetched(self, name: str, confirmation: str) -> None:
        """A client has the last record, and confirms it to the others."""
        async with self._lock:
            if self.run.confirmations.get(name) != confirmation:
                await self._apply(rounds.Fetched(name, confirmation))

    async def leave(self, name: str) -> None:
        """A client goes."""
        async with self._lock:
            if name in self.run.sessions and not self.ended:
                await self._apply(rounds.Left(name))
                log.info("%(client)s left", {"client": name})
                self._emit({"event": "left", "client": name})

    async def know(self, names: tuple[str, ...]) -> None:
        """Let these clients in from now on; whoever else is here has left."""
        async with self._lock:
            gone = sorted(self.run.sessions.keys() - set(names))  # also those of before a restart
            if self.ended or (names == self.run.known and not gone):
                return
            try:
                await self._apply(rounds.Known(names))
            except DiskFullError:
                return  # the list is read again
        for name in gone:
            log.info("%s left: it is not on the server's list any more", name)
            self._emit({"event": "left", "client": name})
        self.remind()

    def aggregate(self, round_num: int) -> Path:
        """Where a round's aggregate is. Raises StaleError where it is not kept."""
        path = self._tally.aggregate(round_num)
        if path is None:
            raise StaleError(f"the aggregate of round {round_num} is not kept")
        return path

    def records(self, after: int) -> list[Record]:
        """Records of the rounds after this one, in order, as many as one answer may have."""
        return self._journal.records(after, RECORDS_AT_ONCE)


def _settled(run: Run, silent: frozenset[str] = frozenset()) -> bool:
    """Whether no confirmation is to come any more, since all who are not silent have told theirs."""
    return run.phase in (Phase.DRAINING, Phase.ENDED) and not set(run.awaited) - silent


def _shown(run: Run) -> tuple[object, ...]:
    """What of a run its clients wait for; of confirmations, that those of all members are there."""
    newest = run.closing or run.model
    confirmed = newest is not None and {m.name for m in newest.members} <= run.confirmations.keys()
    return run.phase, run.announcement, run.model, run.closing, confirmed, _settled(run)


def describe(run: Run) -> str:
    """Where a run is, in words."""
    if run.announcement is None:
        return f"before round {run.next_round} ({run.phase.value})"
    committed, asked = len(run.committed), len(run.announcement.names)
    attempt = f"in round {run.next_round}, attempt {run.attempt}"
    return f"{attempt}: {committed} of {asked} updates are in"
