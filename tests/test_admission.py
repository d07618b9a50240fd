"""Turns for uploads: a few at full speed, and nobody behind a slow line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hefl.admission import Admission
from hefl.params import FAST_BYTES_PER_S, UPLOADS_AT_ONCE


async def hold(admission: Admission, received: Callable[[], int], running: list[int], number: int) -> None:
    async with admission.turn(received):
        running.append(number)
        await asyncio.Event().wait()


async def start(
    admission: Admission, received: Callable[[], int], count: int
) -> tuple[list[int], list[asyncio.Task[None]]]:
    running: list[int] = []
    tasks = [asyncio.create_task(hold(admission, received, running, i)) for i in range(count)]
    await asyncio.sleep(0.01)
    return running, tasks


async def stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_fast_uploads_take_turns_in_order() -> None:
    async def run() -> None:
        began = asyncio.get_running_loop().time()

        def fast() -> int:
            return int((asyncio.get_running_loop().time() - began) * 10 * FAST_BYTES_PER_S)

        running, tasks = await start(Admission(), fast, UPLOADS_AT_ONCE + 2)
        await asyncio.sleep(1.2)
        assert running == list(range(UPLOADS_AT_ONCE))
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        assert running == list(range(UPLOADS_AT_ONCE + 1))
        await stop(tasks)

    asyncio.run(run())


def test_slow_uploads_hold_nobody_up() -> None:
    async def run() -> None:
        running, tasks = await start(Admission(), lambda: 0, 2 * UPLOADS_AT_ONCE)
        assert len(running) == UPLOADS_AT_ONCE
        while len(running) < 2 * UPLOADS_AT_ONCE:
            await asyncio.sleep(0.05)
        await stop(tasks)

    asyncio.run(run())


def test_a_turn_is_given_back_once_whatever_ends_it() -> None:
    async def run() -> None:
        admission = Admission()
        for _ in range(3 * UPLOADS_AT_ONCE):
            with pytest.raises(ConnectionError):
                async with admission.turn(lambda: 0):
                    raise ConnectionError
        await asyncio.sleep(0)
        running, tasks = await start(admission, lambda: 0, UPLOADS_AT_ONCE + 1)
        assert len(running) == UPLOADS_AT_ONCE
        await stop(tasks)

    asyncio.run(run())
