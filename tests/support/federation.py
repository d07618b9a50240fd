"""A federation's commands as real processes on loopback, bounded in time and stopped by their own process ids."""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from forkserver import Forked, can_fork, forkserver

from hefl.keys import authority

HERE = Path(__file__).parent
LIMIT_S = 60.0


def free_port() -> int:
    """A port that a server can have, again and again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


class Command:
    """One running command.

    Args:
        arguments: Its own.
        env: Variables that it has besides this process's.
        cwd: Where it runs.
        module: What Python runs.
        before: Goes before Python, as in ``env NAME=value python ...``.
        anew: Start Python anew where a fork of one that has hefl loaded would do.
    """

    def __init__(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = HERE,
        module: str = "hefl.cli",
        before: Sequence[str] = (),
        anew: bool = False,
    ) -> None:
        given, variables = list(map(str, arguments)), {**os.environ, **(env or {})}
        self.child: Forked | subprocess.Popen[str]
        if before or anew or not can_fork(env or {}):
            self.child = subprocess.Popen(
                [*before, sys.executable, "-W", "error", "-m", module, *given],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=cwd,
                env=variables,
            )
        else:
            self.child = forkserver().start(module, given, cwd, variables)
        self.out: list[str] = []
        self.err: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.child.stdout, self.out)),
            threading.Thread(target=self._read, args=(self.child.stderr, self.err)),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line.rstrip("\n"))
                self._lines.put(line)

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """The exit code."""
        code = self.child.wait(limit_s)
        for reader in self._readers:
            reader.join()
        return code

    def until(self, text: str, limit_s: float = LIMIT_S) -> None:
        """Wait until the command has printed a line that contains ``text``."""
        deadline = time.monotonic() + limit_s
        while not any(text in line for line in [*self.out, *self.err]):
            if self.child.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no {text!r} in {self.out} {self.err}")
            time.sleep(0.02)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What ``--json`` printed so far."""
        return [json.loads(line) for line in self.out]

    @property
    def error(self) -> str:
        """What the command said on stderr."""
        return "\n".join(self.err)

    def stop(self) -> None:
        """Kill it if it still runs."""
        if self.child.poll() is None:
            self.child.kill()
        self.wait()


class Federation:
    """Keys of some clients in a folder, and the commands that use them."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.made = authority.create(folder, names, ("127.0.0.1", "localhost"))
        self.url = ""
        self._commands: list[Command] = []

    def copy(self, folder: Path) -> Federation:
        """The same keys in another folder, for a test that changes files."""
        twin = Federation.__new__(Federation)
        shutil.copytree(self.folder, folder)
        twin.folder, twin.made, twin.url, twin._commands = folder, self.made, "", []
        return twin

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        module: str = "hefl.cli",
        anew: bool = False,
    ) -> Command:
        """Start any command."""
        command = Command(*arguments, env=env, module=module, anew=anew)
        self._commands.append(command)
        return command

    def serve(
        self, state: Path, *flags: str, port: int = 0, module: str = "hefl.cli", anew: bool = False, **env: str
    ) -> Command:
        """Start the server and wait until it listens."""
        server = self.start_server(state, *flags, port=port, module=module, anew=anew, **env)
        server.until("listening")
        self.url = server.events[0]["url"]
        return server

    def start_server(
        self, state: Path, *flags: str, port: int, module: str = "hefl.cli", anew: bool = False, **env: str
    ) -> Command:
        """Start the server and do not wait."""
        where = ("--port", str(port), "--state", str(state), "--json")
        return self.run("serve", self.folder / "server", *where, *flags, module=module, anew=anew, env=env)

    def client(
        self,
        name: str,
        state: Path,
        *flags: str | Path,
        trainer: str = "trainers:Drift",
        module: str = "hefl.cli",
        **env: str,
    ) -> Command:
        """Start a client with a numpy trainer."""
        folder = self.folder / "clients" / name
        where = ["--server", self.url] if "--server" not in flags else []
        arguments = ["client", folder, "--trainer", trainer, "--state", state, "--json", *where, *flags]
        return self.run(*arguments, env=env, module=module)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for command in self._commands:
            command.stop()
        self._commands.clear()
