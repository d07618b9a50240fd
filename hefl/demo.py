"""The demo: a key authority, a server and clients as real processes, over real TLS, on this machine.

Every client keeps a trace of what it encrypted and what it decrypted, so that each round's global model can be held
against numpy's weighted mean of the very updates that went into it.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from hefl.errors import HeflError, UsageError
from hefl.keys import authority

NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
STOP_S = 10.0

Event = Mapping[str, Any]
Progress = Callable[[str, int, int], None]
"""Is told engine, finished rounds and all rounds."""


@dataclass(frozen=True, slots=True)
class Training:
    """What one training of the demo did.

    Attributes:
        engine: Its engine.
        server: The server's events.
        clients: Each client's events, by name.
        models: Each client's final model, by tensor.
        max_abs_difference: Over all rounds, between the decrypted global model and numpy's weighted mean.
    """

    engine: str
    server: Sequence[Event]
    clients: Mapping[str, Sequence[Event]]
    models: Mapping[str, Mapping[str, np.ndarray]]
    max_abs_difference: float


def client_names(count: int) -> tuple[str, ...]:
    """So many clients' names."""
    return tuple(NAMES[i] if i < len(NAMES) else f"client-{i + 1}" for i in range(count))


def run_training(
    folder: Path, data: str, clients: int, rounds: int, seed: int, engine: str, progress: Progress
) -> Training:
    """Train once, with keys and traces in ``folder``, which the caller removes.

    Raises:
        UsageError: The data cannot be shared among so many clients.
        HeflError: A process failed; says which, and what it said.
    """
    names = client_names(clients)
    keys = folder / "keys"
    authority.create(keys, names, ("127.0.0.1",))
    insecure = ["--insecure-plaintext"] if engine == "plaintext" else []
    common = ["--engine", engine, *insecure, "--json"]
    events: queue.Queue[tuple[str, Event | None]] = queue.Queue()
    said: dict[str, list[Event]] = {name: [] for name in ("server", *names)}
    with ExitStack() as stack:
        arguments = [
            "serve",
            str(keys / "server"),
            "--port",
            "0",
            "--rounds",
            str(rounds),
            "--min-clients",
            str(clients),
        ]
        server = stack.enter_context(_Process("server", [*arguments, *common], folder, events))
        url = str(server.first_event()["url"])
        server.follow()
        running = {"server": server}
        for i, name in enumerate(names):
            arguments = ["client", str(keys / "clients" / name), "--server", url, "--data", f"{data}:{i + 1}/{clients}"]
            arguments += [
                "--seed",
                str(seed),
                "--save",
                str(folder / f"{name}.npz"),
                "--trace",
                str(folder / "trace" / name),
            ]
            running[name] = stack.enter_context(_Process(name, [*arguments, *common], folder, events))
            running[name].follow()
        progress(engine, 0, rounds)
        while running:
            name, event = events.get()
            if event is None:
                running.pop(name).check()
                continue
            said[name].append(event)
            if name == "server" and event["event"] == "round":
                progress(engine, min(event["round"], rounds), rounds)
    models = {name: dict(np.load(folder / f"{name}.npz", allow_pickle=False)) for name in names}
    return Training(engine, said.pop("server"), said, models, _max_abs_difference(folder / "trace", names, rounds))


def _max_abs_difference(trace: Path, names: Sequence[str], rounds: int) -> float:
    """Over all rounds and clients: what was decrypted against numpy's float64 weighted mean of what was encrypted."""
    worst = 0.0
    for number in range(1, rounds + 1):
        sent = [np.load(trace / name / f"sent-{number}.npz", allow_pickle=False) for name in names]
        weights = [int(s["num_examples"]) for s in sent]
        expected = np.average([s["vector"].astype(np.float64) for s in sent], axis=0, weights=weights)
        for name in names:
            received = np.load(trace / name / f"received-{number}.npz", allow_pickle=False)["vector"]
            worst = max(worst, float(np.abs(received.astype(np.float64) - expected).max()))
    return worst


class _Process:
    """One of hefl's commands as a child: its events go to a queue, its log to a file; it is stopped at the end."""

    def __init__(
        self, name: str, arguments: Sequence[str], folder: Path, events: queue.Queue[tuple[str, Event | None]]
    ) -> None:
        self._name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "hefl.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._stdout: IO[str] = self._child.stdout  # type: ignore[assignment]
        self._events = events
        self._reader = threading.Thread(target=self._read, daemon=True)

    def first_event(self) -> Event:
        """The first line, which a server prints once it listens."""
        line = self._stdout.readline()
        if not line:
            self._child.wait()
            self.check()
            raise HeflError(f"the {self._name} of the demo said nothing")
        event: Event = json.loads(line)
        return event

    def check(self) -> None:
        """Raise what a child that has ended complained of."""
        code = self._child.wait()
        if code == 0:
            return
        lines = self._log.read_text(errors="replace").splitlines()
        kind = UsageError if code == UsageError.exit_code else HeflError
        raise kind(f"{self._name} failed with exit code {code}: {' / '.join(lines[-3:]) or 'it said nothing'}")

    def _read(self) -> None:
        for line in self._stdout:
            self._events.put((self._name, json.loads(line)))
        self._events.put((self._name, None))

    def follow(self) -> None:
        """Pass every further event on to the queue, and None when the child has closed its output."""
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        if self._reader.is_alive():
            self._reader.join()
        self._stdout.close()
