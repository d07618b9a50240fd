"""Write files whole or not at all, and read secret files that only their owner may read."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hefl.errors import DiskFullError, ExistsError, KeyFileError, StateError, reason_of

MAX_LINKS = 16
"""More in a row lead nowhere."""


def create_private(path: Path) -> BinaryIO:
    """Open a new file for writing, mode 0600, with O_EXCL: never through a link, never over another file.

    Raises:
        ExistsError: Something is at ``path`` already.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ExistsError(f"{path} exists already", hint="move it away, or name another place") from error
    os.fchmod(descriptor, 0o600)  # whatever the umask takes away
    return os.fdopen(descriptor, "wb")


def check_writable(path: Path) -> None:
    """Refuse early what could not be written in the end. Raises StateError."""
    with storing(str(path)):
        probe = path.with_name(f".{path.name}.{os.getpid()}")
        create_private(probe).close()
        probe.unlink()


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read, durably, whole or not at all.

    Raises:
        ExistsError: As create_private.
    """
    file = create_private(path)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def part_of(path: Path) -> Path:
    """What a file is called while it is written: after a crash the next writer knows what is in its way."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A private file that takes ``path``'s place, durably, when the block ends well; otherwise nothing changes.

    One writer a path: callers hold the folder's lock or own the folder.
    """
    part = part_of(path)
    part.unlink(missing_ok=True)
    try:
        with create_private(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn a broken disk into a StateError that names what was to be stored, a full one into a DiskFullError.

    Network errors pass through.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__ != "builtins":
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(what) from error
        hint = "name a place that you may write to"
        raise StateError(f"{what} cannot be stored: {reason_of(error)}", hint=hint) from error


def disk_full(what: str) -> DiskFullError:
    """What a full disk means to a user."""
    return DiskFullError(f"{what} cannot be stored: no space left on the disk", hint="make room on the disk")


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make the entries of a folder and of all folders in it durable."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)


def is_given(folder: Path) -> bool:
    """Whether root gave this user a folder, and nobody else can put anything there, as runtimes mount a secret.

    It is root's, who is not this user, or is on a read-only file system; and group and others may not write there,
    but where it is read-only, or sticky: then they cannot touch what is root's.
    """
    status, read_only = folder.stat(), bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
    return status.st_uid == 0 and (read_only or (os.geteuid() != 0 and not shared))


def _is_given_link(path: Path) -> bool:
    """Whether a link in a given folder leads to a file in it by root's links and folders alone."""
    if not path.is_symlink() or not is_given(path.parent):
        return False
    here, names = path.parent, [path.name]
    for _ in range(MAX_LINKS):
        entry = here / names.pop(0)
        if entry.lstat().st_uid != 0:
            return False
        if entry.is_symlink():
            target = entry.readlink()
            if target.is_absolute() or ".." in target.parts:
                return False
            names = [*target.parts, *names]
        elif names:
            here = entry
        else:
            return True
    return False


def read_private(path: Path, limit_bytes: int) -> bytes:
    """Read a secret file: a plain file that nobody but its owner may read, of at most limit_bytes.

    Where root gave it to this user, the group may read it too, and a link in a folder that root gave is followed as far
    as it stays there: so are Secrets of Kubernetes, which one cannot make otherwise.

    Raises:
        KeyFileError: It is missing, a link, readable by others, or too large; the message names it and the mend.
    """
    try:
        links = 0 if _is_given_link(path) else os.O_NOFOLLOW
        descriptor = os.open(path, os.O_RDONLY | links | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise KeyFileError(f"{path} is missing", hint="name a folder that 'hefl keygen' made, whole") from error
    except OSError as error:
        hint = "links are not followed" if error.errno == errno.ELOOP else _who_may(path)
        raise KeyFileError(f"{path} cannot be read: {reason_of(error)}", hint=hint) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise KeyFileError(f"{path} is not a plain file", hint="name a folder that 'hefl keygen' made, whole")
    with os.fdopen(descriptor, "rb") as file:
        read_only = os.fstatvfs(descriptor).f_flag & os.ST_RDONLY
        of_root = status.st_uid == 0 and (os.geteuid() != 0 or read_only)
        if status.st_mode & (0o037 if of_root else 0o077):
            mode = stat.S_IMODE(status.st_mode)
            raise KeyFileError(
                f"{path} may be read by others (mode {mode:04o}); only its owner may",
                hint=_MOUNTED if of_root else f"chmod 600 {path}",
            )
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise KeyFileError(f"{path} is larger than the {limit_bytes} bytes that such a file may have")
    return data


_MOUNTED = "root's files may have mode 0440 for a group of this user's, in Kubernetes by defaultMode and fsGroup"


def _who_may(path: Path) -> str:
    """Who may read a file that this user may not."""
    try:
        status = path.stat()
    except OSError:
        return f"this process runs as user {os.geteuid()}: may it enter the folder?"
    mode, who = stat.S_IMODE(status.st_mode), f"this process runs as user {os.geteuid()}"
    way = _MOUNTED if status.st_uid == 0 else "run it as the file's owner"
    return f"{who}, and the file is user {status.st_uid}'s, mode {mode:04o}: {way}"


def private_folder(path: Path) -> Path:
    """Make the folder, mode 0700, and its parents as usual; or tighten one that exists. Returns it.

    Raises:
        StateError: It cannot be made, or is not a folder of the user's.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        foreign = path.is_dir() and os.access(path, os.W_OK | os.X_OK)
        hint = f"it is another user's: name a new folder in it, --state {path / 'run'}" if foreign else None
        raise StateError(
            f"the folder {path} cannot be used: {reason_of(error)}", hint=hint or "name another with --state"
        ) from error
    return path


def state_folder(path: Path, mark: str, is_mark: Callable[[Path], bool]) -> Path:
    """A party's state, as private_folder: a new folder, one without a file, or one that bears the party's mark.

    A party removes what it does not need any more from its folder, so it takes none that is somebody else's.

    Args:
        path: The folder.
        mark: The file that such a party writes first.
        is_mark: Whether a file of that name is one of such a party's.

    Raises:
        StateError: As private_folder, or it holds other files, or is for everybody; nothing has changed.
    """
    hint = "name a new folder with --state, or the one that was used before"
    marked = path / mark
    if marked.is_file():
        if not is_mark(marked):
            raise StateError(f"{path} is no state folder of this party: its {mark} is something else", hint=hint)
        return private_folder(path)
    ours = {path / "lock", marked, part_of(marked)}
    for other in path.rglob("*"):
        if other not in ours and (other.is_symlink() or not other.is_dir()):
            what = f"it holds {other.relative_to(path)}, and no {mark}"
            raise StateError(f"{path} is no state folder of this party, and not empty: {what}", hint=hint)
    if path.is_dir() and path.stat().st_mode & stat.S_ISVTX:
        raise StateError(f"{path} is a folder for everybody", hint=hint)
    return private_folder(path)


@contextmanager
def locked(folder: Path, holder: str) -> Iterator[None]:
    """Hold an existing folder for this process alone; the kernel lets go of it if the process dies.

    Raises:
        StateError: Another process holds it.
    """
    descriptor = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(
                f"another {holder} is using {folder}",
                hint="stop it first",
            ) from error
        yield
