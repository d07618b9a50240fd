"""Servers and clients that are killed, as real processes, and go on: with the model of a run that nobody disturbed."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import saved
from federation import Command, Federation, free_port

WHO = {"alice": (10, 0.1), "bob": (25, -0.2)}
PATIENT = ("--connect-timeout", "60")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


def train(keys: Federation, folder: Path, *flags: str, only: str = "", **script: str) -> dict[str, Command]:
    """Start both clients, or one."""
    return {
        name: keys.client(
            name,
            folder / name,
            "--save",
            folder / f"{name}.npz",
            *PATIENT,
            *flags,
            **{"EXAMPLES": str(count), "STEP": str(step), **script},
        )
        for name, (count, step) in WHO.items()
        if only in ("", name)
    }


def models(folder: Path) -> dict[str, bytes]:
    """Both clients' final models, as they are to the bit."""
    return {f"{name}/{tensor}": data for name in WHO for tensor, data in saved(folder / f"{name}.npz").items()}


@pytest.fixture(scope="module")
def undisturbed(keys: Federation, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with keys:
        server = keys.serve(folder / "server", "--rounds", "2")
        clients = train(keys, folder)
        assert [c.wait() for c in (*clients.values(), server)] == [0, 0, 0]
    return models(folder)


@pytest.fixture
def port() -> int:
    return free_port()


def run_to_the_end(
    keys: Federation, folder: Path, port: int, deaths: Iterator[str], limit: int, **script: str
) -> tuple[list[Command], dict[str, Command]]:
    """Serve one run, a process after another: each dies as it is told, until one ends well."""
    folder.mkdir(exist_ok=True)
    rounds, flags = ("9", ("--patience", "2")) if script else ("2", ())
    keys.url = f"https://127.0.0.1:{port}"
    servers: list[Command] = []
    clients: dict[str, Command] = {}
    while len(servers) < limit:
        death = next(deaths)
        servers.append(
            keys.start_server(folder / "server", "--rounds", rounds, port=port, module="crashing_server", DIE=death)
        )
        clients = clients or train(keys, folder, *flags, **script)
        code = servers[-1].wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL, servers[-1].error
    assert servers[-1].wait() == 0
    assert [c.wait() for c in clients.values()] == [0, 0], [c.error for c in clients.values()]
    return servers, clients


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
        servers, clients = run_to_the_end(keys, tmp_path, port, once_and_in_order(deaths), 10)
    assert len(servers) == len(deaths) + 1
    assert models(tmp_path) == undisturbed
    assert "resumed run" in servers[-1].error
    # Whose answer was lost hears that its update is in all the same.
    assert not any("was missed" in client.error for client in clients.values())
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
        servers, _ = run_to_the_end(keys, tmp_path, port, always(death), 60)
    assert len(servers) > 20
    assert models(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("death", ["after * 1", "before * 2"])
def test_a_server_that_is_killed_at_every_write_ends_a_run_when_its_clients_have_enough(
    keys: Federation, tmp_path: Path, port: int, death: str
) -> None:
    """Also of what they say in place of an update."""
    script = {"trainer": "trainers:Scripted", "LOSSES": "5,4,6,7,8,9,9,9"}
    with keys:
        calm = run_to_the_end(keys, tmp_path / "calm", port, always("after Nothing 1"), 1, **script)[0]
        assert calm[0].events[-1]["rounds"] == 4
        servers, clients = run_to_the_end(keys, tmp_path / "killed", port, always(death), 60, **script)
    assert len(servers) > 20
    assert all("hefl: stopped after round 4 of 9" in client.error for client in clients.values())
    assert models(tmp_path / "killed") == models(tmp_path / "calm")


def test_a_client_that_is_killed_at_every_point_of_a_round_rejoins_and_the_model_is_the_same(
    keys: Federation, undisturbed: Mapping[str, bytes], tmp_path: Path
) -> None:
    """The second training is slow: the client dies in it, and then right after its update is in."""
    flags = ("--save", tmp_path / "alice.npz", *PATIENT)
    own = {"EXAMPLES": "10", "STEP": "0.1"}
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2")
        alice = keys.client("alice", tmp_path / "alice", *flags, trainer="trainers:Slow", SLEEP="60", **own)
        bob = train(keys, tmp_path, only="bob")["bob"]
        server.until("round 2, attempt 1")
        server.until("round 2: update of bob is in")
        alice.child.kill()
        alice.wait()
        again = keys.client("alice", tmp_path / "alice", *flags, module="crashing_client", DIE="sent 2", **own)
        assert again.wait() == -signal.SIGKILL, again.error
        last = keys.client("alice", tmp_path / "alice", *flags, **own)
        assert [c.wait() for c in (last, bob, server)] == [0, 0, 0], last.error
    assert models(tmp_path) == undisturbed
    rounds = {e["round"]: (e["in"], e["missed"]) for e in server.events if e["event"] == "round"}
    assert rounds[2] == (["alice", "bob"], [])
    assert all(e["attempt"] == 1 for e in server.events if e["event"] == "announced" and e["round"] == 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "number"), [("join", 0), *((p, n) for p in ("encrypted", "sent", "accepted") for n in range(4))]
)
def test_a_client_that_is_killed_at_any_step_of_any_round_rejoins_and_the_model_is_the_same(
    keys: Federation, undisturbed: Mapping[str, bytes], tmp_path: Path, point: str, number: int
) -> None:
    flags = ("--save", tmp_path / "alice.npz", *PATIENT)
    own = {"EXAMPLES": "10", "STEP": "0.1"}
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2")
        alice = keys.client(
            "alice", tmp_path / "alice", *flags, module="crashing_client", DIE=f"{point} {number}", **own
        )
        bob = train(keys, tmp_path, only="bob")["bob"]
        assert alice.wait() == -signal.SIGKILL, alice.error
        last = keys.client("alice", tmp_path / "alice", *flags, "--force", **own)
        assert [c.wait() for c in (last, bob, server)] == [0, 0, 0], last.error
    assert models(tmp_path) == undisturbed


def test_a_restart_past_the_deadline_opens_a_new_attempt(keys: Federation, tmp_path: Path, port: int) -> None:
    flags = ("--rounds", "2", "--round-timeout", "4")
    keys.url = f"https://127.0.0.1:{port}"
    with keys:
        first = keys.start_server(
            tmp_path / "server", *flags, port=port, module="crashing_server", DIE="after Committed 2"
        )
        clients = train(keys, tmp_path)
        assert first.wait() == -signal.SIGKILL
        status = keys.run("status", tmp_path / "server", "--json")
        assert status.wait() == 0
        (before,) = status.events
        assert (before["state"], before["round"], len(before["in"]), len(before["awaited"])) == ("collecting", 1, 1, 1)
        time.sleep(max(0.0, before["deadline_s"]) + 0.2)
        second = keys.start_server(tmp_path / "server", *flags, port=port)
        assert [c.wait() for c in (*clients.values(), second)] == [0, 0, 0], second.error
    assert "in round 1, attempt 1: 1 of 2 updates are in" in second.error
    assert "its deadline passed while the server was away" in second.error
    opened = [(e["round"], e["attempt"]) for e in second.events if e["event"] == "announced"]
    assert opened[0] == (1, 2)


@pytest.mark.parametrize("copied", [pytest.param("after Joined 1", marks=pytest.mark.slow), "after Published 1"])
def test_clients_that_go_on_notice_a_server_that_was_set_back_to_an_older_copy(
    keys: Federation, tmp_path: Path, port: int, copied: str
) -> None:
    state, copy = tmp_path / "server", tmp_path / "copy"
    keys.url = f"https://127.0.0.1:{port}"
    with keys:
        first = keys.start_server(state, "--rounds", "9", port=port, module="crashing_server", DIE=copied)
        clients = train(keys, tmp_path)
        assert first.wait() == -signal.SIGKILL
        shutil.copytree(state, copy)
        second = keys.start_server(state, "--rounds", "9", port=port, module="crashing_server", DIE="after Announced 3")
        assert second.wait() == -signal.SIGKILL
        shutil.rmtree(state)
        copy.rename(state)
        third = keys.start_server(state, "--rounds", "9", port=port)
        assert [c.wait() for c in clients.values()] == [4, 4], [c.error for c in clients.values()]
        assert third.child.poll() is None
    for client in clients.values():
        assert "the server was set back, or shows its clients different histories" in client.error


def test_sigterm_leaves_a_run_that_goes_on(
    keys: Federation, undisturbed: Mapping[str, bytes], tmp_path: Path, port: int
) -> None:
    keys.url = f"https://127.0.0.1:{port}"
    with keys:
        first = keys.start_server(tmp_path / "server", "--rounds", "2", port=port)
        clients = train(keys, tmp_path)
        first.until("round 1: update of")
        first.child.send_signal(signal.SIGTERM)
        assert first.wait() == 0
        second = keys.start_server(tmp_path / "server", "--rounds", "2", port=port)
        assert [c.wait() for c in (*clients.values(), second)] == [0, 0, 0], second.error
    assert models(tmp_path) == undisturbed


def test_a_run_is_refused_where_a_file_that_its_journal_names_is_damaged_or_gone(
    keys: Federation, tmp_path: Path, port: int
) -> None:
    keys.url = f"https://127.0.0.1:{port}"
    with keys:
        first = keys.start_server(
            tmp_path / "server", "--rounds", "2", port=port, module="crashing_server", DIE="after Committed 2"
        )
        train(keys, tmp_path)
        assert first.wait() == -signal.SIGKILL
        (update,) = (tmp_path / "server/updates").iterdir()
        (aggregate,) = (tmp_path / "server/aggregates").iterdir()
        (tmp_path / "server/updates" / ("00" * 32)).write_bytes(b"nobody's")
        for path in (update, aggregate):
            data = path.read_bytes()
            for damaged in (data[:-1], data[:500] + bytes([data[500] ^ 1]) + data[501:], None):
                path.unlink()
                if damaged is not None:
                    path.write_bytes(damaged)
                again = keys.start_server(tmp_path / "server", "--rounds", "2", port=port)
                assert again.wait() == 1
                assert path.name in again.error
                assert "damaged" in again.error or "cannot be read" in again.error
                path.write_bytes(data)
        assert [path.name for path in (tmp_path / "server/updates").iterdir()] == [update.name]
        other = keys.start_server(tmp_path / "server", "--rounds", "2", "--precision", "16", port=port)
        assert other.wait() == 3
        assert "a run with precision 24, and not 16" in other.error
