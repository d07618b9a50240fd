"""Run a coroutine to its end from code that is not asynchronous, in a notebook too."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import uvloop

Begun = Future[tuple[asyncio.AbstractEventLoop, "asyncio.Task[Any]"]]


def run_to_end(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on a loop of its own; Ctrl-C cancels it.

    A notebook's thread runs a loop already, and Python allows one a thread: there the coroutine gets a thread.
    """
    begun: Begun = Future()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _run(main, begun)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="hefl") as pool:
        done = pool.submit(_run, main, begun)
        try:
            done.result()
        except BaseException:
            if not done.done():
                loop, task = begun.result()
                loop.call_soon_threadsafe(task.cancel)
            raise


def _run(main: Coroutine[Any, Any, None], begun: Begun) -> None:
    async def noted() -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(main)
        begun.set_result((loop, task))
        await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(noted())
