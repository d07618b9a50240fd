"""The demo: a key authority, a server and clients as real processes, over real TLS, on this machine.

Every client keeps a trace of what it encrypted and what it decrypted, so that each round's global model can be held
against numpy's weighted mean of the very updates that went into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hefl.keys import authority
from hefl.processes import Children, Event, run_federation

NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
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
    common = ["--engine", engine, *(["--insecure-plaintext"] if engine == "plaintext" else [])]
    arguments = {
        name: [
            *common,
            *("--data", f"{data}:{i + 1}/{clients}", "--seed", str(seed)),
            *("--save", str(folder / f"{name}.npz"), "--trace", str(folder / "trace" / name)),
        ]
        for i, name in enumerate(names)
    }
    said: dict[str, list[Event]] = {name: [] for name in ("server", *names)}
    progress(engine, 0, rounds)
    with Children(folder) as children:
        for name, event in run_federation(children, keys, ["--rounds", str(rounds), *common], arguments):
            said[name].append(event)
            if name == "server" and event["event"] == "round" and 0 < event["round"] <= rounds:
                progress(engine, event["round"], rounds)
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
