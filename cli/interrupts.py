"""Decide what Ctrl-C and SIGTERM do to a command.

As long as it has nothing to undo, they end its process at once and raise nothing: an exception that appears in the
middle of an import, of a finaliser or of a compiler is lost there, or comes out as another one. A block in which there
is something to undo says so, and there they raise.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED = 130
"""Exit code of a command that was stopped."""

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal stopped the command.

    A class of its own: KeyboardInterrupt itself, where it passes through code that Python makes of a string, as for
    dataclasses, makes the interpreter kill itself in the end, whatever became of the exception.
    """


def _say_interrupted() -> None:
    os.write(2, b"hefl: interrupted\n")


_say: Callable[[], None] = _say_interrupted
_codes = dict.fromkeys(_NUMBERS, INTERRUPTED)


def begin(say: Callable[[], None] = _say_interrupted) -> None:
    """Let Ctrl-C end the process; ``say`` tells a person so, and may be called in the middle of anything."""
    global _say
    _say = say
    _codes.update(dict.fromkeys(_NUMBERS, INTERRUPTED))
    signal.signal(signal.SIGINT, _end)


def begin_command() -> None:
    """Let SIGTERM do the same; until it is known which command was called, it does what the system does."""
    _set(_end)


def terminated_is_success() -> None:
    """SIGTERM is the ordinary way to stop this command."""
    _codes[signal.SIGTERM] = 0


def end_command(code: int) -> None:
    """The command is over: a signal that comes now only hastens its end, with its own exit code."""
    _codes.update(dict.fromkeys(_NUMBERS, code))
    _set(_end_silently)


@contextmanager
def raised() -> Iterator[None]:
    """In this block there is something to undo: signals raise Stopped."""
    with kept():
        _set(_raise)
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Whatever this block lets signals do, afterwards they do what they did before."""
    before = [(number, signal.getsignal(number)) for number in _NUMBERS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _set(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in _NUMBERS:
        signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped


def _end(number: int, frame: FrameType | None) -> None:
    code = _codes[signal.Signals(number)]
    with suppress(Exception):  # it may have come in the middle of what this needs
        if code == INTERRUPTED:
            _say()
    os._exit(code)


def _end_silently(number: int, frame: FrameType | None) -> None:
    os._exit(_codes[signal.Signals(number)])
