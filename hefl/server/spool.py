"""Files of a server's run: arriving uploads, committed updates, aggregates.

Updates and aggregates are named by their digest, and are there whole and durably before the journal names them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from hefl.errors import ConflictError, HeflError, StaleError, StateError, UnreachableError
from hefl.files import create_private, private_folder, replacing, storing, sync_folder
from hefl.params import NAME_PATTERN
from hefl.protocol import frames
from hefl.protocol.records import Record
from hefl.protocol.updates import Aggregation

_UPLOAD, _UPDATE, _AGGREGATE = map(re.compile, (NAME_PATTERN, r"[0-9a-f]{64}", r"[0-9a-f]{64}|sum|\.?sum\.part"))
"""Names that files get here; one of any other name is not removed."""


class Upload:
    """One client's update on its way in, as far as it has come.

    It outlives a connection that breaks off, and is gone when the attempt ends, or when its client begins another.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self.digest = digest
        self.held_bytes = 0
        self._turn = 0
        self._whole = self._over = False
        create_private(path).close()

    def receive(self, offset: int) -> Writing:
        """Take bytes from this offset on; what an older connection still brings is void.

        Raises:
            ConflictError: Bytes are missing before the offset.
            UnreachableError: As check_movable.
        """
        self.check_movable()
        if offset > self.held_bytes:
            raise ConflictError(f"an upload from byte {offset} on, and {self.held_bytes} bytes are here")
        self._turn += 1
        self.held_bytes = offset
        return Writing(self, self._turn)

    def check_movable(self) -> None:
        """See that its bytes may change.

        Raises:
            UnreachableError: It is whole, and being checked; or it was committed meanwhile, or dropped.
        """
        if self._over:
            raise UnreachableError("the update was committed meanwhile, or begun anew", hint="ask again")
        if self._whole:
            raise UnreachableError("an update is here and being checked", hint="ask again in a moment")

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All bytes are here: nobody may change them while they are checked and committed.

        Raises:
            UnreachableError: As check_movable: another connection has brought them too.
        """
        self.check_movable()
        self._turn, self._whole = self._turn + 1, True
        try:
            yield
        finally:
            self._whole = False

    def end(self) -> None:
        """It is an upload no more, and nobody may write to it."""
        self._turn, self._over = -1, True

    def drop(self) -> None:
        """Forget it."""
        self.end()
        self.path.unlink(missing_ok=True)


class Writing:
    """One connection's turn at an upload."""

    def __init__(self, upload: Upload, turn: int) -> None:
        self._upload = upload
        self._turn = turn
        self._file = os.fdopen(os.open(upload.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb", buffering=0)
        self._file.truncate(upload.held_bytes)
        self._file.seek(upload.held_bytes)

    def write(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            StaleError: The upload was begun anew, or its attempt is over.
            OSError: They cannot be stored.
        """
        if self._upload._turn != self._turn:
            raise StaleError("the upload goes on over another connection, or its attempt is over")
        left = memoryview(chunk)
        while left:
            count = self._file.write(left) or 0
            left = left[count:]
            self._upload.held_bytes += count

    def sync(self) -> None:
        """Make what came durable."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()


def holds_files(folder: Path) -> bool:
    """Whether a run has left updates or aggregates here."""
    return any(path.is_file() for name in ("updates", "aggregates") for path in (folder / name).glob("*"))


def arriving(folder: Path) -> Path:
    """Where uploads arrive in a run's folder; what is there when a server starts goes."""
    return folder / "uploads"


class Spool:
    """The files in a folder that the caller has locked."""

    def __init__(self, folder: Path) -> None:
        self._arriving = private_folder(arriving(folder))
        self._updates = private_folder(folder / "updates")
        self._aggregates = private_folder(folder / "aggregates")
        self._uploads: dict[str, Upload] = {}

    def check(self, updates: Iterable[str], aggregates: Iterable[str], spare: Iterable[str]) -> None:
        """At a start: remove what the journal does not name.

        Args:
            updates: Digests of the open attempt's committed updates.
            aggregates: Of those that clients need.
            spare: Of those that may be there too.

        Raises:
            StateError: A file is missing, damaged, or not of this run.
        """
        _keep(self._arriving, _UPLOAD, ())
        _keep(self._updates, _UPDATE, updates)
        _keep(self._aggregates, _AGGREGATE, {*aggregates, *spare})
        for folder, needed in ((self._updates, updates), (self._aggregates, aggregates)):
            for path in {folder / name for name in needed} | set(folder.iterdir()):
                _check_digest(path)

    # --- uploads ------------------------------------------------------------------------------------------------------

    def held_bytes(self, name: str, digest: str) -> int:
        """How much of this upload is here."""
        upload = self._uploads.get(name)
        return upload.held_bytes if upload and upload.digest == digest else 0

    def upload(self, name: str, digest: str) -> Upload:
        """A client's upload, begun or to be gone on with; of two different ones the newer stays.

        Raises:
            UnreachableError: Another one is being checked.
            StateError: It cannot be stored.
        """
        upload = self._uploads.get(name)
        if upload is None or upload.digest != digest:
            if upload:
                upload.check_movable()
                self.drop(name, upload)
            with storing("the update"):
                upload = self._uploads[name] = Upload(self._arriving / name, digest)
        return upload

    def drop(self, name: str, upload: Upload) -> None:
        """Forget what has come of a client's upload, unless another has taken its place."""
        if self._uploads.get(name) is upload:
            del self._uploads[name]
            upload.drop()

    @contextmanager
    def keeping(self, name: str) -> Iterator[None]:
        """A client's whole and durable upload as the update of its digest, which the journal may name in this block.

        Where the block fails it is an upload again, and need not travel once more.
        """
        upload = self._uploads[name]
        path = self.update(upload.digest)
        with storing("the update"):
            upload.path.replace(path)
            sync_folder(self._updates)
        try:
            yield
        except BaseException:
            path.replace(upload.path)
            raise
        del self._uploads[name]
        upload.end()

    def update(self, digest: str) -> Path:
        """Where a committed update is."""
        return self._updates / digest

    def end_attempt(self) -> None:
        """Nobody needs updates any more: whoever has a client's key could read them."""
        for name, upload in list(self._uploads.items()):
            self.drop(name, upload)
        _keep(self._updates, _UPDATE, ())

    # --- aggregates ---------------------------------------------------------------------------------------------------

    def aggregate(self, digest: str) -> Path:
        """Where an aggregate is, or was."""
        return self._aggregates / digest

    def write_aggregate(self, aggregation: Aggregation) -> Record:
        """Write a finished sum, whole or not at all, under its digest; returns its record."""
        part = self._aggregates / "sum"
        with storing("the aggregate"):
            with replacing(part) as file:
                record = aggregation.finish(file)
            part.replace(self.aggregate(record.digest))
            sync_folder(self._aggregates)
        return record

    def keep_aggregates(self, digests: Iterable[str]) -> None:
        """Remove all others."""
        _keep(self._aggregates, _AGGREGATE, digests)


def _keep(folder: Path, ours: re.Pattern[str], names: Iterable[str]) -> None:
    """Remove from a folder what is ours and not named."""
    kept = set(names)
    for path in folder.iterdir():
        if path.name not in kept and ours.fullmatch(path.name):
            path.unlink()


def _check_digest(path: Path) -> None:
    hint = "put a whole copy of the state folder in its place, or name another with --state"
    try:
        digest = frames.open_frame(path).digest.hex()
        if digest != path.name:
            raise StateError(f"its digest is {digest}")
    except HeflError as error:
        raise StateError(f"{path} is damaged: {error}", hint=hint) from error
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
