"""The demo: a key authority, a server and clients as real processes, over real TLS, on this machine.

Every client keeps a trace of what it encrypted and what it decrypted, so that each round's global model can be held
against numpy's weighted mean of the very updates that went into it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hefl.keys import authority
from hefl.plan import reduce_weights
from hefl.processes import Children, Event, run_federation

log = logging.getLogger("hefl")

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
        exact: Whether every decrypted sum was the integer weighted sum; None where the engine has no integers.
    """

    engine: str
    server: Sequence[Event]
    clients: Mapping[str, Sequence[Event]]
    models: Mapping[str, Mapping[str, NDArray[Any]]]
    max_abs_difference: float
    exact: bool | None


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
    page = [] if engine == "plaintext" else ["--page-port", "0"]
    common = ["--engine", engine, *(["--insecure-plaintext"] if engine == "plaintext" else [])]
    arguments = {
        name: [
            *common,
            "--report-metrics",
            *("--data", f"{data}:{i + 1}/{clients}", "--seed", str(seed)),
            *("--save", str(folder / f"{name}.npz"), "--trace", str(folder / "trace" / name)),
        ]
        for i, name in enumerate(names)
    }
    said: dict[str, list[Event]] = {name: [] for name in ("server", *names)}
    progress(engine, 0, rounds)
    with Children(folder) as children:
        for name, event in run_federation(children, keys, ["--rounds", str(rounds), *page, *common], arguments):
            said[name].append(event)
            if event["event"] == "page":
                log.info("watch it in a browser: %(url)s", event)
            if name == "server" and event["event"] == "round" and 0 < event["round"] <= rounds:
                progress(engine, event["round"], rounds)
    models = {name: _load(folder / f"{name}.npz") for name in names}
    worst, exact = _compare(folder / "trace", names, rounds)
    return Training(engine, said.pop("server"), said, models, worst, exact)


def _compare(trace: Path, names: Sequence[str], rounds: int) -> tuple[float, bool | None]:
    """Hold what was decrypted against numpy's weighted mean, in double precision, of what was encrypted.

    Returns:
        The largest difference over all rounds, clients and values; and, where the engine computes with integers,
        whether every decrypted sum was the integer weighted sum.
    """
    worst, exact = 0.0, True
    for number in range(1, rounds + 1):
        sent = [_load(trace / name / f"sent-{number}.npz") for name in names]
        weights = reduce_weights({name: int(s["num_examples"]) for name, s in zip(names, sent, strict=True)})
        counts = [int(s["num_examples"]) for s in sent]
        expected = np.average([s["model"] for s in sent], axis=0, weights=counts)
        for name in names:
            received = _load(trace / name / f"received-{number}.npz")
            worst = max(worst, float(np.abs(received["model"] - expected).max()))
            if received["vector"].dtype == np.int64:
                total = sum(w * s["vector"] for w, s in zip(weights.of.values(), sent, strict=True))
                exact &= bool((received["vector"] == total).all())
    return worst, exact if received["vector"].dtype == np.int64 else None


def _load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
