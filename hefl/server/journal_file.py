"""Open a journal's SQLite file, and refuse one that is damaged."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn
from urllib.parse import quote

from hefl.errors import HeflError, StateError, reason_of
from hefl.files import create_private, disk_full, storing, sync_folder
from hefl.rounds.kept_settings import ELSEWHERE

BUSY_S = 5.0
"""How long a reader and the writer may get in each other's way."""

LEAST_BYTES = 512
"""SQLite's smallest page. A shorter file is the rest of one: SQLite takes it for empty, and a run would begin anew."""


def open_file(path: Path) -> sqlite3.Connection:
    """Open a journal for its one writer, and begin it where there is none. Raises StateError where it is cut off."""
    if not path.exists():
        with storing("the run's journal"):
            create_private(path).close()
            sync_folder(path.parent)
    elif 0 < (size := path.stat().st_size) < LEAST_BYTES:
        damaged(path, f"it has {size} bytes")
    db = sqlite3.connect(path, BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        db.close()
        raise
    return db


def reader(path: Path) -> sqlite3.Connection:
    """Open a journal for reading, also while its writer has it open."""
    where = f"file:{quote(str(path.absolute()))}?mode=ro"
    return sqlite3.connect(where, BUSY_S, isolation_level=None, check_same_thread=False, uri=True)


@contextmanager
def looking(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a journal and leave nothing beside it, where SQLite would make the files that a writer has there."""
    with ExitStack() as stack:
        if not path.with_name(f"{path.name}-shm").exists():  # no server works on it, or was killed here
            try:
                folder = Path(stack.enter_context(TemporaryDirectory()))
                for file in path.parent.glob(f"{path.name}*"):
                    shutil.copyfile(file, folder / file.name)
            except OSError as error:
                raise StateError(f"{path} cannot be looked at: {reason_of(error)}") from error
            path = folder / path.name
        yield stack.enter_context(closing(reader(path)))


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what SQLite and a damaged row raise into errors that name the file."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise disk_full("the run's journal") from error
        if isinstance(error, sqlite3.OperationalError):
            raise StateError(f"{path} cannot be used: {error}") from error
        damaged(path, str(error))
    except HeflError:
        raise
    except (ValueError, TypeError, KeyError) as error:  # msgspec's are ValueErrors
        damaged(path, str(error))


def damaged(path: Path, why: str) -> NoReturn:
    """Raise the StateError that a journal cannot be used."""
    raise StateError(f"{path} is damaged: {why}", hint=f"put a whole copy of the folder in its place, or {ELSEWHERE}")
