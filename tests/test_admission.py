"""Turns for uploads: a few at full speed, and nobody behind a slow line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hefl.admission import Admission
from hefl.params import FAST_BYTES_PER_S, TRANSFERS_AT_ONCE

Tasks = list[asyncio.Task[None]]


async def hold(admission: Admission, received: Callable[[], int], running: asyncio.Queue[int], number: int) -> None:
    async with admission.turn(received):
        running.put_nowait(number)
        await asyncio.Event().wait()


async def start(admission: Admission, received: Callable[[], int], count: int) -> tuple[asyncio.Queue[int], Tasks]:
    """Ask for so many turns; the queue says who has one."""
    running: asyncio.Queue[int] = asyncio.Queue()
    tasks = [asyncio.create_task(hold(admission, received, running, i)) for i in range(count)]
    await asyncio.sleep(0.01)
    return running, tasks


async def stop(tasks: Tasks) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_fast_uploads_take_turns_in_order() -> None:
    async def run() -> None:
        began = asyncio.get_running_loop().time()

        def fast() -> int:
            return int((asyncio.get_running_loop().time() - began) * 10 * FAST_BYTES_PER_S)

        running, tasks = await start(Admission(), fast, TRANSFERS_AT_ONCE + 2)
        await asyncio.sleep(1.2)
        assert [running.get_nowait() for _ in range(running.qsize())] == list(range(TRANSFERS_AT_ONCE))
        tasks[1].cancel()
        assert await running.get() == TRANSFERS_AT_ONCE
        await asyncio.sleep(0.01)
        assert running.empty()
        await stop(tasks)

    asyncio.run(run())


def test_slow_uploads_hold_nobody_up() -> None:
    async def run() -> None:
        running, tasks = await start(Admission(), lambda: 0, 2 * TRANSFERS_AT_ONCE)
        assert running.qsize() == TRANSFERS_AT_ONCE
        assert [await running.get() for _ in tasks] == list(range(2 * TRANSFERS_AT_ONCE))
        await stop(tasks)

    asyncio.run(run())


def test_a_turn_is_given_back_once_whatever_ends_it() -> None:
    async def run() -> None:
        admission = Admission()
        for _ in range(3 * TRANSFERS_AT_ONCE):
            with pytest.raises(ConnectionError):
                async with admission.turn(lambda: 0):
                    raise ConnectionError
        await asyncio.sleep(0)
        running, tasks = await start(admission, lambda: 0, TRANSFERS_AT_ONCE + 1)
        assert running.qsize() == TRANSFERS_AT_ONCE
        await stop(tasks)

    asyncio.run(run())
