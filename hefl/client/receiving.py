"""Fetch sums, check them, and keep the models that they make."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from hefl.client.following import Follower
from hefl.client.http import Connection
from hefl.client.learner import Learner
from hefl.client.newcomer import Ranges, first_to_follow
from hefl.client.options import OnTamper
from hefl.client.state import ClientState
from hefl.client.threads import work_in_thread
from hefl.encoding.codec import Metrics
from hefl.errors import HeflError, MalformedError, ProtocolError, StaleError, StateError, UploadError
from hefl.keys.folders import ClientFolder
from hefl.params import MAX_USELESS_SUMS
from hefl.protocol.frames import is_whole
from hefl.protocol.records import Record
from hefl.protocol.updates import max_aggregate_bytes

log = logging.getLogger("hefl")

T = TypeVar("T")

GO_BACK = 16
"""So many records before the last one a client without a model looks at; a server keeps few of their aggregates."""


class _DamagedError(Exception):
    """A sum is damaged, and may come whole when it is fetched once more."""


@contextmanager
def _noticing_damage(path: Path, *, may_come_again: bool) -> Iterator[None]:
    """Tell a frame that is damaged from one that is whole, and refused for what it is: by its digest.

    Where it is damaged the reason for the refusal means nothing: a bit of the round's number may be wrong.

    Raises:
        _DamagedError: It is damaged, and may come again.
        MalformedError: It is damaged for good.
    """
    try:
        yield
    except HeflError as error:
        if is_whole(path):
            raise
        if may_come_again:
            raise _DamagedError from error
        raise MalformedError("the digest does not match the bytes: the sum was damaged on the way") from error


class Receiver:
    """Takes records in order.

    Args:
        folder: The client's keys.
        learner: Gets the models.
        state: Keeps them.
        connection, follower: To the server, and of its history.
        least: So many updates must be in a sum.
        on_tamper: What to do about a sum that does not pass its checks.
    """

    def __init__(
        self,
        folder: ClientFolder,
        learner: Learner,
        state: ClientState,
        connection: Connection,
        follower: Follower,
        least: int,
        on_tamper: OnTamper,
    ) -> None:
        self._folder = folder
        self._learner = learner
        self._state = state
        self._connection = connection
        self._follower = follower
        self._least = least
        self._on_tamper = on_tamper
        self._at_hand: str | None = None  # digest of the sum that was fetched already
        self._kept: int | None = None  # the round whose aggregate made this client's model

    async def take(self, record: Record) -> tuple[Metrics, int]:
        """Fetch and accept a record's sum; returns the averaged metrics, and how many bytes came.

        Raises:
            StaleError: The server does not keep it any more.
            ProtocolError, MismatchError: As Learner.accept, unless sums that fail are skipped.
            StateError: What is kept is damaged, or cannot be stored.
        """
        if not await self._is_caught_up(record):
            return self._learner.wait(record.announcement), 0
        metrics, size = await self._fetch_for(record, partial(self.accept, record))
        if self._learner.model is None and not self._learner.apart:
            await self._go_back(record)
        return metrics, size

    async def _fetch_for(self, record: Record, use: Callable[[bool], T]) -> tuple[T, int]:
        """Fetch a record's sum and use it. One that was damaged on the way is fetched once more.

        Args:
            record: The sum's.
            use: Works in a thread. Is told whether the sum may come again, and raises _DamagedError where that helps.

        Returns:
            What ``use`` returns, and how many bytes came.

        Raises:
            StaleError: The server does not keep it.
            HeflError: As ``use``.
        """
        at_hand, self._at_hand = self._at_hand == record.digest, None
        size = self._state.aggregate.stat().st_size if at_hand else await self._fetch(record)
        try:
            return await work_in_thread(use, True), size
        except _DamagedError:
            log.warning("the sum of round %d came damaged; fetching it once more", record.announcement.round)
        size = await self._fetch(record, over_new_connection=True)
        return await work_in_thread(use, False), size

    async def _fetch(self, record: Record, *, over_new_connection: bool = False) -> int:
        limit = max_aggregate_bytes(self._learner.engine, record.announcement)
        where = f"/v1/rounds/{record.announcement.round}/aggregate"
        with self._learner.timings.phase("download"):
            return await self._connection.download(
                where, self._state.aggregate, limit, over_new_connection=over_new_connection
            )

    def accept(self, record: Record, may_come_again: bool = False) -> Metrics:
        """Take the sum that has come, and keep it where it makes a new model.

        Raises:
            _DamagedError: It was damaged on the way, and may come again.
            HeflError: As ``take``.
        """
        learner, path = self._learner, self._state.aggregate
        if learner.model is None:
            self._restore(record)
        before, progress = learner.model and learner.model.arrays, learner.progress
        try:
            with _noticing_damage(path, may_come_again=may_come_again):
                metrics = learner.accept(path, record, self._least)
        except ProtocolError as error:
            if self._on_tamper == "stop":
                raise
            log.error("round %d did not pass the check %r", record.announcement.round, error.check)
            metrics = learner.skip(record, error)
        self._state.limit(learner.one_set)
        if learner.model and learner.model.arrays is not before:
            self._state.keep(record, learner.layout, self._folder.secret)
            self._kept = record.announcement.round
        elif self._kept is not None and learner.model and not learner.apart:
            self._state.stand(self._kept, record, progress, learner.progress)
        path.unlink(missing_ok=True)
        return metrics

    async def _is_caught_up(self, record: Record) -> bool:
        """Have the model that a record's round started from, if it is to be had; False where it is not clear which."""
        learner = self._learner
        if learner.apart or record.announcement.round == 0 or not learner.engine.verifies:
            return True
        if learner.model is None:
            return self._state.kept_before(record) is not None or await self._follow_anew(record)
        missed = record.announcement.round - 1 - learner.model.round
        if missed > GO_BACK or not await self._take_all(reversed(await self._follower.before(record, missed))):
            learner.model = None
            return await self._follow_anew(record)
        return True

    async def _take_all(self, records: Iterable[Record]) -> bool:
        """Take the sums of records, in order; False where one of them is not kept."""
        for older in records:
            if older.announcement.exchange == "closing":
                self._learner.stand(older.announcement)
                continue
            try:
                await self._fetch_for(older, partial(self.accept, older))
            except StaleError:
                return False
        return True

    async def _follow_anew(self, record: Record) -> bool:
        """Take the sums before a record, as far as the server keeps them, from a good one on; see ``newcomer``.

        The newest comes first, and each once: the server goes on meanwhile, and keeps few.
        """
        records = [record, *await self._follower.before(record, MAX_USELESS_SUMS)]
        found: list[tuple[Record, Path, Ranges | None]] = []
        for place, older in enumerate(records):
            if older.announcement.exchange == "closing":
                continue
            try:
                ranges, _ = await self._fetch_for(older, partial(self._ranges, older))
            except StaleError:
                break  # it is not kept, nor is any before it
            except ProtocolError as error:
                log.warning("round %d did not pass the check %r", older.announcement.round, error.check)
                continue
            found.append((older, self._state.set_aside(place), ranges))
        found.reverse()
        first = first_to_follow([ranges for _, _, ranges in found])
        if first is None and any(ranges for _, _, ranges in found):
            return False
        files = {older.digest: path for older, path, _ in found[first or 0 :]}
        for older in reversed(records):
            if path := files.get(older.digest):
                path.replace(self._state.aggregate)
            if older is record:
                self._at_hand = record.digest if path else None
            elif path:
                await work_in_thread(self.accept, older)
            elif older.announcement.exchange == "closing":
                self._learner.stand(older.announcement)
        return True

    def _ranges(self, record: Record, may_come_again: bool) -> Ranges | None:
        with _noticing_damage(self._state.aggregate, may_come_again=may_come_again):
            return self._learner.ranges(self._state.aggregate, record, self._least)

    def _restore(self, record: Record) -> None:
        """After a start: take the model that a record's round started from, where it is kept.

        Where the round is useless, the others go on from that one; where not, it may turn out to be the best.
        """
        if kept := self._state.kept_before(record):
            try:
                self._learner.restore(kept.path, kept.record, record.announcement.round - 1, kept.progress)
            except ProtocolError as error:
                why = f"{kept.path} is damaged: {error}"
                raise StateError(why, hint="remove it, and start again") from error
            self._kept = kept.record.announcement.round

    async def _go_back(self, record: Record) -> None:
        """Where the last record made no model, and the one before is not here: take the last one, as the others have.

        Raises:
            ProtocolError, StateError: As ``take``.
        """
        useless = [record]
        for older in await self._follower.before(record, GO_BACK):
            if older.announcement.exchange != "closing":
                path = self._state.path_of(older)
                try:
                    use = partial(self._take_older, path, older, useless)
                    found = await work_in_thread(use, False) if path else (await self._fetch_for(older, use))[0]
                    if found:
                        return
                except StaleError:
                    break  # it is not kept
                except ProtocolError as error:
                    if self._on_tamper == "stop":
                        raise
                    log.error("round %d did not pass the check %r", older.announcement.round, error.check)
                    self._learner.apart = True
                    return
            useless.append(older)
        hint = "it gets the next one, where others can make that; or start it with the --state that it had before"
        log.warning("this client has no model, and nobody keeps the sum of the last one", extra={"hint": hint})

    def _take_older(self, path: Path | None, older: Record, useless: list[Record], may_come_again: bool) -> bool:
        """Take an older record's model, which none since has replaced; False where it made none either."""
        learner, last = self._learner, useless[0]
        try:
            source = path or self._state.aggregate
            with _noticing_damage(source, may_come_again=may_come_again):
                learner.restore(source, older, last.announcement.round, None, self._least)
        except UploadError:
            return False
        for record in reversed(useless):
            before = learner.progress
            if record.announcement.exchange == "training":
                learner.progress = before.after(None)
        if path is None:
            self._state.keep(older, learner.layout, self._folder.secret)
        self._kept = older.announcement.round
        self._state.stand(self._kept, last, before, learner.progress)
        return True
