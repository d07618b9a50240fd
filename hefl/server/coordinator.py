"""Drive a run with a clock, a journal and files. No HTTP.

State changes happen under one lock, in this order: look at the table, do the work, note the event durably; and only
then does anyone hear of it. What waits for a disk runs in a thread, so that uploads go on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from hefl.ckks.context import PublicContext
from hefl.engines.engine import Engine
from hefl.errors import DiskFullError, MalformedError, ProtocolError, StaleError, StateError
from hefl.params import MAX_USELESS_SUMS, POLL_S, RECORDS_AT_ONCE, SILENT_S
from hefl.protocol.messages import Join, OtherLayoutError, ReferenceLayout, View
from hefl.protocol.records import Announcement, Record
from hefl.rounds import events, schedule, views
from hefl.rounds.run import Phase, Run, Session
from hefl.rounds.schedule import RunSettings
from hefl.server.events import Emit, News
from hefl.server.journal import Journal
from hefl.server.presence import Presence
from hefl.server.spool import Spool, Upload
from hefl.server.store import DurableStore

log = logging.getLogger("hefl")

REMIND_S = 15.0
"""How often a server that waits says for whom."""

FULL_S = 1.0
"""How long a server waits where its disk is full, before it tries again."""


class Coordinator:
    """Takes one run from its first join to its end.

    Args:
        public: The server's context.
        engine: Which clients must run too.
        settings: The operator's.
        journal, spool: The run's, in a folder that is locked.
        emit: Is told every event, as a flat mapping.
    """

    store_type: ClassVar[type[DurableStore]] = DurableStore

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
        self.settings = settings
        self._journal = journal
        self._news = News(emit, engine)
        self._lock = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._stopping = False
        self._version = journal.now.seq  # of the last event that changed what all clients are shown
        self._phase_since = self._enough_since = self._reminded = time.monotonic()
        self._presence = Presence(self.run.sessions)
        self._spent_since: float | None = None  # when sum after sum had made no model
        self._store = self.store_type(public, engine, journal, spool, settings.keep)
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

    async def resume(self, known: tuple[str, ...]) -> None:
        """Go on where the journal ends: with the files that it names, and no others.

        Args:
            known: Who may join now.

        Raises:
            StateError: A file that it names is missing or damaged.
        """
        run, announcement = self.run, self.run.announcement
        await asyncio.to_thread(self._store.check_files)
        if (kept := self._journal.settings) != self.settings.kept:
            await asyncio.to_thread(self._journal.settle, self.settings.kept)
            self._news.settled(kept, self.settings.kept)
        if self._journal.resumed:
            log.info("resumed run %s %s", run.run[:8], views.describe(run))
        async with self._lock:
            if announcement:
                # Judged by the wall clock; one that went backwards gives no more than the whole time again.
                elapsed_s = max(0.0, time.time() - self._journal.now.announced_at)
                self._phase_since = time.monotonic() - elapsed_s
                late = run.phase is Phase.COLLECTING and elapsed_s >= announcement.deadline_s
                if late and announcement.exchange == "closing":  # it has no other attempt, and its whole time again
                    late, self._phase_since = False, time.monotonic()
                if late and set(announcement.names) - run.committed.keys() - run.enough:
                    await self._abandon("its deadline passed while the server was away", frozenset())
                else:
                    await asyncio.to_thread(self._store.fold)
            if event := schedule.at_start(replace(self.run, known=known), self.settings):
                before = self.run
                await self._apply(event)
                if isinstance(event, events.Extended):
                    self._news.extended(before, self.run)

    # --- what time brings ---------------------------------------------------------------------------------------------

    async def tick(self, patience_s: float) -> None:
        """Do what is due; where that is nothing, wait for news, and for so long at most.

        Raises:
            UselessSumsError: Sum after sum made no model, and everyone has heard of the last one.
        """
        version = self._journal.now.seq
        self._check_useful()
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
            for name in sorted(clock.silent & self.run.useless):  # it is taken for dead, and holds nobody up
                await self._leave(name, "it has not been heard of since it said that a sum was useless")
            if self.run.phase is Phase.GATHERING and self._presence.is_waited_for(self.run.sessions):
                return
            match schedule.decide(self.run, clock):
                case schedule.Announce() as decision:
                    await self._announce(decision)
                case schedule.Close():
                    await self._apply(events.Closed())
                case schedule.Abandon(reason, culprits):
                    await self._abandon(reason, culprits)
                case schedule.Stop():
                    await self._stop_training()
                case schedule.Finish():
                    await self._apply(events.Finished())
                case schedule.End():
                    await self._apply(events.Ended())
                    self._news.ended(self.run)

    def _check_useful(self) -> None:
        """End where clients end too, once those who are here have said what they think of the last sum."""
        if self._spent_since is None or self.run.model is None:
            return
        here = self.run.sessions.keys() & {member.name for member in self.run.model.members}
        all_said = here <= self.run.useless or not here & self.run.useless  # who has said so goes
        if all_said or time.monotonic() - self._spent_since > SILENT_S:
            raise views.useless_sums(self.run)

    def remind(self) -> None:
        """Say whom the run waits for."""
        self._reminded = time.monotonic()
        self._news.awaited(self.run, self._clock(), self.settings.min_clients)

    def look(self) -> tuple[Run, schedule.Clock]:
        """The run as it stands, and its clock."""
        return self.run, self._clock()

    def _clock(self) -> schedule.Clock:
        now = time.monotonic()
        return schedule.Clock(
            silent=self._presence.silent(self.run.sessions),
            phase_s=now - self._phase_since,
            enough_s=now - self._enough_since,
            join_wait_s=self.settings.join_wait_s,
            round_timeout_s=self.settings.round_timeout_s,
            linger_s=self.settings.linger_s,
        )

    async def _apply(self, event: events.Event) -> None:
        before = self.run
        await asyncio.to_thread(self._journal.append, event)
        await self._tell(before)

    async def _tell(self, before: Run) -> None:
        """An event is durable: now it counts for the clock, and whoever waits for news may have them."""
        if self.run.phase is not before.phase:
            self._phase_since = time.monotonic()
        if views.shown(self.run) != views.shown(before):
            self._version = self._journal.now.seq
        if len(before.sessions) < self.settings.min_clients:  # now there may be enough, since this event
            self._enough_since = time.monotonic()
        async with self._changed:
            self._changed.notify_all()

    async def _announce(self, decision: schedule.Announce) -> None:
        if self._journal.reference is None:
            raise StateError("an attempt without a layout")
        announcement = schedule.announcement_of(
            self.run,
            decision,
            values=self._journal.reference.values[decision.exchange],
            terms=self.engine.terms,
            deadline_s=self.settings.round_timeout_s,
        )
        await self._apply(events.Announced(announcement))
        self._news.announced(announcement)

    async def _abandon(self, reason: str, culprits: frozenset[str], *, is_counted: bool = True) -> None:
        await self._apply(events.Abandoned(culprits, is_counted))
        self._news.abandoned(self.run, reason)
        await asyncio.to_thread(self._store.end_attempt)

    async def _stop_training(self) -> None:
        await self._apply(events.Stopped())
        self._news.stopped(self.run)
        await asyncio.to_thread(self._store.end_attempt)

    async def _publish(self) -> None:
        """Write the closed attempt's aggregate."""
        announcement = self.run.announcement
        if announcement is None:
            raise StateError("an attempt was closed, and none is open")
        bytes_up = self._store.bytes_up()
        try:
            record = await asyncio.to_thread(self._store.write_aggregate)
            await self._apply(events.Published(record))
        except DiskFullError:
            raise  # the attempt is closed, and its sum waits for room
        except ProtocolError as error:
            await self._abandon(str(error), frozenset())
            return
        await asyncio.to_thread(self._store.end_attempt)
        self._news.published(record, bytes_up, self._store.timings.take())

    # --- what clients bring -------------------------------------------------------------------------------------------

    async def join(self, name: str, join: Join) -> None:
        """A client comes, or comes again.

        Raises:
            EngineError, NumExamplesError, LayoutError, NameInUseError, OtherLayoutError: It does not fit in.
        """
        async with self._lock:
            views.check_join(name, join, self.engine, self.settings)
            views.check_place(self.run, name, join.join_nonce, self._presence.silent_s(name))
            reference = self._journal.reference
            if reference is None or (join.layout, join.values) != (reference.layout, reference.values):
                await self._refer(name, join, reference)
            new = self.run.sessions.get(name) != Session(join.num_examples, join.join_nonce)
            if new or name in self.run.useless:  # it may think otherwise of the last sum now
                await self._apply(events.Joined(name, join.num_examples, join.join_nonce))
            self._presence.hear(name)
        self._news.joined(name, join.num_examples)
        self.remind()

    async def _refer(self, name: str, join: Join, reference: Join | None) -> None:
        """Make a client's layout the run's, where nobody is here who has the one before and nothing is summed of it.

        Raises:
            OtherLayoutError: It must have the one before.
        """
        await self._leave(name, "it comes again with another layout")
        holder = views.holder_of_layout(self.run, self._clock().silent)
        if reference and holder:
            client, settled = holder
            raise OtherLayoutError(
                f"{name}'s model has another layout than {client}'s, who joined before",
                ReferenceLayout(client=client, sealed=reference.sealed_layout, settled=settled),
            )
        for silent in tuple(self.run.sessions):  # they would go on with the layout before
            await self._leave(silent, f"it is silent, and {name} comes with another layout")
        await asyncio.to_thread(self._journal.refer, join)

    def heard_of(self, name: str, join_nonce: str) -> None:
        """Note that a client lives.

        Raises:
            StaleError: It has not joined.
            NameInUseError: Another process has joined under its name since.
        """
        views.check_session(self.run, name, join_nonce)
        self._presence.hear(name)

    async def view(self, name: str, after: int) -> View:
        """The run as one client needs to see it, once there are news since version ``after``, or after POLL_S.

        What another client does is none: there are as many such events in a round as clients, and each client would
        hear of each.
        """
        if 0 < after <= self._journal.now.seq:  # one who has seen more is shown at once that this server was set back
            await self._wait(lambda: self._version > after, POLL_S)
        return views.view_of(self.run, name, self._journal.now.seq, self._clock().silent)

    async def commit(
        self, name: str, announcement: Announcement, upload: Upload, next_num_examples: int, *, whole: bool
    ) -> None:
        """Add a whole and durable upload to the sum, once; ``whole`` is that of events.Committed.

        Raises:
            MalformedError, MismatchError, EngineError: It is not an update of this attempt; nothing has changed.
            StaleError: The attempt was closed meanwhile.
            ConflictError: Another update of this client is in the sum already.
            DiskFullError: It cannot be stored; the upload stays.
        """
        async with self._lock:
            views.check_open(self.run, announcement)
            aggregation = await asyncio.to_thread(self._store.fold)
        try:
            frame = await asyncio.to_thread(aggregation.open, upload.path, name)
        except FileNotFoundError as error:  # uploads go when their attempt ends
            raise StaleError("the attempt was over before the update was checked") from error
        if frame.digest.hex() != upload.digest:
            raise MalformedError(f"the update's digest is {frame.digest.hex()}, and {upload.digest} was announced")
        async with self._lock:
            views.check_open(self.run, announcement)
            event, before = events.Committed(name, upload.digest, next_num_examples, whole), self.run
            if views.is_committed(self.run, name, upload.digest):
                return
            await asyncio.to_thread(self._store.take, frame, event)
            self._news.update(announcement.round, name, upload.held_bytes)
            await self._tell(before)

    async def enough(self, name: str, announcement: Announcement) -> None:
        """A participant will not train any more.

        Raises:
            StaleError: The attempt was closed meanwhile.
            ConflictError: Its update is in the sum, or the attempt trains nothing.
        """
        async with self._lock:
            views.check_open(self.run, announcement)
            if name not in self.run.enough:
                await self._apply(events.Declined(name))
                log.info("round %d: %s has had enough", announcement.round, name)

    async def useless(self, name: str, round_num: int) -> int:
        """A member of the last training's sum trains again from the model of before.

        Returns:
            The version from which on a view takes that into account.

        Raises:
            StaleError: Another training's sum was published since.
            ConflictError: It was not in that sum.
        """
        async with self._lock:
            if name not in self.run.useless or round_num != self.run.model_round:
                await self._apply(events.Useless(name, round_num))
                self._news.useless(self.run, name)
            run, announcement = self.run, self.run.announcement
            may_be_asked = run.holds or (run.again or {}).keys() <= run.sessions.keys()
            if announcement and run.phase is Phase.COLLECTING and may_be_asked and (why := run.misfit(announcement)):
                await self._abandon(why, frozenset(), is_counted=False)
            spent = run.model_round in run.useless_rounds and len(run.useless_rounds) >= MAX_USELESS_SUMS
            if spent and self._spent_since is None:
                self._spent_since = time.monotonic()
            return self._journal.now.seq

    async def fetched(self, name: str, confirmation: str) -> None:
        """A client has the last record, and confirms it to the others."""
        async with self._lock:
            if self.run.confirmations.get(name) != confirmation:
                await self._apply(events.Confirmed(name, confirmation))

    async def leave(self, name: str) -> None:
        """A client goes."""
        async with self._lock:
            await self._leave(name)

    async def _leave(self, name: str, why: str = "") -> None:
        if name in self.run.sessions and not self.ended:
            await self._apply(events.Left(name))
            self._news.left(name, why)

    async def know(self, names: tuple[str, ...]) -> None:
        """Let these clients in from now on; whoever else is here has left."""
        async with self._lock:
            gone = sorted(self.run.sessions.keys() - set(names))  # also those of before a restart
            if self.ended or (names == self.run.known and not gone):
                return
            try:
                await self._apply(events.AllowedChanged(names))
            except DiskFullError:
                return  # the list is read again
        for name in gone:
            self._news.left(name, "it is not on the server's list any more")
        self.remind()

    def aggregate(self, round_num: int) -> Path:
        """Where a round's aggregate is. Raises StaleError where it is not kept."""
        path = self._store.aggregate(round_num)
        if path is None:
            raise StaleError(f"the aggregate of round {round_num} is not kept")
        return path

    def records(self, after: int) -> list[Record]:
        """Records of the rounds after this one, in order, as many as one answer may have."""
        return self._journal.records(after, RECORDS_AT_ONCE)
