"""Long-poll the run's state; polling is also the client's heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from hefl.client.http import Connection
from hefl.errors import ConflictError, HeflError, StaleError, StateError
from hefl.protocol import messages
from hefl.protocol.messages import View

MAX_JOINS = 30
"""So often in a row a client joins that the server does not know any more."""
REJOIN_S = 1.0


class Poller:
    """Keeps the newest view of a run, within ``async with``.

    Args:
        connection: To the server.
        join: Makes the server know this client again.

    Attributes:
        view: The newest; None before there is one.
    """

    def __init__(self, connection: Connection, join: Callable[[], Awaitable[None]]) -> None:
        self.view: View | None = None
        self._connection = connection
        self._join = join
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._poll())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError, HeflError):
            await self._task

    async def other_than(self, version: int) -> View:
        """Wait for another view than that of this version; raises what ended the polling."""
        while self.view is None or self.view.version == version:
            await self.next()
        return self.view

    async def next(self) -> View:
        """Wait for the next view, newer or not: what is over by time alone makes no news."""
        self._news.clear()
        waiting = asyncio.create_task(self._news.wait())
        await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done():
            self._task.result()
        if self.view is None:
            raise StateError("news without a view")
        return self.view

    async def _poll(self) -> None:
        refused = 0
        while True:
            after = self.view.version if self.view else 0
            try:
                view = await self._connection.ask("GET", f"/v1/run?after={after}", messages.parser(View))
            except StaleError as error:
                refused += 1
                if refused > MAX_JOINS:
                    raise ConflictError(
                        f"the server lets this client join, and then does not know it: {error}"
                    ) from error
                await asyncio.sleep(REJOIN_S * (refused > 1))
                await self._join()
                continue
            refused = 0
            self.view = view
            self._news.set()
