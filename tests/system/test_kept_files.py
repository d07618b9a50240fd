"""What is in a folder or a file already: a party takes only what is its own, and knows it again after a crash."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from builders import steps
from federation import Federation

from hefl.client.global_model import GlobalModel
from hefl.client.kept_models import BestModel
from hefl.client.state import ClientState
from hefl.files import state_folder
from hefl.models.layout import describe

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


def somebodys(folder: Path, name: str, data: bytes = b"dear") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    folder.chmod(0o755)
    return folder


def test_a_party_does_not_take_anothers_folder(keys: Federation, states: Path, tmp_path: Path) -> None:
    """A party removes from its folder what it does not need any more."""
    database = tmp_path / "database/journal.sqlite"
    database.parent.mkdir()
    with closing(sqlite3.connect(database)) as made:
        made.execute("CREATE TABLE mine (dear TEXT)")
    linked = somebodys(tmp_path / "linked to", "report")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/uploads").symlink_to(linked)
    shared = tmp_path / "for all"
    shared.mkdir()
    shared.chmod(0o1777)
    with keys:
        keys.url = "https://127.0.0.1:1"
        for folder, who in [
            (states / "server", "client"),
            (states / "alice", "server"),
            (somebodys(tmp_path / "updates", "updates/mine.txt"), "server"),
            (somebodys(tmp_path / "bin", "update.bin"), "client"),
            (somebodys(tmp_path / "session", "session.json", b'{"user": "dear"}'), "client"),
            (database.parent, "server"),
            (tmp_path / "linked", "server"),
            (shared, "client"),
        ]:
            before = tree(tmp_path), tree(states)
            command = keys.start_server(folder, port=0) if who == "server" else keys.client("alice", folder)
            assert command.wait() == 1, command.error
            refusal = "is a folder for everybody" if folder == shared else "is no state folder of this party"
            assert refusal in command.error
            assert "--state" in command.error
            assert (tree(tmp_path), tree(states)) == before


def test_a_new_an_empty_and_an_own_folder_are_taken(tmp_path: Path) -> None:
    def is_mark(path: Path) -> bool:
        return path.read_bytes() == b"mine"

    state_folder(tmp_path / "new", "mark", is_mark)
    (tmp_path / "empty/lost+found").mkdir(parents=True)
    (tmp_path / "empty/lock").touch()  # of a start that was killed at once
    (tmp_path / "empty/.mark.part").touch()
    (tmp_path / "own").mkdir()
    for name in ("mark", "other"):
        (tmp_path / "own" / name).write_bytes(b"mine")
    for name in ("empty", "own"):
        assert state_folder(tmp_path / name, "mark", is_mark).stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_what_somebody_put_beside_a_clients_models_stays_and_is_in_nobodys_way(
    keys: Federation, states: Path, tmp_path: Path
) -> None:
    shutil.copytree(states / "bob", tmp_path / "bob")
    for name in ("notes.json", "0000000001 (copy).json"):
        (tmp_path / "bob/aggregates" / name).write_bytes(b"dear")
    with keys:
        shown = keys.run("export", keys.folder / "clients/bob", "--state", tmp_path / "bob", "--to", tmp_path / "m.npz")
        assert shown.wait() == 0, shown.error
        server = keys.serve(tmp_path / "server", "--rounds", "2")
        bob = keys.client("bob", tmp_path / "bob", "--keep", "1")
        alice = keys.client("alice", tmp_path / "alice")
        assert [c.wait() for c in (alice, bob, server)] == [0, 0, 0], bob.error
    kept = sorted(path.name for path in (tmp_path / "bob/aggregates").iterdir())
    ours = [f"0000000002.{suffix}" for suffix in ("agg", "json", "layout")]
    assert kept == ["0000000001 (copy).json", *ours, "notes.json"]


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


class Killed(BaseException):
    """Nothing is done after it, as after SIGKILL."""


def test_a_client_knows_its_own_file_and_how_good_it_is_whenever_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [np.arange(3.0)]
    layout, path = describe(arrays, ["loss"]), tmp_path / "best.npz"
    state = ClientState(tmp_path)
    BestModel(state, path).write(GlobalModel(1, arrays), layout, 3.0)

    def write(loss: float, dies_at: str | None) -> None:
        """In a process of its own, which may die before or after the file takes its place."""
        with monkeypatch.context() as patch, suppress(Killed):
            if dies_at:
                original = Path.replace

                def replace(self: Path, target: Path) -> Path:
                    if target == path and dies_at == "before":
                        raise Killed
                    moved = original(self, target)
                    if target == path:
                        raise Killed
                    return moved

                patch.setattr(Path, "replace", replace)
            BestModel(ClientState(tmp_path), path).write(GlobalModel(2, arrays), layout, loss)

    for loss, dies_at, expected in [
        (2.5, "before", 3.0),
        (2.4, "before", 3.0),
        (2.3, "after", 2.3),
        (2.2, "before", 2.3),
        (2.1, "after", 2.1),
        (2.0, None, 2.0),
    ]:
        write(loss, dies_at)
        again = ClientState(tmp_path)
        assert again.claim(path)
        assert BestModel(again, path).loss == expected
    path.write_bytes(path.read_bytes())  # the same, and somebody else's
    assert not ClientState(tmp_path).claim(path)


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
            alice = keys.client("alice", tmp_path / "alice", *flags, module="crashing_client", DIE=death, **own)
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
