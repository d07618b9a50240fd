from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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


# --- what root gave to another user -----------------------------------------------------------------------------------

USER, GROUP = 23_456, 34_567

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that any user may enter; pytest's own is for root alone."""
    with tempfile.TemporaryDirectory(prefix="hefl-files-") as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


def read_as_user(path: Path) -> str:
    """What a process of a user without a name, with one further group, reads there; or why not."""
    ours, its = os.pipe()
    child = os.fork()
    if child == 0:
        read = b"died"
        try:
            os.setgroups([GROUP])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            read = read_private(path, 100)
        except KeyFileError as error:
            read = f"{error.message}; {error.hint}".encode()
        finally:
            os.write(its, read)
            os._exit(0)
    os.close(its)
    with os.fdopen(ours, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


def give(path: Path, mode: int, owner: int = 0, group: int = GROUP) -> Path:
    path.write_bytes(b"secret")
    os.chown(path, owner, group)
    path.chmod(mode)
    return path


@only_root
@pytest.mark.parametrize(
    ("mode", "owner", "said"),
    [
        (0o440, 0, "secret"),
        (0o640, 0, "secret"),
        (0o400, USER, "secret"),
        (0o600, USER, "secret"),
        (0o460, 0, "may be read by others"),
        (0o450, 0, "may be read by others"),
        (0o444, 0, "may be read by others"),
        (0o440, USER, "may be read by others"),
        (0o440, USER + 1, "may be read by others"),
        (0o400, 0, "cannot be read: permission denied; this process runs as user 23456, and the file is user 0's"),
    ],
)
def test_a_group_may_read_what_is_roots_and_nothing_else(place: Path, mode: int, owner: int, said: str) -> None:
    assert said in read_as_user(give(place / "key", mode, owner))


def links(place: Path, folder_mode: int, *, target: str = "..data/key", owner: int = 0) -> Path:
    """A Secret's layout in a folder of this mode; its first link has an owner."""
    folder = place / "secret"
    (folder / "..one").mkdir(parents=True)
    give(folder / "..one/key", 0o440)
    give(place / "key", 0o440)
    (folder / "..data").symlink_to("..one")
    (folder / "key").symlink_to(target)
    os.chown(folder / "key", owner, owner, follow_symlinks=False)
    folder.chmod(folder_mode)
    return folder / "key"


@only_root
@pytest.mark.parametrize("mode", [0o755, 0o1777, 0o3777])
def test_links_that_root_laid_in_a_folder_where_only_root_can_change_them_are_followed(place: Path, mode: int) -> None:
    assert read_as_user(links(place, mode)) == "secret"


@only_root
@pytest.mark.parametrize(
    ("mode", "target", "owner"),
    [
        (0o777, "..data/key", 0),
        (0o775, "..data/key", 0),
        (0o1777, "..data/key", USER),
        (0o1777, "..data/key", USER + 1),
        (0o755, "../key", 0),
        (0o755, "..data/../../key", 0),
        (0o755, "{place}/key", 0),
        (0o755, "{place}/secret/..one/key", 0),
        (0o755, "key", 0),
    ],
)
def test_other_links_are_not(place: Path, mode: int, target: str, owner: int) -> None:
    path = links(place, mode, target=target.format(place=place), owner=owner)
    assert "links are not followed" in read_as_user(path)


@only_root
def test_a_link_to_what_is_another_users_is_not_followed(place: Path) -> None:
    path = links(place, 0o1777)
    os.chown(path.parent / "..one", USER + 1, USER + 1)
    assert "links are not followed" in read_as_user(path)
