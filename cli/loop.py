"""Run a command's coroutine until it ends or a signal stops it."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from hefl.cli.interrupts import Stopped, kept


def run(
    main: Coroutine[Any, Any, None], *, stop: Callable[[], None] | None = None, terminated_is_success: bool = False
) -> None:
    """Run ``main``; a signal calls ``stop``, or cancels it.

    Args:
        main: The command.
        stop: Makes ``main`` return soon.
        terminated_is_success: SIGTERM is the ordinary way to stop the command.

    Raises:
        Stopped: A signal stopped it.
    """
    received: list[signal.Signals] = []

    async def watched() -> None:
        task, loop = asyncio.ensure_future(main), asyncio.get_running_loop()

        def on_signal(number: signal.Signals) -> None:
            received.append(number)
            (stop or task.cancel)()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        try:
            await task
        except asyncio.CancelledError:
            if not received:
                raise

    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with kept():
        try:
            runner.run(watched())
        finally:
            try:
                runner.close()
            except OSError as error:
                # uvloop cannot close itself over a connection whose TLS was called off half-way; the process ends
                # anyway.
                if error.errno != errno.EBUSY:
                    raise
    if received and not (terminated_is_success and received[0] is signal.SIGTERM):
        raise Stopped
