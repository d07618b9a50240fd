"""A server and clients run from Python as from the command line, where a loop runs already too."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import saved
from federation import Federation
from trainers import Drift

import hefl
from hefl.client.start import Outcome
from hefl.errors import UnreachableError, UsageError


def trainer(num_examples: int, step: float) -> Drift:
    made = Drift()
    made.num_examples, made.step = num_examples, step
    return made


async def in_a_notebook(folder: Path, model: Drift, options: hefl.ClientOptions) -> Outcome:
    return hefl.take_part(folder, model, options)


def test_a_federation_runs_from_python(tmp_path: Path) -> None:
    """One client's thread has a running loop, as a notebook's has."""
    keys = Federation(tmp_path / "fed", "alice", "bob")
    events: queue.Queue[Mapping[str, Any]] = queue.Queue()
    reports: list[hefl.RoundReport] = []
    alice, bob = trainer(10, 0.5), trainer(30, -0.25)
    with ThreadPoolExecutor(3) as pool:
        options = hefl.ServerOptions(rounds=2, port=0, page_port=0, state=tmp_path / "run")
        serving = pool.submit(hefl.serve, keys.folder / "server", options, on_event=events.put)
        url = next(event["url"] for event in iter(events.get, None) if event["event"] == "listening")
        of_alice = hefl.ClientOptions(server=url, save=tmp_path / "alice.npz")
        first = pool.submit(hefl.take_part, keys.folder / "clients/alice", alice, of_alice, on_round=reports.append)
        of_bob = in_a_notebook(keys.folder / "clients/bob", bob, hefl.ClientOptions(server=url))
        second = pool.submit(asyncio.run, of_bob)
        outcomes = [first.result(60), second.result(60)]
        serving.result(60)
    weight, bias = np.full((3, 4), 0.5), np.zeros(4)
    for _ in range(2):
        weight, bias = weight / 2 - 0.0625, bias - 0.0625 / 3
    for outcome in outcomes:
        assert outcome.names == ("layer.weight", "layer.bias", "steps")
        assert outcome.arrays
        for array, expected in zip(outcome.arrays, (weight, bias, np.array(9)), strict=True):
            np.testing.assert_allclose(array, expected, atol=1e-5)
    assert [(o.confirmed, o.unconfirmed) for o in outcomes] == [(("bob",), ()), (("alice",), ())]
    assert saved(tmp_path / "alice.npz").keys() == {"layer.weight", "layer.bias", "steps"}
    assert [report.round for report in reports] == [0, 1, 2, 3]
    kinds = [event["event"] for event in iter(lambda: events.get_nowait() if events.qsize() else None, None)]
    assert kinds[-1] == "ended"
    assert {"page", "joined", "round"} <= set(kinds)


def test_a_run_that_has_ended_is_said_to_have(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    keys = Federation(tmp_path / "fed", "alice", "bob")
    with keys:
        server = keys.serve(tmp_path / "run", "--rounds", "1")
        clients = [keys.client(name, tmp_path / name) for name in ("alice", "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]
    hefl.serve(keys.folder / "server", hefl.ServerOptions(state=tmp_path / "run"), on_event=events.append)
    assert [event["event"] for event in events] == ["ended"]


def test_what_does_not_fit_is_refused_as_on_the_command_line(tmp_path: Path) -> None:
    keys = Federation(tmp_path / "fed", "alice", "bob")
    with pytest.raises(UsageError, match="knows alice, bob only"):
        hefl.serve(keys.folder / "server", hefl.ServerOptions(min_clients=3, port=0))
    one = tmp_path / "model.npz"
    with pytest.raises(UsageError, match="both name"):
        hefl.take_part(keys.folder / "clients/alice", Drift(), hefl.ClientOptions(save=one, save_best=one))
    nobody = hefl.ClientOptions(server="https://127.0.0.1:1", connect_timeout_s=0)
    with pytest.raises(UnreachableError):
        hefl.take_part(keys.folder / "clients/alice", Drift(), nobody)
