from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hefl.errors import ExistsError, KeyFileError, StateError
from hefl.files import create_private, locked, private_folder, read_private, replacing, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert mode(tmp_path / "key") == 0o600
    assert (tmp_path / "key").read_bytes() == b"secret"


def test_a_private_file_never_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"old")
    with pytest.raises(ExistsError, match="exists already"):
        write_private(tmp_path / "key", b"new")
    assert (tmp_path / "key").read_bytes() == b"old"


@pytest.mark.parametrize("dangling", [False, True])
def test_a_private_file_is_never_written_through_a_link(tmp_path: Path, dangling: bool) -> None:
    if not dangling:
        (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "key").symlink_to(tmp_path / "target")
    with pytest.raises(ExistsError):
        create_private(tmp_path / "key")
    assert (tmp_path / "target").exists() is not dangling


def test_replacing_puts_a_private_file_in_place(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    path.chmod(0o644)
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)
    assert os.listdir(tmp_path) == ["model"]  # noqa: PTH208


def test_replacing_changes_nothing_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_gets_over_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".model.part").write_bytes(b"half")
    with replacing(tmp_path / "model") as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


@pytest.mark.parametrize("bit", [0o040, 0o020, 0o010, 0o004, 0o002, 0o001])
def test_a_secret_file_that_others_may_touch_is_refused_with_the_mend(tmp_path: Path, bit: int) -> None:
    path = tmp_path / "key"
    write_private(path, b"secret")
    path.chmod(0o600 | bit)
    with pytest.raises(KeyFileError, match=f"{0o600 | bit:04o}") as caught:
        read_private(path, 100)
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_secret_file_may_have_its_limit_and_not_a_byte_more(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"12345")
    assert read_private(tmp_path / "key", 5) == b"12345"
    with pytest.raises(KeyFileError, match="4 bytes"):
        read_private(tmp_path / "key", 4)


def test_a_missing_secret_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="key is missing"):
        read_private(tmp_path / "key", 5)


def test_a_secret_file_is_not_read_through_a_link(tmp_path: Path) -> None:
    write_private(tmp_path / "target", b"secret")
    (tmp_path / "key").symlink_to("target")
    with pytest.raises(KeyFileError):
        read_private(tmp_path / "key", 100)


def test_a_pipe_in_place_of_a_secret_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(KeyFileError, match="plain file"):
        read_private(tmp_path / "key", 100)


def test_a_private_folder_is_made_or_tightened(tmp_path: Path) -> None:
    path = tmp_path / "state"
    assert private_folder(path) == path
    assert mode(path) == 0o700
    path.chmod(0o755)
    private_folder(path)
    assert mode(path) == 0o700


def test_a_file_in_place_of_a_private_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(StateError, match="state"):
        private_folder(tmp_path / "state")


def test_a_folder_has_one_holder_and_is_free_after_it(tmp_path: Path) -> None:
    with locked(tmp_path, "server"), pytest.raises(StateError, match="another server"), locked(tmp_path, "server"):
        pass
    with locked(tmp_path, "server"):
        pass


def test_a_killed_holder_lets_go_of_its_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from hefl.files import locked\n"
        "with locked(Path(sys.argv[1]), 'server'): print('held', flush=True); time.sleep(60)"
    )
    # The path, because a child does not inherit what pytest put on it.
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StateError), locked(tmp_path, "server"):
            pass
        holder.send_signal(signal.SIGKILL)
    with locked(tmp_path, "server"):
        pass
