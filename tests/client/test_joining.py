"""Who comes first with the wrong model locks nobody out, by the real commands."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from federation import Command, Federation

THREE = ("--rounds", "1", "--min-clients", "3")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob", "carol")


def waits_for(client: Command, other: str, here: int, there: int) -> None:
    """The client has said, once, whose model is another, where, and that it waits for whom."""
    client.until(f"until {other} leaves, or comes again with this client's model")
    said = [line for line in client.err if "differs" in line]
    assert said == [
        f"hefl: this client's model differs from {other}'s, who joined before: "
        f"tensor 1 is 'layer.weight' float32 (3, {here}) (parameter) here "
        f"and 'layer.weight' float32 (3, {there}) (parameter) there"
    ]


@pytest.mark.parametrize("way", ["leaves", "comes again"])
def test_who_came_first_with_the_wrong_model_locks_out_nobody_once_it_is_gone_or_right(
    keys: Federation, tmp_path: Path, way: str
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", *THREE)
        wrong = keys.client("alice", tmp_path / "alice", WIDTH="5")
        server.until("alice joined")
        others = [keys.client(name, tmp_path / name) for name in ("bob", "carol")]
        for other in others:
            waits_for(other, "alice", 4, 5)
        wrong.child.send_signal(signal.SIGINT if way == "leaves" else signal.SIGKILL)
        wrong.wait()
        right = keys.client("alice", tmp_path / "alice")
        assert [c.wait() for c in (right, *others, server)] == [0, 0, 0, 0], [c.error for c in (right, *others)]
    for other in others:
        assert sum("differs" in line for line in other.err) == 1
    refused = [line for line in server.err if "another layout than alice's" in line]
    assert len(refused) == 2  # of each once, however often it asks
    assert not any("layer" in line for line in server.err)  # the server learns that they differ, and not how


def test_who_comes_with_another_model_once_a_round_is_over_is_refused_at_once(keys: Federation, tmp_path: Path) -> None:
    script = {"trainer": "trainers:Scripted", "LOSSES": "1,1", "GATE_ROUND": "1", "GATE": str(tmp_path / "gate")}
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1", "--join-wait", "0")
        others = [keys.client(name, tmp_path / name, **script) for name in ("alice", "bob")]
        server.until('"event": "round"')
        late = keys.client("carol", tmp_path / "carol", WIDTH="5")
        assert late.wait() == 3
        assert "who joined before: tensor 1 is" in late.error
        assert "; this run has begun with" in late.err[-1]
        assert "waiting" not in late.error
        (tmp_path / "gate").touch()
        assert [c.wait() for c in (*others, server)] == [0, 0, 0]
