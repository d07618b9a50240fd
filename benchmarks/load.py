"""Does a server hold 100 clients, at what cost for each? Writes results/load.json.

One real ``hefl serve``; all clients live in one other process, each with its keys, its TLS connection, and real updates
of its own. Nobody uploads before everybody has encrypted: then all come at once. At the end every client's model must
be, bit for bit, what integers give in numpy.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import uvloop
import vitals
from numpy.typing import NDArray
from results import note, write

from hefl.client.client import Client
from hefl.client.learner import Learner
from hefl.client.state import ClientState
from hefl.demo.processes import Children
from hefl.encoding.codec import Metrics
from hefl.engines.packed import PackedEngine
from hefl.files import private_folder
from hefl.keys import authority
from hefl.keys.folders import read_client_folder
from hefl.models.layout import Arrays
from hefl.params import MIN_CLIENTS, PRECISION_BITS
from hefl.protocol import frames
from hefl.protocol.records import Announcement, Record

VALUES = 1_663_370
CLIENTS = (2, 10, 32, 100)
TRAININGS = 3
PATIENCE_S = 600

Model = NDArray[np.float32]


def names(clients: int) -> list[str]:
    return [f"c{i:03}" for i in range(clients)]


def weights(clients: int) -> list[int]:
    """1, 2, 3, 1, 2, 3, ..., so that a mean that forgets them is another."""
    return [1 + i % 3 for i in range(clients)]


# --- the clients ------------------------------------------------------------------------------------------------------


class Shift:
    """Moves a model of one tensor by an amount of this client's own."""

    names = ("parameters",)

    def __init__(self, values: int, number: int, num_examples: int) -> None:
        self.num_examples = num_examples
        self._values, self._number = values, number

    def get_parameters(self, config: Mapping[str, Any]) -> Arrays:
        return [initial(self._values)]

    def fit(self, parameters: Arrays, config: Mapping[str, Any]) -> tuple[Arrays, int, dict[str, float]]:
        return [trained(parameters[0], self._number)], self.num_examples, {}

    def evaluate(self, parameters: Arrays, config: Mapping[str, Any]) -> tuple[float, int, dict[str, float]]:
        return float(parameters[0][0]), 1, {}


def initial(values: int) -> Model:
    """Small enough for every round to have the least range, which is 1."""
    return np.random.default_rng(7).uniform(-0.2, 0.2, values).astype(np.float32)


def trained(model: Model, number: int) -> Model:
    return np.roll(model, number) * np.float32(0.9) + np.float32(1e-4 * (number + 1))


class Pace:
    """One client works at a time, for all share few cores; and all answer a training at once."""

    def __init__(self, clients: int) -> None:
        self.turn = threading.Lock()
        self.ready = threading.Barrier(clients)


class PacedLearner(Learner):
    """A learner at a pace that all clients share."""

    pace: Pace

    def write_update(self, file: BinaryIO, announcement: Announcement) -> bytes:
        with self.pace.turn:
            seed = super().write_update(file, announcement)
        if announcement.exchange == "training":
            self.pace.ready.wait(PATIENCE_S)
        return seed

    def accept(self, source: frames.Source, record: Record, least: int = MIN_CLIENTS) -> Metrics:
        with self.pace.turn:
            return super().accept(source, record, least)


def crowd(folder: Path, url: str, values: int, clients: int) -> None:
    """All clients of one run, from joining to the end; asserts that every model is the exact one."""
    pace, learners, parties = Pace(clients), [], []
    for i, (name, weight) in enumerate(zip(names(clients), weights(clients), strict=True)):
        keys = read_client_folder(folder / "keys" / "clients" / name)
        learner = PacedLearner(name, Shift(values, i, weight), keys.secret, PackedEngine(threads=1))
        learner.pace = pace
        state = ClientState(private_folder(folder / name), keep=1)
        learners.append(learner)
        parties.append(Client(keys, learner, state, url=url, connect_timeout_s=PATIENCE_S))

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for party in parties:
                group.create_task(party.run())

    uvloop.run(run())
    expected = exact(values, weights(clients))
    for learner in learners:
        assert learner.model
        (model,) = learner.model.arrays
        assert model.dtype == np.float32
        assert np.array_equal(model, expected), f"{learner.name}'s model is not the mean"


def exact(values: int, weights: Sequence[int]) -> Model:
    """The last global model, from integers, and checked to be the weighted mean of what was not rounded, nearly."""
    model, step = initial(values), 2.0 ** (1 - PRECISION_BITS)
    for _ in range(TRAININGS):
        total, mean = np.zeros(values, np.int64), np.zeros(values)
        for i, weight in enumerate(weights):
            update = trained(model, i).astype(np.float64)
            total += weight * np.rint(update / step).astype(np.int64)
            mean += weight / sum(weights) * update
        model = (total * step / sum(weights)).astype(np.float32)
        assert np.abs(model - mean).max() < step
    return model


# --- the server, watched ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One run.

    Attributes:
        weights: How often each sample weight occurs.
        round_s: Median wall time from one training's announcement to the next one's.
        server_cpu_s: Median processor time of the server in that time, for one client; from all of its threads.
        rounds_cpu_s: The same for each training.
        bytes_up, bytes_down: Of one client in one training.
        idle_bytes: Resident memory of the server when it listens, before anyone has come.
        initial_bytes: Its peak until the first training is announced.
        peak_bytes: Its peak in the whole run.
        planned_bytes, planned_up, planned_down: As ``hefl plan`` says for these values, clients and weights.
        load: Load average of the machine over the last minute, before and after.
    """

    clients: int
    values: int
    trainings: int
    round_s: float
    server_cpu_s: float
    rounds_cpu_s: tuple[float, ...]
    bytes_up: int
    bytes_down: int
    idle_bytes: int
    initial_bytes: int
    peak_bytes: int
    planned_bytes: int
    planned_up: int
    planned_down: int
    load: tuple[float, float]


def load(folder: Path, values: int, clients: int) -> Row:
    """One run of so many clients."""
    before = os.getloadavg()[0]
    authority.create(folder / "keys", names(clients), ("127.0.0.1",))
    serve = ["--port", "0", "--rounds", str(TRAININGS), "--min-clients", str(clients)]
    clock: list[tuple[float, float]] = []
    up, down = [], []
    idle = first = peak = 0
    with (
        Children(folder) as children,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        children.start("server", "serve", str(folder / "keys" / "server"), *serve, "--round-timeout", str(PATIENCE_S))
        pid = children.pid("server")

        def stop_server(done: Future[None]) -> None:
            if error := done.exception():
                note(f"the clients failed: {error!r}")
                os.kill(pid, signal.SIGTERM)

        for _, event in children.events():
            match event["event"]:
                case "listening":
                    idle = vitals.peak_bytes(pid)
                    running = pool.submit(crowd, folder, event["url"], values, clients)
                    running.add_done_callback(stop_server)
                case "announced":
                    first = first or (vitals.peak_bytes(pid) if event["round"] else 0)
                    if event["round"]:
                        clock.append((event["read_s"], vitals.cpu_s(pid)))
                case "round" if 0 < event["round"] <= TRAININGS:
                    up.append(event["bytes_up"])
                case "download" if 0 < event["round"] <= TRAININGS:
                    down.append(event["bytes"])
                case "left":
                    peak = vitals.peak_bytes(pid)
        running.result()
    walls, cpus = ([b[k] - a[k] for a, b in itertools.pairwise(clock)] for k in (0, 1))
    plan = planned(values, clients)
    return Row(
        clients=clients,
        values=values,
        trainings=TRAININGS,
        round_s=statistics.median(walls),
        server_cpu_s=statistics.median(cpus) / clients,
        rounds_cpu_s=tuple(cpu / clients for cpu in cpus),
        bytes_up=up[-1] // clients,
        bytes_down=down[-1],
        idle_bytes=idle,
        initial_bytes=first,
        peak_bytes=peak,
        planned_bytes=plan["server_memory_bytes"],
        planned_up=plan["bytes_up"],
        planned_down=plan["bytes_down"],
        load=(before, os.getloadavg()[0]),
    )


def planned(values: int, clients: int) -> dict[str, Any]:
    """What ``hefl plan`` says."""
    told = ["--values", str(values), "--clients", str(clients), "--weights", ",".join(map(str, weights(clients)))]
    command = [sys.executable, "-m", "hefl.cli", "plan", *told, "--json"]
    plan: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return plan


if __name__ == "__main__":
    rows = []
    for count in [int(n) for n in sys.argv[1:]] or CLIENTS:
        note(f"load: {count} clients")
        with tempfile.TemporaryDirectory(prefix="hefl-load-") as name:
            rows.append(asdict(load(Path(name), VALUES, count)))
        note(json.dumps(rows[-1]))
    if not sys.argv[1:]:
        write("load", rows)
