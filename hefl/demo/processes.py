"""Run hefl's own commands as child processes."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from hefl.errors import HeflError, UsageError

STOP_S = 10.0
HEFL = ("hefl.cli",)
CONNECT_TIMEOUT_S = "15"
"""A server on the same machine that does not answer for so long has gone."""

Event = Mapping[str, Any]


class ChildFailedError(HeflError):
    """A command ended with another exit code than 0.

    Attributes:
        name: Whose.
        code: Its exit code.
        lines: What it said on stderr.
    """

    def __init__(self, name: str, code: int, lines: Sequence[str]) -> None:
        said = " / ".join(lines[-3:]) or "it said nothing"
        super().__init__(f"{name} failed with exit code {code}: {said}")
        self.name = name
        self.code = code
        self.lines = tuple(lines)


class Children:
    """Commands that run with ``--json``; whatever is left of them is stopped at the end.

    Args:
        folder: For their logs, and their current folder.

    Attributes:
        peak_bytes: Largest resident size of each child that has ended, by name.
    """

    def __init__(self, folder: Path) -> None:
        self.peak_bytes: dict[str, int] = {}
        self._folder = folder
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._readers: list[threading.Thread] = []
        self._events: queue.Queue[tuple[str, Event | None]] = queue.Queue()

    def start(self, name: str, *arguments: str, module: Sequence[str] = HEFL) -> None:
        """Start one command; its events come with ``events``, each with the time at which it was read."""
        with self._log(name).open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", *module, *arguments, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._folder,
            )
        self._running[name] = child
        reader = threading.Thread(target=self._read, args=(name, child.stdout), daemon=True)
        self._readers.append(reader)
        reader.start()

    def pid(self, name: str) -> int:
        """A running child's process id."""
        return self._running[name].pid

    def events(self) -> Iterator[tuple[str, Event]]:
        """Every event as it comes, until all children have ended.

        Raises:
            HeflError: A child failed; says which, and what it said.
        """
        while self._running:
            name, event = self._events.get()
            if event is None:
                self._check(name)
            else:
                yield name, event

    def _check(self, name: str) -> None:
        child = self._running.pop(name)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        self.peak_bytes[name] = usage.ru_maxrss * 1024
        if child.returncode == 0:
            return
        lines = self._log(name).read_text(errors="replace").splitlines()
        failed = ChildFailedError(name, child.returncode, lines)
        raise UsageError(failed.message) if child.returncode == UsageError.exit_code else failed

    def _read(self, name: str, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                self._events.put((name, {**json.loads(line), "read_s": time.monotonic()}))
        self._events.put((name, None))

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for child in self._running.values():
            child.terminate()
        for child in self._running.values():
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for reader in self._readers:
            reader.join()


def run_federation(
    children: Children,
    keys: Path,
    serve: Sequence[str],
    clients: Mapping[str, Sequence[str]],
    modules: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[tuple[str, Event]]:
    """Start a server, and once it listens its clients, on loopback; yields their events until all have ended.

    Args:
        children: Runs them.
        keys: The federation's folder, made for 127.0.0.1.
        serve: Further arguments of ``hefl serve``.
        clients: Further arguments of ``hefl client``, by name.
        modules: What runs the command line of the server, or of a client, and its first arguments, by name; default:
            hefl's own.
    """
    serving = ("serve", str(keys / "server"), "--port", "0", "--min-clients", str(len(clients)), *serve)
    modules = modules or {}
    children.start("server", *serving, module=modules.get("server", HEFL))
    for name, event in children.events():
        if event["event"] == "listening":
            for client, arguments in clients.items():
                where = (str(keys / "clients" / client), "--server", event["url"])
                patience = ("--connect-timeout", CONNECT_TIMEOUT_S)
                children.start(client, "client", *where, *patience, *arguments, module=modules.get(client, HEFL))
        yield name, event
