"""Start hefl's commands by a fork of a process that has imported hefl, as multiprocessing's forkserver does.

A start of Python that imports hefl and loads its compiled kernels takes 2 s of CPU, and the tests start a thousand
commands. A forked command runs the same code in a process of its own. It shares with the others what Python settles at
its start: the seed of hashes, the modules that are there already, and what they have read from the environment. Where
a test is about any of that, the command is started anew.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

HERE = Path(__file__).parent
LENGTH = struct.Struct(">I")
READ_AT_START = ("HOME", "LD_", "NUMBA_", "PYTHON", "TMPDIR", "XDG_")
"""Prefixes of variables that count when modules are imported."""
SCRIPTS = ("hefl.cli.lying_server", "hefl.cli.lying_client")
"""Modules that are run and not imported."""


class Forked:
    """One running command; what ``subprocess.Popen`` offers of it."""

    def __init__(self, pid: int, status: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.pid = pid
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float) -> int:
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return code

    def _wait(self, timeout_s: float) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout_s)[0]:
            (status,) = LENGTH.unpack(os.read(self._status, LENGTH.size))
            os.close(self._status)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forkserver:
    """The process to fork from, and the way to ask it; it ends with this one."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-W", "error", "-m", "forkserver"]
        with theirs:
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), cwd=HERE)

    def start(self, module: str, arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Forked:
        """Run a module as ``python -W error -m`` does, with nothing to read."""
        request = json.dumps([module, list(arguments), str(cwd), dict(env)]).encode()
        (out, out_end), (err, err_end), (status, status_end) = os.pipe(), os.pipe(), os.pipe()
        with self._asking:
            socket.send_fds(self._socket, [LENGTH.pack(len(request))], [out_end, err_end, status_end])
            self._socket.sendall(request)
            (pid,) = LENGTH.unpack(_read(self._socket, LENGTH.size))
        for end in (out_end, err_end, status_end):
            os.close(end)
        return Forked(pid, status, os.fdopen(out), os.fdopen(err))


@functools.cache
def forkserver() -> Forkserver:
    """This process's own, started when it is first needed."""
    return Forkserver()


def can_fork(variables: Mapping[str, str]) -> bool:
    """Whether a command with these variables of its own runs forked as it would if it were started anew."""
    return not any(name.startswith(READ_AT_START) for name in variables)


def _read(of: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (chunk := of.recv(size - len(data))):
            raise EOFError
        data += chunk
    return data


class _Server:
    """Forks on request, in a process with one thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        self._statuses: dict[int, int] = {}  # where a child's end is told, by its process id
        signal.signal(signal.SIGCHLD, self._tell_ends)

    def next_command(self) -> tuple[str, list[str]] | None:
        """Returns in each child: what it runs. In the server itself: None, when nobody can ask any more."""
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, LENGTH.size, 3)
                request = _read(self._socket, *LENGTH.unpack(data)) if data else b""
            except (EOFError, ConnectionError):
                return None
            if not request:
                return None
            module, arguments, cwd, env = json.loads(request)
            out, err, status = descriptors
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
            # From 3.12 on Python warns of other threads; numpy's are there, and prepared for a fork.
            with warnings.catch_warnings(action="ignore"):
                pid = os.fork()
            self._statuses[pid] = status
            if not pid:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                self._become(out, err, cwd, env)
                return module, arguments
            os.close(out)
            os.close(err)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self._socket.sendall(LENGTH.pack(pid))

    def _become(self, out: int, err: int, cwd: str, env: dict[str, str]) -> None:
        self._socket.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor, place in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(descriptor, place)
            os.close(descriptor)
        for status in self._statuses.values():
            os.close(status)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        sys.path[0] = cwd
        tempfile.tempdir = None
        time.tzset()

    def _tell_ends(self, number: int, frame: FrameType | None) -> None:
        while self._statuses:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            told = self._statuses.pop(pid)
            with suppress(BrokenPipeError):
                os.write(told, LENGTH.pack(status))
            os.close(told)


def _load() -> None:
    """Import hefl and what its commands use, and load its kernels."""
    import hefl
    from hefl.ckks.selftest import check_kernels
    from hefl.params import RINGS

    for module in pkgutil.walk_packages(hefl.__path__, "hefl."):
        if not module.name.endswith(("__main__", ".torch")) and module.name not in SCRIPTS:
            importlib.import_module(module.name)
    check_kernels(RINGS[0])
    gc.freeze()


def _run(module: str, arguments: list[str]) -> int:
    """Run a module as Python does; returns the exit code."""
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Serve commands; in a child, run one."""
    _load()
    if command := _Server().next_command():
        code = _run(*command)
        # As multiprocessing ends what it has forked: freeing all that was imported takes a second.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
