"""Run the demo: a key authority, a server and clients as real processes over TLS.

For comparison, the same model also trains on all of the clients' data at once. Every client keeps a trace of what it
encrypted and what it decrypted, so that each round's global model can be held against numpy's weighted mean of the very
updates that went into it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hefl.ckks.plan import reduce_weights
from hefl.datasets import load_example
from hefl.datasets.data import load_parts
from hefl.datasets.partition import Partition
from hefl.demo.processes import ChildFailedError, Children, Event, run_federation
from hefl.encoding.codec import Metrics
from hefl.errors import HeflError, TamperError, UploadError, UsageError
from hefl.keys import authority
from hefl.models.trainer import CheckedTrainer

log = logging.getLogger("hefl")

FORK_CLIENTS = LIAR_CLIENTS = 3
CHECK = "hefl: check: "
"""How a client says on stderr which check failed."""

CAME_OF = {
    "bounded": "it changed nothing for the others",
    "seen": "the server's log names it, and the others went on",
    "unseen": "nobody can tell, and the model is what it made of it; see SECURITY.md",
    "refused": "the server refused what it sent, and the others went on",
}

NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
Progress = Callable[[str, int, int], None]
"""Is told which training, finished rounds and all rounds."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the demo trains.

    Attributes:
        data: One of params.DATA_SETS.
        clients: How many share it.
        partition: How they share it.
        rounds: Trainings.
        seed: For the training and the initial parameters.
    """

    data: str
    clients: int
    partition: Partition
    rounds: int
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """The clients' names, in the order of their parts."""
        return client_names(self.clients)

    def arguments(self, name: str) -> list[str]:
        """What ``hefl client`` needs to know of it, for one of its clients."""
        part = f"{self.data}:{self.names.index(name) + 1}/{self.clients}"
        return ["--data", part, "--partition", str(self.partition), "--seed", str(self.seed)]


@dataclass(frozen=True, slots=True)
class DataSplit:
    """Who has which data.

    Attributes:
        labels: How many training examples of each label a client has, by client.
        validation: How many examples validate, the same for every client.
    """

    labels: Mapping[str, Sequence[int]]
    validation: int


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


def split_data(task: Task) -> DataSplit:
    """Share the data as the clients will.

    Raises:
        UsageError: Some client is left with too few examples.
    """
    names = dict(enumerate(task.names, 1))
    splits = load_parts(task.data, task.clients, task.partition, names=names)
    labels = [np.bincount(split.labels, minlength=split.classes).tolist() for split in splits]
    return DataSplit(dict(zip(task.names, labels, strict=True)), len(splits[0].validation_labels))


def run_training(folder: Path, task: Task, engine: str, progress: Progress) -> Training:
    """Train once, with keys and traces in ``folder``, which the caller removes.

    Raises:
        HeflError: A process failed; says which, and what it said.
    """
    names, rounds = task.names, task.rounds
    keys = folder / "keys"
    authority.create(keys, names, ("127.0.0.1",))
    page = [] if engine == "plaintext" else ["--page-port", "0"]
    common = ["--engine", engine, *(["--insecure-plaintext"] if engine == "plaintext" else [])]
    arguments = {
        name: [
            *common,
            "--report-metrics",
            *task.arguments(name),
            *("--save", str(folder / f"{name}.npz"), "--trace", str(folder / "trace" / name)),
        ]
        for name in names
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


def run_tampered(folder: Path, task: Task, lie: str) -> NoReturn:
    """Train with a server that lies, until a client notices.

    Args:
        folder: For keys, which the caller removes.
        task: What is trained.
        lie: One of params.LIES.

    Raises:
        UsageError: The lie takes more clients.
        TamperError: A client noticed; says which check it was.
        HeflError: Nobody did, or something else failed.
    """
    if lie == "fork" and task.clients < FORK_CLIENTS:
        raise UsageError(
            f"--tamper fork takes {FORK_CLIENTS} clients, for each side of a fork is a sum of two",
            hint=f"--clients {FORK_CLIENTS}",
        )
    try:
        _run_with_liar(folder, task, [], {"server": ("hefl.cli.lying_server", lie)})
    except ChildFailedError as error:
        if (found := _failed_check(error)) is None:
            raise
        said, check = found
        raise TamperError(f"the server lied ({lie}), and {error.name} noticed: {said}", check=check) from error
    raise HeflError(f"the server lied ({lie}), and nobody noticed", hint="that must never happen: please report it")


def run_with_lying_client(folder: Path, task: Task, lie: str) -> str:
    """Train with one client that lies, the last one.

    Args:
        folder: For keys, which the caller removes.
        task: What is trained.
        lie: One of params.CLIENT_LIES.

    Returns:
        What came of it, in words.

    Raises:
        UsageError: It takes more clients.
        TamperError: The others stopped; says which check it was.
        HeflError: Something else failed.
    """
    if task.clients < LIAR_CLIENTS:
        raise UsageError(
            f"--tamper {lie} takes {LIAR_CLIENTS} clients, for of two clients each knows the other's update anyway",
            hint=f"--clients {LIAR_CLIENTS}",
        )
    from hefl.demo.lying_client import OUTCOMES

    liar, patience = task.names[-1], ["--join-wait", "20", "--round-timeout", "20"]
    serve = ["--min-clients", str(task.clients - 1), *patience]
    try:
        _run_with_liar(folder, task, serve, {liar: ("hefl.cli.lying_client", lie)})
    except ChildFailedError as error:
        plain = [line for line in error.lines if not line.startswith("hefl: hint: ")]
        said, check = _failed_check(error) or (plain[-1].removeprefix("hefl: "), UploadError.check)
        if error.name == liar:
            return f"{liar} lied ({lie}), and the server refused it: {said}"
        raise TamperError(
            f"{liar} lied ({lie}), and {error.name} stopped: {said}",
            hint="find out which client it is, and take it out with 'hefl keygen --revoke'",
            check=check,
        ) from error
    if (outcome := CAME_OF.get(OUTCOMES[lie])) is None:
        raise HeflError(f"{liar} lied ({lie}), and nobody noticed", hint="that must never happen: please report it")
    return f"{liar} lied ({lie}): {outcome}"


def _run_with_liar(folder: Path, task: Task, serve: Sequence[str], modules: Mapping[str, Sequence[str]]) -> None:
    """Train with keys in a folder, and a party that runs another module.

    Raises:
        ChildFailedError: A process failed.
    """
    keys = folder / "keys"
    authority.create(keys, task.names, ("127.0.0.1",))
    arguments = {name: task.arguments(name) for name in task.names}
    flags = ["--rounds", str(task.rounds), *serve]
    with Children(folder) as children:
        for name, event in run_federation(children, keys, flags, arguments, modules):
            if name == "server" and event["event"] == "announced":
                log.info("round %(round)d is announced", event)


def _failed_check(error: ChildFailedError) -> tuple[str, str] | None:
    """What a client that refused something said, and by which check; None where it failed otherwise."""
    found = [(before, line) for before, line in itertools.pairwise(error.lines) if line.startswith(CHECK)]
    if error.code != TamperError.exit_code or not found:
        return None
    return found[-1][0].removeprefix("hefl: "), found[-1][1].removeprefix(CHECK)


def train_pooled(task: Task, progress: Progress) -> list[Metrics]:
    """Train the same model for as many rounds and epochs on all of the training rows, in this process.

    Returns:
        Metrics of models 0 to ``rounds``, on the rows that validate for the clients too.
    """
    trainer = CheckedTrainer(load_example(f"{task.data}:1/1", seed=task.seed), "pooled", task.seed)
    arrays = trainer.initial()
    metrics: list[Metrics] = [dict(trainer.evaluate(arrays, 0).metrics)]
    for number in range(1, task.rounds + 1):
        arrays, _ = trainer.fit(arrays, number)
        metrics.append(dict(trainer.evaluate(arrays, number).metrics))
        progress("pooled", number, task.rounds)
    return metrics


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
