"""How a run ends, is had again by who came late, and is extended, with real processes."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest
from builders import saved
from federation import Federation, free_port

from hefl.keys import authority

ALL = ("alice", "bob", "carol")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", *ALL)


def status(keys: Federation, state: Path) -> list[str]:
    command = keys.run("status", state)
    assert command.wait() == 0
    return command.out


@pytest.mark.slow
def test_who_comes_late_or_was_killed_at_the_end_gets_the_model_all_the_same(keys: Federation, tmp_path: Path) -> None:
    """Bob dies in the last training's aftermath and comes back in time; carol comes when all is over."""
    flags = {name: ("--save", tmp_path / f"{name}.npz") for name in ALL}
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2", "--join-wait", "0", "--round-timeout", "40")
        alice = keys.client("alice", tmp_path / "alice", *flags["alice"])
        bob = keys.client("bob", tmp_path / "bob", *flags["bob"], module="crashing_client", DIE="sent 3")
        assert bob.wait() == -signal.SIGKILL
        assert alice.wait() == 0, alice.error
        assert "the model is not confirmed by bob" in alice.error
        again = keys.client("bob", tmp_path / "bob", *flags["bob"])
        assert [again.wait(), server.wait()] == [0, 0], again.error
        assert "hefl: not known to have the result: carol" in server.err
        assert server.events[-1] == {"event": "ended", "rounds": 2, "lacking": ["carol"]}
        assert status(keys, tmp_path / "server")[1:] == ["not known to have the result: carol"]

        over = keys.start_server(tmp_path / "server", port=0)
        assert over.wait() == 0
        assert "has ended already" in over.error
        assert "not known to have the result: carol" in over.error
        lingers = ("--linger", "60")
        killed = keys.start_server(
            tmp_path / "server", *lingers, port=0, module="crashing_server", DIE="after Reopened 1"
        )
        assert killed.wait() == -signal.SIGKILL
        lingering = keys.serve(tmp_path / "server", *lingers)
        late = keys.client("carol", tmp_path / "carol", *flags["carol"])
        assert [late.wait(), lingering.wait()] == [0, 0], late.error
        assert "the model is confirmed by alice, bob" in late.error
        assert lingering.events[-1] == {"event": "ended", "rounds": 2, "lacking": []}
        done = keys.start_server(tmp_path / "server", *lingers, port=0)
        assert done.wait() == 0
        assert "not known to have the result" not in done.error
    assert saved(tmp_path / "alice.npz") == saved(tmp_path / "bob.npz") == saved(tmp_path / "carol.npz")


@pytest.mark.slow
def test_an_end_without_the_last_metrics_is_no_silent_one(keys: Federation, tmp_path: Path) -> None:
    flags = ("--rounds", "1", "--join-wait", "0", "--round-timeout", "12")
    with keys:
        server = keys.serve(tmp_path / "server", *flags)
        alice = keys.client("alice", tmp_path / "alice")
        bob = keys.client("bob", tmp_path / "bob", module="crashing_client", DIE="encrypted 2")
        assert bob.wait() == -signal.SIGKILL
        assert [alice.wait(), server.wait()] == [0, 0]
    unknown = "round 2: the deadline passed with 1 of at least 2 updates in; the metrics of the last model stay unknown"
    assert f"hefl: {unknown}" in server.err
    assert "hefl: the metrics of model 1 are not known: too few clients sent theirs in the end" in alice.err
    assert server.events[-1] == {"event": "ended", "rounds": 1, "lacking": ["bob", "carol"]}


@pytest.mark.slow
def test_a_closing_round_that_a_restart_finds_past_its_deadline_has_its_time_again(
    keys: Federation, tmp_path: Path
) -> None:
    """It has no other attempt."""
    port = free_port()
    keys.url, flags = f"https://127.0.0.1:{port}", ("--rounds", "1", "--join-wait", "0", "--round-timeout", "15")
    with keys:
        server = keys.start_server(
            tmp_path / "server", *flags, port=port, module="crashing_server", DIE="after Announced 3"
        )
        clients = [keys.client(name, tmp_path / name, "--connect-timeout", "60") for name in ("alice", "bob")]
        assert server.wait() == -signal.SIGKILL
        time.sleep(15.5)  # and those who try again every few seconds come in time
        again = keys.start_server(tmp_path / "server", *flags, port=port)
        assert [c.wait() for c in (*clients, again)] == [0, 0, 0]
    assert [e["in"] for e in again.events if e["event"] == "round"] == [["alice", "bob"]]
    assert "stay unknown" not in again.error


@pytest.mark.slow
def test_a_run_is_extended_only_by_a_server_that_was_told_to_and_listens(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2", "--join-wait", "0")
        clients = [keys.client(name, tmp_path / name) for name in ("alice", "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]
        before = status(keys, tmp_path / "server")
        assert before[0].endswith("of 2 rounds: ended after round 2")

        unasked = keys.start_server(tmp_path / "server", port=0)
        assert unasked.wait() == 0
        assert "has ended already" in unasked.error
        with socket.create_server(("127.0.0.1", 0)) as taken:
            in_vain = keys.start_server(tmp_path / "server", "--rounds", "9", port=taken.getsockname()[1])
            assert in_vain.wait() == 1
        assert "is in use" in in_vain.error
        assert status(keys, tmp_path / "server") == before

        longer = keys.serve(tmp_path / "server", "--rounds", "3", "--join-wait", "0")
        assert "hefl: the run goes on from 2 to 3 trainings, rounds 4 to 4" in longer.err
        longer.child.terminate()
        assert longer.wait() == 0
        flags = ("--rounds", "4", "--join-wait", "0")
        killed = keys.start_server(
            tmp_path / "server", *flags, port=0, module="crashing_server", DIE="after Extended 1"
        )
        assert killed.wait() == -signal.SIGKILL
        on = keys.serve(tmp_path / "server", "--join-wait", "0")  # four are the run's own by now
        clients = [keys.client(name, tmp_path / name) for name in ("alice", "bob")]
        assert [c.wait() for c in (*clients, on)] == [0, 0, 0]
        # Round 3 was the closing one: what came after it started from model 2.
        assert [e["metrics_of_model"] for e in clients[0].events if e["event"] == "round"][-3:] == [2, 4, 5]
        assert status(keys, tmp_path / "server")[0].endswith("of 4 trainings, the last in round 5: ended after round 5")
        assert "the run goes on from" not in on.error


@pytest.mark.slow
def test_a_client_that_was_added_after_the_end_is_served_the_result(tmp_path: Path) -> None:
    with Federation(tmp_path / "fed", "alice", "bob") as keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1")
        clients = [keys.client(name, tmp_path / name) for name in ("alice", "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]
        authority.change(keys.folder, authority.Change(add=("dave",)))
        lingering = keys.serve(tmp_path / "server", "--linger", "60")
        late = keys.client("dave", tmp_path / "dave")
        assert [late.wait(), lingering.wait()] == [0, 0], late.error
        assert "the model is confirmed by alice, bob" in late.error


@pytest.mark.slow
def test_a_client_that_has_the_model_does_not_wait_long_for_a_server_that_has_gone(
    keys: Federation, tmp_path: Path
) -> None:
    """Only who confirms the model might still be heard from it."""
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1", "--join-wait", "0")
        alice = keys.client("alice", tmp_path / "alice", "--save", tmp_path / "alice.npz")
        bob = keys.client("bob", tmp_path / "bob", module="crashing_client", DIE="sent 2")
        assert bob.wait() == -signal.SIGKILL
        alice.until("waiting for the others to confirm it")
        server.child.kill()
        assert alice.wait() == 0, alice.error
    assert "the run is over, and this client has its model" in alice.error
    assert (tmp_path / "alice.npz").exists()
