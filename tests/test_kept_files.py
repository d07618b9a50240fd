"""What is in a folder or a file already: a party takes only what is its own, and knows it again after a crash."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from federation import Federation

from hefl.files import state_folder

ALL = ("alice", "bob")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", *ALL)


@pytest.fixture(scope="module")
def states(keys: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State folders of a server and its clients, after a run."""
    folder = tmp_path_factory.mktemp("states")
    with keys:
        server = keys.serve(folder / "server", "--rounds", "1")
        clients = [keys.client(name, folder / name) for name in ALL]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]
    return folder


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    paths = (folder, *folder.rglob("*"))
    return {str(p.relative_to(folder)): (p.stat().st_mode, p.read_bytes() if p.is_file() else b"") for p in paths}


def steps(path: Path) -> int:
    """Which model a file holds, as the model itself counts."""
    return int(np.load(path, allow_pickle=False)["steps"]) - 7


def test_a_party_does_not_take_anothers_folder(keys: Federation, states: Path, tmp_path: Path) -> None:
    """A party removes from its folder what it does not need any more."""
    documents = tmp_path / "documents"
    for name in ("updates/mine.txt", "aggregates/2024", "update.bin"):
        (documents / name).parent.mkdir(parents=True, exist_ok=True)
        (documents / name).write_bytes(b"dear")
    documents.chmod(0o755)
    with keys:
        for folder, is_server in [
            (states / "server", False),
            (states / "alice", True),
            *[(documents, b) for b in (0, 1)],
        ]:
            before = tree(folder)
            keys.url = "https://127.0.0.1:1"
            command = keys.start_server(folder, port=0) if is_server else keys.client("alice", folder)
            assert command.wait() == 1, command.error
            assert "is not a state folder of this party" in command.error
            assert "--state" in command.error
            assert tree(folder) == before


def test_a_new_an_empty_and_an_own_folder_are_taken(tmp_path: Path) -> None:
    state_folder(tmp_path / "new", "mark")
    (tmp_path / "empty/lost+found").mkdir(parents=True)
    (tmp_path / "empty/lock").touch()  # of a start that was killed at once
    (tmp_path / "empty/mark.part").touch()
    (tmp_path / "own").mkdir()
    for name in ("mark", "other"):
        (tmp_path / "own" / name).touch()
    for name in ("empty", "own"):
        assert state_folder(tmp_path / name, "mark").stat().st_mode & 0o777 == 0o700


def test_a_file_of_somebody_elses_in_a_servers_folder_is_not_removed(keys: Federation, tmp_path: Path) -> None:
    with keys:
        first = keys.serve(tmp_path / "server")
        first.child.terminate()
        assert first.wait() == 0
        mine = tmp_path / "server/updates/mine.txt"
        mine.write_bytes(b"dear")
        again = keys.start_server(tmp_path / "server", port=0)
        assert again.wait() == 1
        assert f"{mine} is damaged" in again.error
    assert mine.read_bytes() == b"dear"


def test_a_client_that_is_started_again_goes_on_with_its_files_and_never_replaces_the_best_model_by_a_worse_one(
    keys: Federation, tmp_path: Path
) -> None:
    best, last = tmp_path / "best.npz", tmp_path / "last.npz"
    flags = ("--save-best", best, "--save", last, "--connect-timeout", "60")
    script = {"LOSSES": "3,1,2,1.9,1.8,1.7,1.6"}
    own = {"trainer": "trainers:Scripted", **script}
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "5")
        bob = keys.client("bob", tmp_path / "bob", **own)
        # In the second life it learns that model 1 is the best, and has it only from the first.
        for death, expected in (("sent 2", 0), ("accepted 3", 1)):
            alice = keys.client("alice", tmp_path / "alice", *flags, module="dying_client", DIE=death, **own)
            assert alice.wait() == -signal.SIGKILL, alice.error
            assert steps(best) == expected
        alice = keys.client("alice", tmp_path / "alice", *flags, **own)
        assert [c.wait() for c in (alice, bob, server)] == [0, 0, 0], alice.error
        assert (steps(best), steps(last)) == (1, 5)

        longer = keys.serve(tmp_path / "server", "--rounds", "6")
        again = [keys.client("alice", tmp_path / "alice", *flags, **own), keys.client("bob", tmp_path / "bob", **own)]
        assert [c.wait() for c in (*again, longer)] == [0, 0, 0], again[0].error
        assert (steps(best), steps(last)) == (1, 6)

        # Another run may not, and what was changed is not its own any more.
        other = keys.serve(tmp_path / "other", "--rounds", "1")
        refused = keys.client("alice", tmp_path / "alice", *flags, **own)
        assert refused.wait() == 1
        assert f"{last} holds a model of the run before" in refused.error
        other.stop()
        best.write_bytes(b"dear")
        refused = keys.client("alice", tmp_path / "alice", *flags, **own)
        assert refused.wait() == 1
        assert f"{best} exists already" in refused.error
    assert (best.read_bytes(), steps(last)) == (b"dear", 6)
