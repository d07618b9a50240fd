"""Servers and clients that are killed, as real processes, and go on: with the model of a run that nobody disturbed."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import Command, Federation

WHO = {"alice": (10, 0.1), "bob": (25, -0.2)}
PATIENT = ("--connect-timeout", "60")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


def train(keys: Federation, folder: Path, *flags: str) -> dict[str, Command]:
    """Start both clients."""
    return {
        name: keys.client(
            name, folder / name, "--save", folder / f"{name}.npz", *PATIENT, *flags, EXAMPLES=str(count), STEP=str(step)
        )
        for name, (count, step) in WHO.items()
    }


def models(folder: Path) -> dict[str, bytes]:
    """Both clients' final models, as they are to the bit."""
    saved = {name: np.load(folder / f"{name}.npz", allow_pickle=False) for name in WHO}
    return {f"{name}/{tensor}": model[tensor].tobytes() for name, model in saved.items() for tensor in model.files}


@pytest.fixture(scope="module")
def undisturbed(keys: Federation, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with keys:
        server = keys.serve(folder / "server", "--rounds", "2")
        clients = train(keys, folder)
        assert [c.wait() for c in (*clients.values(), server)] == [0, 0, 0]
    return models(folder)


@pytest.fixture
def port() -> Iterator[int]:
    """A port that a server can have, again and again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    yield number


def run_to_the_end(keys: Federation, folder: Path, port: int, deaths: Iterator[str], limit: int) -> list[Command]:
    """Serve one run, a process after another: each dies as it is told, until one ends well."""
    keys.url = f"https://127.0.0.1:{port}"
    servers: list[Command] = []
    clients: dict[str, Command] = {}
    while len(servers) < limit:
        env = {"DIE": next(deaths)}
        servers.append(keys.start_server(folder / "server", "--rounds", "2", port=port, module="dying", **env))
        clients = clients or train(keys, folder)
        code = servers[-1].wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL, servers[-1].error
    assert servers[-1].wait() == 0
    assert [c.wait() for c in clients.values()] == [0, 0], [c.error for c in clients.values()]
    return servers


def events_of(servers: list[Command]) -> list[dict[str, Any]]:
    return [event for server in servers for event in server.events]


def once_and_in_order(deaths: list[str]) -> Iterator[str]:
    yield from deaths
    while True:
        yield "after Nothing 1"


def always(death: str) -> Iterator[str]:
    while True:
        yield death


def test_a_server_that_is_killed_goes_on_in_the_round_it_was_in(
    keys: Federation, undisturbed: Mapping[str, bytes], tmp_path: Path, port: int
) -> None:
    deaths = ["after Announced 2", "before Committed 2", "after Closed 1", "before Published 2", "after Published 1"]
    with keys:
        servers = run_to_the_end(keys, tmp_path, port, once_and_in_order(deaths), 10)
    assert len(servers) == len(deaths) + 1
    assert models(tmp_path) == undisturbed
    assert "resumed run" in servers[-1].error
    attempts = {(e["round"], e["attempt"]) for e in events_of(servers) if e["event"] == "announced"}
    assert all(attempt == 1 for _, attempt in attempts)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("death", ["after * 1", "before * 2"])
def test_a_server_that_is_killed_at_every_write_of_its_journal_in_turn_trains_the_same_model(
    keys: Federation, undisturbed: Mapping[str, bytes], tmp_path: Path, port: int, death: str
) -> None:
    """Each process makes one write: it dies when that is durable, or before the next one is."""
    with keys:
        servers = run_to_the_end(keys, tmp_path, port, always(death), 60)
    assert len(servers) > 20
    assert models(tmp_path) == undisturbed
