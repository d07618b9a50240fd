"""The server's live run: the round table with its clock, its sum and its folder. No HTTP.

State changes happen under one lock, in this order: look at the table, do the work, note the event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hefl import rounds
from hefl.ckks.context import PublicContext
from hefl.engine import Engine, check_terms
from hefl.errors import ConflictError, HeflError, NameInUseError, NumExamplesError, StaleError, StateError
from hefl.history import Announcement, genesis
from hefl.params import POLL_S, SILENT_S
from hefl.protocol import Join, OtherLayoutError, View
from hefl.rounds import Phase
from hefl.serverstate import ServerState
from hefl.timings import Timings
from hefl.updates import Summation

log = logging.getLogger("hefl")

REMIND_S = 15.0
"""How often a server that waits says for whom."""

Emit = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What an operator decides of a run; times in seconds."""

    rounds: int = 20
    min_clients: int = 2
    join_wait_s: float = 2.0
    round_timeout_s: float = 60.0


class Coordinator:
    """Takes one run from its first join to its end.

    Args:
        public: The server's context.
        known: Names that may join.
        engine: Which clients must run too.
        settings: The operator's.
        state: The run's folder, locked.
        emit: Is told every event, as a flat mapping.
    """

    def __init__(
        self,
        public: PublicContext,
        known: tuple[str, ...],
        engine: Engine,
        settings: RunSettings,
        state: ServerState,
        emit: Emit,
    ) -> None:
        self.engine = engine
        self.run = rounds.Run(
            run=state.run,
            rounds=settings.rounds,
            min_clients=settings.min_clients,
            known=known,
            head=genesis(public.identity, state.run),
        )
        self._public = public
        self._settings = settings
        self._state = state
        self._emit = emit
        self._lock = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._stopping = False
        self._version = 0
        self._seen: dict[str, float] = {}
        self._phase_since = self._enough_since = self._reminded = time.monotonic()
        self._reference: Join | None = None
        self._summation: Summation | None = None
        self._timings = Timings()
        self._bytes_up = 0
        self._remarked: str | None = None

    @property
    def ended(self) -> bool:
        """The run is over."""
        return self.run.phase is Phase.ENDED

    async def stop(self) -> None:
        """Answer everyone who waits for news."""
        self._stopping = True
        async with self._changed:
            self._changed.notify_all()

    # --- what time brings ---------------------------------------------------------------------------------------------

    async def tick(self, patience_s: float) -> None:
        """Do what is due; where that is nothing, wait for news, and for so long at most."""
        version = self._version
        await self._act()
        if time.monotonic() - self._reminded > REMIND_S:
            self.remind()
        if self._version == version:
            await self._wait_for_news(version, patience_s)

    async def _wait_for_news(self, after: int, patience_s: float) -> None:
        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._changed.wait_for(lambda: self._version > after or self._stopping)

    async def _act(self) -> None:
        async with self._lock:
            match rounds.decide(self.run, self._clock()):
                case rounds.Announce() as decision:
                    await self._announce(decision)
                case rounds.Close():
                    await self._publish()
                case rounds.Abandon(reason, culprits):
                    await self._abandon(reason, culprits)
                case rounds.Finish():
                    await self._apply(rounds.Finished())
                case rounds.End():
                    self._state.end()
                    await self._apply(rounds.Ended())
                    log.info("the run has ended after %(rounds)d rounds", {"rounds": self.run.rounds})
                    self._emit({"event": "ended", "rounds": self.run.rounds})

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

    def look(self) -> tuple[rounds.Run, rounds.Clock]:
        """The run as it stands, and its clock."""
        return self.run, self._clock()

    def _clock(self) -> rounds.Clock:
        now = time.monotonic()
        return rounds.Clock(
            silent=frozenset(n for n in self.run.sessions if now - self._seen.get(n, now) > SILENT_S),
            phase_s=now - self._phase_since,
            enough_s=now - self._enough_since,
            join_wait_s=self._settings.join_wait_s,
            round_timeout_s=self._settings.round_timeout_s,
        )

    async def _apply(self, event: rounds.Event) -> None:
        before = self.run.phase
        self.run = rounds.advance(self.run, event)
        if self.run.phase is not before:
            self._phase_since = time.monotonic()
        if len(self.run.sessions) < self._settings.min_clients:
            self._enough_since = time.monotonic()
        self._version += 1
        async with self._changed:
            self._changed.notify_all()

    async def _announce(self, decision: rounds.Announce) -> None:
        if self._reference is None:
            raise StateError("an attempt without a layout")
        announcement = rounds.announcement_of(
            self.run,
            decision,
            values=self._reference.values[decision.exchange],
            terms=self.engine.terms,
            deadline_s=self._settings.round_timeout_s,
        )
        if announcement.round == 0:
            self._state.begin()
        self._summation = await asyncio.to_thread(Summation, self._public, self.engine, announcement)
        self._bytes_up = 0
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
        log.warning("round %(round)d: %(reason)s; trying again", {"round": self.run.next_round, "reason": reason})
        self._summation = None
        self._emit({"event": "abandoned", "round": self.run.next_round, "reason": reason})
        await self._apply(rounds.Abandoned(culprits))

    async def _publish(self) -> None:
        """Close the attempt and write its aggregate."""
        await self._apply(rounds.Closed())
        summation, announcement = self._summation, self.run.announcement
        if summation is None or announcement is None:
            raise StateError("an attempt was closed without a sum")
        number = announcement.round
        self._summation = None
        try:
            with self._timings.phase("aggregate"):
                record = await asyncio.to_thread(self._state.write_aggregate, number, summation)
        except HeflError as error:
            await self._abandon(str(error), frozenset())
            return
        await self._apply(rounds.Published(record))
        self._state.drop_aggregates_before(number - 1)
        names, seconds = [m.name for m in record.members], self._timings.take()
        log.info(
            "round %(round)d: %(in)d of %(of)d in, %(kilobytes_up).1f kB up, aggregated in %(aggregate_s).3f s",
            {
                "round": number,
                "in": len(names),
                "of": len(announcement.names),
                "kilobytes_up": self._bytes_up / 1e3,
                "aggregate_s": seconds["aggregate"],
            },
        )
        self._emit(
            {
                "event": "round",
                "round": number,
                "in": names,
                "missed": [n for n in announcement.names if n not in names],
                "bytes_up": self._bytes_up,
                "seconds": seconds,
            }
        )

    # --- what clients bring -------------------------------------------------------------------------------------------

    async def join(self, name: str, join: Join) -> None:
        """A client comes, or comes again.

        Raises:
            EngineError, NumExamplesError, NameInUseError, OtherLayoutError: It does not fit in.
        """
        async with self._lock:
            self._check_join(name, join)
            if self._reference is None or (self.run.next_round == 0 and not self.run.sessions):
                self._reference = join
            if join.layout != self._reference.layout or join.values != self._reference.values:
                raise OtherLayoutError(
                    f"{name}'s model has another layout than the other clients'", self._reference.sealed_layout
                )
            await self._apply(rounds.Joined(name, join.num_examples, join.join_nonce))
            self._seen[name] = time.monotonic()
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
                f"and engine {self.engine.name!r} scales by at most {self.engine.max_num_examples}"
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
            raise NameInUseError(f"another process has joined as {name} since")
        self._seen[name] = time.monotonic()

    async def view(self, name: str, after: int) -> View:
        """The run as one client needs to see it, once it is newer than version ``after``, or after POLL_S."""
        await self._wait_for_news(after, POLL_S)
        run = self.run
        return View(
            version=self._version,
            phase=run.phase.value,
            announcement=run.announcement if run.phase is Phase.COLLECTING else None,
            committed=name in run.committed,
            model=run.model,
            closing=run.closing,
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

    async def commit(
        self, name: str, announcement: Announcement, path: Path, size_bytes: int, next_num_examples: int
    ) -> None:
        """Add a stored update to the sum, once, however often it comes.

        Raises:
            MalformedError, MismatchError, EngineError: It is not an update of this attempt; nothing has changed.
            StaleError: The attempt was closed meanwhile.
            ConflictError: Another update of this client is in the sum already.
        """
        closed = StaleError(f"round {announcement.round}, attempt {announcement.attempt} is not open")
        if self._summation is None or self.run.announcement is not announcement:
            raise closed
        frame = await asyncio.to_thread(self._summation.open, path, name)
        async with self._lock:
            if self._summation is None or self.run.announcement is not announcement:
                raise closed
            event = rounds.Committed(name, frame.digest.hex(), next_num_examples)
            rounds.advance(self.run, event)  # refuses what contradicts before it is added
            if name not in self.run.committed:
                with self._timings.phase("aggregate"):
                    await asyncio.to_thread(self._summation.add, frame, name)
                self._bytes_up += size_bytes
                log.info("round %(round)d: update of %(client)s is in", {"round": announcement.round, "client": name})
                self._emit({"event": "update", "round": announcement.round, "client": name, "bytes": size_bytes})
            await self._apply(event)

    async def fetched(self, name: str) -> None:
        """A client has the last record."""
        async with self._lock:
            await self._apply(rounds.Fetched(name))

    async def leave(self, name: str) -> None:
        """A client goes."""
        async with self._lock:
            if not self.ended:
                await self._apply(rounds.Left(name))
                log.info("%(client)s left", {"client": name})
                self._emit({"event": "left", "client": name})

    def aggregate(self, round_num: int) -> Path:
        """Where a round's aggregate is. Raises StaleError where it is not kept."""
        if any(r and r.announcement.round == round_num for r in (self.run.model, self.run.closing)):
            return self._state.aggregate(round_num)
        raise StaleError(f"the aggregate of round {round_num} is not kept")

    def new_upload(self, name: str) -> Path:
        """A path for an upload of a client's; whoever takes it removes it."""
        return self._state.new_upload(name)
