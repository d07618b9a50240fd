"""Clients that do not have what the others have, as real processes: they say so, get it if they can, and all end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from builders import saved
from federation import Federation

from hefl.params import SILENT_S

SCRIPT = {"trainer": "trainers:Scripted", "LOSSES": "3,4,4,4,4,4,4,4,4"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


def test_a_client_that_skipped_a_sum_does_not_confirm_the_others_model(keys: Federation, tmp_path: Path) -> None:
    """Its next update is of other ranges, so that no later sum brings them together again."""
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3")
        flags = ("--on-tamper", "skip", "--save", tmp_path / "alice.npz")
        alice = keys.client("alice", tmp_path / "alice", *flags, module="misbehaving_client", FAULT="disbelief 2")
        bob = keys.client("bob", tmp_path / "bob", "--save", tmp_path / "bob.npz")
        assert [c.wait() for c in (alice, bob, server)] == [0, 0, 0], alice.error
    assert saved(tmp_path / "alice.npz") != saved(tmp_path / "bob.npz")
    assert "hefl: this client's model is not the last one" in alice.err
    assert "hefl: the model is not confirmed by alice" in bob.err
    assert "confirmed" not in alice.error
    assert server.events[-1]["lacking"] == ["alice"]


@pytest.mark.slow
@pytest.mark.parametrize("useless", [1, 2])
def test_a_client_that_comes_after_a_useless_round_has_the_model_of_before_and_as_much_patience(
    keys: Federation, tmp_path: Path, useless: int
) -> None:
    """Otherwise it could not train, and with two clients the run would never go on."""
    flags, script = ("--patience", "2"), {**SCRIPT, "LOSSES": "9,8,7,6,5,4,3"}
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "4")
        alice = keys.client("alice", tmp_path / "alice", "--save", tmp_path / "alice.npz", *flags, **script)
        fault = {"module": "misbehaving_client", "FAULT": f"noise {useless}", "GATE_ROUND": str(useless + 1)}
        bob = keys.client("bob", tmp_path / "bob", *flags, GATE=str(tmp_path / "never"), **fault, **script)
        server.until(f"round {useless + 1}, attempt 1")
        bob.until(f"round {useless} changes nothing")
        bob.child.kill()
        bob.wait()
        time.sleep(SILENT_S)
        fresh = keys.client("bob", tmp_path / "fresh", "--save", tmp_path / "bob.npz", *flags, **script)
        assert [c.wait() for c in (alice, fresh, server)] == [0, 0, 0], fresh.error
    assert f"round {useless} changes nothing" in fresh.error
    assert "was missed" not in fresh.error
    assert server.events[-1] == {"event": "ended", "rounds": 4, "lacking": []}
    assert saved(tmp_path / "alice.npz") == saved(tmp_path / "bob.npz")
    assert "hefl: the model is confirmed by bob" in alice.err


@pytest.mark.slow
def test_clients_that_disagree_on_whether_they_have_had_enough_come_to_an_end(keys: Federation, tmp_path: Path) -> None:
    """Alice skipped a sum, and counts other rounds than bob."""
    flags = ("--patience", "1")
    script = {**SCRIPT, "LOSSES": "3,2.5,2,1.9,1.8,1.7"}
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "5", "--round-timeout", "4")
        fault = {"module": "misbehaving_client", "FAULT": "disbelief 2"}
        alice = keys.client("alice", tmp_path / "alice", "--on-tamper", "skip", *flags, **fault, **script)
        bob = keys.client("bob", tmp_path / "bob", *flags, **script)
        assert [c.wait() for c in (alice, bob, server)] == [0, 0, 0], server.error
    attempts = [e["attempt"] for e in server.events if e["event"] == "announced" and e["exchange"] == "training"]
    assert max(attempts) == 2
    assert (
        "round 3: alice had enough, and the others not: the deadline passed, and only a sum with alice may"
        in server.error
    )
    assert "this client did not decide so" in bob.error
