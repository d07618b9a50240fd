"""What a person asks of ``hefl client`` beside training: where it starts, what is kept, and when it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import steps
from federation import Command, Federation
from safetensors.numpy import load_file, save_file

ALL = ("alice", "bob", "carol")
LOSSES = [5.0, 4.0, 2.0, 3.0, 2.0, 2.5, 1.5, 0.1, 9.0, 9.0]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", *ALL)


def scripted(
    keys: Federation, name: str, folder: Path, *flags: str | Path, losses: list[float] = LOSSES, **env: str
) -> Command:
    """A client whose model k has the k-th loss."""
    script = ",".join(map(str, losses))
    return keys.client(name, folder / name, *flags, trainer="trainers:Scripted", LOSSES=script, **env)


def losses_of(client: Command) -> list[float | None]:
    return [e["metrics"]["loss"] for e in client.events if e["event"] == "round" and e["round"]]


# --- early stop and the best model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["packed", "tenseal"])
def test_patience_stops_all_clients_after_the_same_round_and_the_best_model_is_kept(
    keys: Federation, tmp_path: Path, engine: str
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "9", "--engine", engine)
        clients = [
            scripted(
                keys,
                name,
                tmp_path,
                *("--engine", engine, "--patience", "3"),
                *("--save", tmp_path / f"{name}.npz", "--save-best", tmp_path / f"{name}-best.npz"),
            )
            for name in ALL
        ]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0, 0], [c.error for c in (*clients, server)]
    last = 2 + 3 + 1  # a model's loss is known a round later: model 6 turns out best when it is over
    for name, client in zip(ALL, clients, strict=True):
        assert "hefl: stopped after round 6 of 9: no better validation loss for 3 rounds" in client.err
        assert (steps(tmp_path / f"{name}.npz"), steps(tmp_path / f"{name}-best.npz")) == (last, last)
        assert losses_of(client) == pytest.approx(LOSSES[: last + 1], abs=1e-6)
        assert all(set(e["metrics"]) <= {"loss", "accuracy"} for e in client.events if e["event"] == "round")
        assert "patience 3" not in client.error
        assert "missing" not in client.error
    assert {"event": "stopped", "round": 6, "rounds": 9} in server.events
    assert server.events[-1] == {"event": "ended", "rounds": 6, "lacking": []}
    assert [e["exchange"] for e in server.events if e["event"] == "announced"][-2:] == ["training", "closing"]


def test_a_client_that_comes_late_stops_with_the_others_and_does_not_take_a_later_model_for_the_best(
    keys: Federation, tmp_path: Path
) -> None:
    losses = [1.0, 5.0, 6.0, 7.0, 8.0, *range(9, 20)]
    flags, gate = ("--patience", "6"), tmp_path / "carol is here"
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "12", "--join-wait", "0", "--min-clients", "2")
        early = [scripted(keys, n, tmp_path, *flags, losses=losses, GATE=str(gate)) for n in ("alice", "bob")]
        server.until("round 3, attempt 1")
        late = scripted(keys, "carol", tmp_path, *flags, "--save-best", tmp_path / "best.npz", losses=losses)
        server.until("carol joined")
        gate.touch()
        assert [c.wait() for c in (*early, late, server)] == [0, 0, 0, 0], [c.error for c in (*early, late, server)]
    assert [e["in"] for e in server.events if e["event"] == "round"][-1] == list(ALL)
    for client in (*early, late):
        assert "hefl: stopped after round 7 of 12: no better validation loss for 6 rounds" in client.err
    assert len(losses_of(late)) < len(losses_of(early[0]))
    # Model 0 was the best. Carol followed the sums from there on, and has it though she came later.
    with np.load(tmp_path / "best.npz", allow_pickle=False) as best:
        assert (best["layer.weight"] == 0.5).all()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--patience", "3"), "--patience 3 here and --patience 2 there"),
        ((), "no --patience here and --patience 2 there"),
    ],
)
def test_a_client_of_another_patience_is_refused_when_it_joins(
    keys: Federation, tmp_path: Path, flags: tuple[str, ...], text: str
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1", "--min-clients", "2", "--join-wait", "60")
        first = scripted(keys, "alice", tmp_path, "--patience", "2")
        first.until("joined")
        other = scripted(keys, "bob", tmp_path, *flags, "--connect-timeout", "0")
        assert other.wait() == 3
        assert other.err[1] == f"hefl: this client's model differs from alice's, who joined before: {text}"
        assert "same --patience" in other.err[2]
        assert server.child.poll() is None


def test_a_run_without_patience_trains_to_its_end_and_keeps_the_best_all_the_same(
    keys: Federation, tmp_path: Path
) -> None:
    best, losses = tmp_path / "best.safetensors", [4.0, float("nan"), 2.0, 2.0, 3.0]
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "4", "--join-wait", "0")
        clients = [
            scripted(keys, n, tmp_path, "--save-best", best.with_name(f"{n}-{best.name}"), losses=losses)
            for n in ("alice", "bob")
        ]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0], [c.error for c in clients]
    assert int(load_file(tmp_path / "bob-best.safetensors")["steps"]) - 7 == 2
    assert losses_of(clients[0]) == [pytest.approx(4), None, *[pytest.approx(n) for n in (2, 2, 3)]]
    assert "did not decide" not in clients[0].error


def test_the_last_model_can_be_the_best(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2", "--join-wait", "0")
        clients = [
            scripted(keys, n, tmp_path, "--save-best", tmp_path / f"{n}.npz", losses=[3.0, 2.0, 1.0])
            for n in ("alice", "bob")
        ]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0], [c.error for c in clients]
    assert steps(tmp_path / "alice.npz") == 2


def test_the_best_model_is_kept_as_soon_as_it_is_known(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3", "--join-wait", "0", "--round-timeout", "60")
        alice = keys.client("alice", tmp_path / "a", "--save-best", tmp_path / "best.npz")
        keys.client("bob", tmp_path / "b", trainer="trainers:Slow", SLEEP="60")
        server.until("round 2, attempt 1")
        alice.until("holds model 0, the best so far")
        assert steps(tmp_path / "best.npz") == 0


# --- where a run starts -----------------------------------------------------------------------------------------------


def model(path: Path, **changes: Any) -> Path:
    """A model of Drift's, as some other program saved it, in another order."""
    arrays: dict[str, Any] = {
        "steps": np.array(107, np.int64),
        "layer.bias": np.linspace(0, 1, 4),
        "layer.weight": np.full((3, 4), 0.25, np.float32),
    }
    if path.suffix == ".npz":
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **(arrays | changes))
    else:
        save_file(arrays | changes, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_run_starts_from_the_first_clients_file_and_says_whose_it_was(
    keys: Federation, tmp_path: Path, suffix: str
) -> None:
    start, other = model(tmp_path / f"start{suffix}"), model(tmp_path / "other.npz", steps=np.array(3))
    saved = tmp_path / f"end{suffix}"
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1")
        alice = keys.client("alice", tmp_path / "alice", "--init", start, "--save", saved, STEP="1")
        bob = keys.client("bob", tmp_path / "bob", "--init", start, STEP="1")
        carol = keys.client("carol", tmp_path / "carol", "--init", other, STEP="1")
        assert [c.wait() for c in (alice, bob, carol, server)] == [0, 0, 0, 0], alice.error
    used = f"hefl: the run starts from the model in {start}"
    assert used in alice.err
    assert used in bob.err
    assert f"hefl: --init {other} is not used: the run starts from alice's model" in carol.err
    end = dict(np.load(saved, allow_pickle=False)) if suffix == ".npz" else load_file(saved)
    assert int(end["steps"]) == 108
    np.testing.assert_allclose(end["layer.weight"], np.full((3, 4), 0.25 * 0.5 + 1), atol=1e-6)
    np.testing.assert_allclose(end["layer.bias"], np.linspace(0, 1, 4) + 1 / 3, atol=1e-6)


def test_a_model_that_does_not_fit_is_refused_before_the_server_is_asked(keys: Federation, tmp_path: Path) -> None:
    wrong = model(tmp_path / "wrong.npz", steps=np.array(1.5))
    with keys:
        client = keys.client("alice", tmp_path / "a", "--init", wrong, "--server", "https://127.0.0.1:1")
        assert client.wait() == 3
        assert client.err[1] == (
            f"hefl: the model in {wrong} is not this trainer's: "
            "'steps' is float64 () in the file, and int64 () in the trainer"
        )


# --- files that are there already -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--save", "--save-best"])
def test_an_output_that_exists_is_replaced_only_by_force(keys: Federation, tmp_path: Path, flag: str) -> None:
    (tmp_path / "model.npz").write_bytes(b"dear")
    with keys:
        where = ("--server", "https://127.0.0.1:1", "--connect-timeout", "0")
        refused = keys.client("alice", tmp_path / "a", flag, tmp_path / "model.npz", *where)
        assert refused.wait() == 1
        assert f"name another file for {flag}, or add --force" in refused.error
        forced = keys.client("alice", tmp_path / "a", flag, tmp_path / "model.npz", "--force", *where)
        assert forced.wait() == 5, forced.error
    assert (tmp_path / "model.npz").read_bytes() == b"dear"
