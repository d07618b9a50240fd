"""A command on a pseudo-terminal, and what a person sees on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte
from federation import HERE, LIMIT_S


def _control() -> None:
    """Let the terminal turn Ctrl-C into a signal, as a shell does."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A command whose stdin, stdout and stderr are one terminal; or whose stdout is a pipe.

    Attributes:
        written: All bytes that reached the terminal.
        out: What went into the pipe, once the command has ended.
        last_lines: What the lowest line that is not empty has shown, one after the other.
    """

    def __init__(
        self,
        *arguments: str | Path,
        columns: int = 80,
        lines: int = 24,
        piped: bool = False,
        cwd: Path = HERE,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        self._screen = pyte.HistoryScreen(columns, lines, history=10_000, ratio=0.01)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.written, self.out = b"", ""
        self.last_lines: list[str] = []
        self.child = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "hefl.cli", *map(str, arguments)],
            stdout=subprocess.PIPE if piped else theirs,
            stdin=theirs,
            stderr=theirs,
            cwd=cwd,
            env={**{k: v for k, v in os.environ.items() if k != "COLUMNS"}, "TERM": "xterm-256color", **(env or {})},
            start_new_session=True,
            preexec_fn=_control,
        )
        os.close(theirs)
        self._readers = [threading.Thread(target=self._read_screen)]
        if piped:
            self._readers.append(threading.Thread(target=self._read_out))
        for reader in self._readers:
            reader.start()

    def _read_screen(self) -> None:
        while True:
            try:
                chunk = os.read(self._ours, 4096)
            except OSError:  # the other end is closed
                chunk = b""
            if not chunk:
                break
            with self._lock:
                self.written += chunk
                self._stream.feed(chunk)
            last = next((line for line in reversed(self.screen) if line), "")
            if last and last not in self.last_lines[-1:]:
                self.last_lines.append(last)

    def _read_out(self) -> None:
        assert self.child.stdout
        with self.child.stdout as stdout:
            self.out = stdout.read().decode()

    @property
    def screen(self) -> list[str]:
        """The lines that are to be seen now."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def lines(self) -> list[str]:
        """Those that have scrolled off the top, and the screen."""
        with self._lock:
            gone = ["".join(line[x].data for x in range(self._screen.columns)) for line in self._screen.history.top]
            return [line.rstrip() for line in [*gone, *self._screen.display]]

    @property
    def cursor_is_hidden(self) -> bool:
        """Whether nobody would see where they type."""
        with self._lock:
            return bool(self._screen.cursor.hidden)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._ours)[3] & termios.ECHO)

    def until(self, holds: Callable[[list[str]], bool]) -> None:
        """Wait until the lines are such."""
        deadline = time.monotonic() + LIMIT_S
        while not holds(self.lines):
            if self.child.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("\n".join(self.lines))
            time.sleep(0.01)

    def press(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._ours, text.encode())

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """The exit code."""
        code = self.child.wait(limit_s)
        for reader in self._readers:
            reader.join()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.wait()
        os.close(self._ours)
