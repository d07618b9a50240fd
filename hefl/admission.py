"""Turns for uploads and downloads: how many may go at full speed at once.

What comes faster than it can be stored, or goes faster than it is taken, fills buffers of TLS, HTTP and the event loop,
up to a megabyte or two for each connection. So a server serves a few at a time, and the others wait before their first
byte: its memory grows little with its clients. A slow line fills no buffer: it soon loses its turn, and goes on beside
the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hefl.params import FAST_BYTES_PER_S, TRANSFERS_AT_ONCE

LOOK_S = 0.5
"""How often a turn is looked at."""


class Admission:
    """Gives turns in the order in which they are asked for."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(TRANSFERS_AT_ONCE)

    @asynccontextmanager
    async def turn(self, passed: Callable[[], int]) -> AsyncIterator[None]:
        """Wait for a turn; it ends with the block, or before where ``passed`` counts bytes that pass slowly."""
        await self._free.acquire()
        lasting = asyncio.create_task(_while_fast(passed))
        lasting.add_done_callback(lambda _: self._free.release())
        try:
            yield
        finally:
            lasting.cancel()


async def _while_fast(passed: Callable[[], int]) -> None:
    before = passed()
    while True:
        await asyncio.sleep(LOOK_S)
        count = passed()
        if count - before < LOOK_S * FAST_BYTES_PER_S:
            return
        before = count
