"""Change a federation's folders whole or not at all, whenever the process dies.

The new files are written into ``authority/pending.part``. Renaming that to ``authority/pending`` is the moment of the
change; from then on it is carried out, by whoever comes next if need be. The caller holds the lock of ``authority``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hefl.errors import StateError
from hefl.files import replacing, storing, sync_folder, sync_tree, write_private
from hefl.keys.folders import FOLDERS

_REMOVED = "removed.json"


@contextmanager
def changing(federation: Path, removed: Sequence[str]) -> Iterator[Path]:
    """A folder to write new files into, at their places in the federation's; they take them when the block ends well.

    Args:
        federation: DIR.
        removed: Clients whose files go.

    Raises:
        StateError: A place is a link or no folder, or the disk is full; nothing has changed.
    """
    part = federation / "authority" / "pending.part"
    with storing(f"the new keys in {part}"):
        part.mkdir(mode=0o700)
        write_private(part / _REMOVED, json.dumps(list(removed)).encode())
        new = part / "new"
        new.mkdir(mode=0o700)
    try:
        with storing(f"the new keys in {part}"):
            yield new
            for folder in (p for p in new.rglob("*") if p.is_dir()):
                _check_place(federation / folder.relative_to(new))
            sync_tree(part)
            part.rename(part.with_suffix(""))
            sync_folder(part.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    settle(federation)


def settle(federation: Path) -> None:
    """Carry out a change that was made and not finished, and forget one that was not made."""
    done = federation / "authority" / "pending.part"
    shutil.rmtree(done, ignore_errors=True)
    made = done.with_suffix("")
    if not made.is_dir():
        return
    with storing(f"the new keys in {federation}"):
        for name in json.loads((made / _REMOVED).read_bytes()):
            _remove(federation / "clients" / name)
        new = made / "new"
        for path in sorted(p for p in new.rglob("*") if p.is_file()):
            place = federation / path.relative_to(new)
            _make_folders(place.parent, federation)
            with replacing(place) as file:
                file.write(path.read_bytes())
        made.rename(done)
        sync_folder(done.parent)
    shutil.rmtree(done, ignore_errors=True)


def _check_place(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise StateError(f"{folder} is a link, or no folder", hint="move it away; keygen makes the folder anew")


def _make_folders(folder: Path, federation: Path) -> None:
    for place in reversed([folder, *folder.parents]):
        if federation in place.parents and not place.is_dir():
            place.mkdir(mode=0o700)
            place.chmod(0o700)
            sync_folder(place.parent)


def _remove(folder: Path) -> None:
    """Remove a client's key files, and its folder unless something of someone else's is in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for name in FOLDERS["client"]:
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    with suppress(OSError):
        folder.rmdir()
        sync_folder(folder.parent)
