"""A full disk, at the server or at a client: clear words, nothing lost, and the run goes on once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from federation import Command, Federation

WIDE = {"WIDTH": "20000"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte of room; returns what takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return filler


def train(keys: Federation, folder: Path, state: Path | None = None) -> list[Command]:
    """Two clients; bob takes his time in round 2, so that a test can fill a disk before his update is there."""
    return [
        keys.client(
            name,
            state if state and name == "bob" else folder / name,
            "--save",
            folder / f"{name}.npz",
            "--force",
            trainer=trainer,
            **WIDE,
            SLEEP="4",
        )
        for name, trainer in (("alice", "trainers:Drift"), ("bob", "trainers:Slow"))
    ]


def check_models(folder: Path, rounds: int) -> None:
    """Both have what numpy makes of it."""
    weight, bias = 0.5, 0.0
    for _ in range(rounds):
        weight, bias = weight * 0.5 + 1, bias + 1 / 3
    for name in ("alice", "bob"):
        model = np.load(folder / f"{name}.npz", allow_pickle=False)
        np.testing.assert_allclose(model["layer.weight"], weight, rtol=0, atol=1e-6)
        np.testing.assert_allclose(model["layer.bias"], bias, rtol=0, atol=1e-6)
        assert model["steps"] == 7 + rounds


def test_a_full_disk_at_the_server_refuses_an_upload_and_takes_it_once_there_is_room(
    keys: Federation, tmp_path: Path, disk: Path
) -> None:
    with keys:
        server = keys.serve(disk / "server", "--rounds", "3", "--join-wait", "0")
        clients = train(keys, tmp_path)
        server.until("round 2: update of alice is in")
        filler = fill(disk)
        clients[1].until("cannot do it now")
        assert "no space left on the disk" in clients[1].error
        assert server.child.poll() is None
        filler.unlink()
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0], server.error
    assert "Traceback" not in server.error
    attempts = [(e["round"], e["attempt"]) for e in server.events if e["event"] == "announced"]
    assert attempts == [(number, 1) for number in range(5)]
    check_models(tmp_path, 3)


def test_a_full_disk_at_a_client_is_a_clear_error_and_its_state_stays(
    keys: Federation, tmp_path: Path, disk: Path
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3", "--join-wait", "0")
        alice, bob = train(keys, tmp_path, disk / "bob")
        server.until("round 2: update of alice is in")
        before = (disk / "bob/session.json").read_bytes()
        filler = fill(disk)
        assert bob.wait() == 1
        assert "the update cannot be stored: no space left on the disk" in bob.error
        assert "make room on the disk" in bob.error
        assert "Traceback" not in bob.error
        assert (disk / "bob/session.json").read_bytes() == before
        filler.unlink()
        again = keys.client("bob", disk / "bob", "--save", tmp_path / "bob.npz", **WIDE)
        assert [c.wait() for c in (alice, again, server)] == [0, 0, 0], again.error
    check_models(tmp_path, 3)
