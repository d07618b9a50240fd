"""Commands as in a container: a user without a name and a home, a read-only file system, keys mounted like Secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent

USER, GROUP = 23_456, 34_567
"""No user of this machine's, and a group that files are mounted for."""

ISOLATE = """
number=0
for place in $NEEDED; do
    number=$((number + 1))
    mkdir -p "$ASIDE/$number"
    mount --bind "$place" "$ASIDE/$number"
done
for closed in $CLOSED; do mount -t tmpfs -o mode=755 none "$closed"; done
number=0
for place in $NEEDED; do
    number=$((number + 1))
    mkdir -p "$place"
    mount --bind "$ASIDE/$number" "$place"
done
for place in $WRITABLE; do mount --bind "$place" "$place"; done
mount -o remount,bind,ro /
exec "$@"
"""
"""In a namespace of mounts all is read-only but some folders. Python and hefl are there, also from closed ones."""


class Container:
    """Runs commands as in a container.

    Args:
        folder: A new one, which any user may enter; has ``state`` and ``tmp``, which alone can be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self.tmp, aside = (folder / name for name in ("state", "tmp", "aside"))
        for place in (self.state, self.tmp, aside):
            place.mkdir()
            place.chmod(0o777)  # as an emptyDir of Kubernetes: it is root's, and not sticky

    def command(self, *variables: str, user: int = USER, group: int = GROUP) -> Sequence[str]:
        """What goes before a command."""
        needed = [Path(sys.base_prefix), Path(sys.prefix), HERE.parents[1]]
        given = {
            "NEEDED": " ".join(map(str, needed)),
            "CLOSED": " ".join({str(found) for place in needed if (found := outermost_closed(place))}),
            "ASIDE": self.folder / "aside",
            "WRITABLE": f"{self.state} {self.tmp}",
            "TMPDIR": self.tmp,
        }
        return [
            *("env", "-u", "HOME", *(f"{name}={value}" for name, value in given.items()), *variables),
            *("unshare", "--mount", "--propagation", "private", "sh", "-euc", ISOLATE, "sh"),
            *("setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={group}", "--no-new-privs"),
        ]

    def works(self) -> bool:
        """Whether this machine allows it: root, with namespaces."""
        if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
            return False
        ask = [*self.command(), sys.executable, "-c", "import hefl.cli"]
        return subprocess.run(ask, cwd="/", capture_output=True).returncode == 0


def outermost_closed(place: Path) -> Path | None:
    """The outermost folder above a place that not every user may enter."""
    return next((folder for folder in reversed(place.parents) if not folder.stat().st_mode & 0o001), None)


def as_secret(source: Path, target: Path, mode: int = 0o440, group: int = GROUP) -> Path:
    """A party's folder as Kubernetes mounts a Secret of its files, or mounts it anew.

    They are root's, for a group to read, in a folder of their version. Links lead there by a link, which is exchanged.
    """
    target.mkdir(parents=True, exist_ok=True)
    target.chmod(0o1777)
    version = Path(tempfile.mkdtemp(prefix="..2026_01_02_03_04_05.", dir=target))
    version.chmod(0o755)
    for file in source.iterdir():
        if file.is_file():
            copy = version / file.name
            shutil.copyfile(file, copy)
            os.chown(copy, 0, group)
            copy.chmod(mode)
            if not (link := target / file.name).is_symlink():
                link.symlink_to(Path("..data") / file.name)
    (target / "..data_tmp").symlink_to(version.name)
    (target / "..data_tmp").replace(target / "..data")
    return target


def owned(folder: Path) -> Iterator[Path]:
    """A folder and all that is in it."""
    yield folder
    yield from folder.rglob("*")
