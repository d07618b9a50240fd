"""Compile kernels with numba, and keep their machine code in a private folder.

numba loads its cache with pickle, so whoever can write there runs code as this user. Code is therefore kept only in
a folder of the user's own that nobody else can write or exchange, and else compiled in memory. From one that only root
or this user could write, and that cannot be written now, as in the image of a container, it is copied.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import event

from hefl.errors import KernelError

log = logging.getLogger("hefl")

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = Path(__file__).parent
_njit: Any = numba.njit
_config: Any = numba.config
_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy"}

SOURCES = (*_PACKAGE.glob("*.py"), _PACKAGE.parent / "encoding/kernels.py")
"""Where kernels are."""

KERNELS: list[str] = []
"""Every kernel's module and name; ``selftest`` must have a check for each."""


def kernel(function: F) -> F:
    """Compile a function with numba: no GIL, no bounds checks; callers check shapes.

    numba promotes uint32 * uint32 to uint64, so kernels cast every product that must wrap back to uint32. A loop
    over two slices vectorises where one over an array and two indices does not.

    Raises:
        KernelError: numba is told to compile nothing.
    """
    if _config.DISABLE_JIT:
        raise KernelError(
            "the encryption is compiled code, and NUMBA_DISABLE_JIT forbids numba to compile",
            hint="unset NUMBA_DISABLE_JIT; it may also stand as disable_jit in .numba_config.yaml",
        )
    KERNELS.append(f"{function.__module__}.{function.__name__}")
    folder = cache_folder()
    if folder is not None:
        with _numba_cache(folder):
            compiled = _njit(cache=True, **_OPTIONS)(function)
        # numba tries other folders where ours fails, and takes the user's word on which; those were not checked.
        if Path(compiled.stats.cache_path).is_relative_to(folder):
            return compiled  # type: ignore[no-any-return]  # numba's own types follow its version
        _say_uncached()
    return _njit(**_OPTIONS)(function)  # type: ignore[no-any-return]


@contextmanager
def _numba_cache(folder: Path) -> Iterator[None]:
    before, _config.CACHE_DIR = _config.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        _config.CACHE_DIR = before


@functools.cache
def cache_folder() -> Path | None:
    """Where compiled code is kept: in the user's cache, else inside the package; None where neither is safe.

    The user's cache is XDG_CACHE_HOME, or ~/.cache.

    The folder's name is a digest of the kernels' sources: numba itself does not notice a change in a kernel that
    another module's kernel calls.
    """
    sources = hashlib.sha256()
    for source in sorted(SOURCES):
        sources.update(source.read_bytes())
    name = f"kernels-{sources.hexdigest()[:16]}"
    for base in (_user_cache() / "hefl", _PACKAGE / "__pycache__"):
        if base.is_absolute() and _make_private(base / name):
            return base / name
        if base.is_absolute() and (copy := _copied(base / name)):
            return copy
    _say_uncached()
    return None


def _user_cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else _home() / ".cache"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # the user has none
        return Path()


def _make_private(folder: Path) -> bool:
    """Make the folder, mode 0700, and say whether it is this user's and safe from everybody else."""
    try:
        for part in [p for p in (folder, *folder.parents) if not p.exists()][::-1]:
            part.mkdir(mode=0o700, exist_ok=True)
        return is_private(folder) and os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    except OSError:
        return False


def _copied(folder: Path) -> Path | None:
    """A copy of a folder of compiled code that cannot be written, for this process; None where it is none or not safe.

    The copy is reached by a descriptor: whoever may rename what is in the folder for temporary files can put nothing in
    its place.
    """
    try:
        if not folder.is_dir() or not is_private(folder, of_root=True):
            return None
        made = Path(tempfile.mkdtemp(prefix="hefl-kernels-"))
        descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        copy = Path(f"/proc/self/fd/{descriptor}")
        atexit.register(_remove, made, copy)
        status = os.fstat(descriptor)
        is_ours = status.st_uid == os.geteuid() and not status.st_mode & 0o077 and not any(copy.iterdir())
        return copy if is_ours and _copy(folder, copy) else None
    except OSError:
        return None


def _copy(folder: Path, copy: Path) -> bool:
    """Copy plain files and folders that nobody but this user and root could have written; whether all are."""
    for source in sorted(folder.rglob("*")):
        status, target = source.lstat(), copy / source.relative_to(folder)
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
        if stat.S_ISDIR(status.st_mode):
            target.mkdir(mode=0o700)
        elif stat.S_ISREG(status.st_mode):
            shutil.copyfile(source, target)
        else:
            return False
    return True


def _remove(made: Path, copy: Path) -> None:
    """What is in the copy, and then the folder where it was made, if it is still there."""
    with suppress(OSError):
        for child in copy.iterdir():
            shutil.rmtree(child, ignore_errors=True)
        made.rmdir()


def is_private(folder: Path, *, of_root: bool = False) -> bool:
    """Nobody but this user (and root) can write the folder, or put another in its place.

    That is: it is this user's, or with ``of_root`` root's, and not writable by group or others, and each folder above
    it is this user's or root's, and not writable by others either, unless sticky.

    Raises:
        OSError: The folder cannot be examined.
    """
    folder, user = folder.resolve(strict=True), os.geteuid()
    status = folder.stat()
    if status.st_uid not in (user, 0 if of_root else user) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    for above in folder.parents:
        status = above.stat()
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in (user, 0) or shared:
            return False
    return True


@functools.cache
def _say_uncached() -> None:
    hint = "XDG_CACHE_HOME names a folder for it, which nobody else may write"
    log.warning(
        "no folder is safe to keep compiled code in: it is compiled in memory, at every start", extra={"hint": hint}
    )


class _Notice(event.Listener):
    """Says why a first start takes long, when numba begins to compile."""

    def on_start(self, event: Any) -> None:
        _say_compiling()

    def on_end(self, event: Any) -> None:
        pass


@functools.cache
def _say_compiling() -> None:
    log.info("compiling the encryption for this machine; this takes some seconds")


@contextmanager
def announced() -> Iterator[None]:
    """Within the block, a person who waits for a compiler sees why."""
    with event.install_listener("numba:compile", _Notice()):
        yield


def require(holds: bool, name: str) -> None:
    """Refuse a kernel whose known answers are wrong.

    Raises:
        KernelError: ``holds`` is false.
    """
    if not holds:
        raise KernelError(
            f"the compiled kernel {name!r} computes wrong values on this machine; nothing was encrypted",
            hint="delete the cache folder of hefl, and report this machine with the versions of numba and llvmlite",
        )
