"""A server that lies, for ``hefl demo --tamper`` and the tests.

It is the real one, but for what it publishes or shows. Nothing that serves a federation imports this module; it is run
as ``python -m hefl.cli.lying_server LIE serve ...``.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Collection
from typing import Any, ClassVar

from aiohttp import web
from msgspec.structs import replace

from hefl.demo.forgeries import LiarState, LyingAggregation
from hefl.engines.packed import PackedEngine
from hefl.errors import EngineError, StateError
from hefl.protocol.messages import View
from hefl.protocol.records import Announcement, Record
from hefl.protocol.updates import Aggregation
from hefl.server.app import CLIENT, Server
from hefl.server.coordinator import Coordinator
from hefl.server.store import DurableStore


class LyingStore(DurableStore):
    """Sums up as a liar does."""

    memory: ClassVar[LiarState]

    def _empty_sum(self, announcement: Announcement, planned: Collection[str]) -> Aggregation:
        if not isinstance(self._engine, PackedEngine):
            raise EngineError(f"engine {self._engine.name!r} verifies nothing: any lie would pass")
        return LyingAggregation(self._public, self._engine, announcement, self.memory, planned)

    def sum_without(self, name: str) -> tuple[Record, bytes]:
        """The open attempt's sum without one client's update: as genuine as with it."""
        announcement = self._journal.now.run.announcement
        if announcement is None:
            raise StateError("a sum where no attempt is open")
        others = {other: digest for other, digest in self._journal.now.run.committed.items() if other != name}
        aggregation, out = Aggregation(self._public, self._engine, announcement, others), io.BytesIO()
        for other, digest in others.items():
            aggregation.add(aggregation.open(self._spool.update(digest), other), other)
        return aggregation.finish(out), out.getvalue()

    def give_up(self) -> None:
        """Keep the updates of an attempt that will be abandoned."""
        aggregation = self.fold()
        if isinstance(aggregation, LyingAggregation):
            self.memory.abandoned = aggregation.uploads


class LyingCoordinator(Coordinator):
    """Shows clients what a liar shows, from round 1 on."""

    store_type = LyingStore

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lie = LyingStore.memory.lie
        self._first: Record | None = None
        self.fork: tuple[str, Record, bytes] | None = None

    async def _publish(self) -> None:
        announcement, store = self.run.announcement, self._store
        if announcement is None or not isinstance(store, LyingStore):
            raise StateError("an attempt was closed, and none is open")
        if self._lie == "mix-attempts" and (announcement.round, announcement.attempt) == (1, 1):
            await asyncio.to_thread(store.give_up)
            await self._abandon("so that its updates can be mixed with those of the next", frozenset())
            return
        if self._lie == "fork" and announcement.round == 1:
            first, *_, victim = announcement.names
            self.fork = (victim, *await asyncio.to_thread(store.sum_without, first))
        await super()._publish()
        if announcement.round == 0:
            self._first = self.run.model

    async def view(self, name: str, after: int) -> View:
        """As Coordinator, but for the lie."""
        view = await super().view(name, after)
        announcement = view.announcement
        if self.fork and name == self.fork[0] and view.model and view.model.announcement.round == 1:
            view = replace(view, model=self.fork[1])
        if announcement is None or announcement.exchange != "training":
            return view
        lied = self._told_falsely(announcement, name)
        if self._lie == "rewind" and announcement.round > 1 and self._first:
            return replace(view, model=self._first, announcement=lied)
        return replace(view, announcement=lied)

    def _told_falsely(self, announcement: Announcement, name: str) -> Announcement:
        """An announcement as the first client by name is shown it."""
        mine = announcement.participants[0]
        if name != mine.name:
            return announcement
        match self._lie:
            case "false-head":
                return replace(announcement, head="00" * 32)
            case "false-weight":
                heavier = replace(mine, num_examples=mine.num_examples + 1)
                return replace(announcement, participants=(heavier, *announcement.participants[1:]))
            case "isolate":
                return replace(announcement, participants=(mine,))
            case "rewind" if announcement.round > 1 and self._first:
                return replace(announcement, round=1, attempt=2, head=self._first.head)
        return announcement


class LyingServer(Server):
    """Serves what a liar shows."""

    coordinator_type = LyingCoordinator

    async def _aggregate(self, request: web.Request) -> web.StreamResponse:
        fork = self._coordinator.fork if isinstance(self._coordinator, LyingCoordinator) else None
        if fork and request.match_info["round"] == "1" and request[CLIENT] == fork[0]:
            return web.Response(body=fork[2])
        return await super()._aggregate(request)
