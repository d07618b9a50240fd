"""A client's state folder: its session, the history it has seen, its last aggregates."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from hefl.ckks.context import SecretContext
from hefl.client.early_stopping import Progress
from hefl.client.one_set import OneSet
from hefl.errors import ExistsError, MalformedError, StateError
from hefl.files import private_folder, replacing, storing
from hefl.models.file import write_model
from hefl.models.layout import Arrays, Layout
from hefl.params import KEEP_AGGREGATES
from hefl.protocol import messages
from hefl.protocol.history import Chain
from hefl.protocol.records import Hex16, Hex32, NumExamples, Record, Value
from hefl.protocol.sealed_layout import seal

FILE = "session.json"
BEGINS = b'{"join_nonce":'

TOLD = 2
"""So many different sample weights are remembered when a round is over: the last one, and the one before it."""

MOST_TOLD = 16
"""So many within one round: each start may tell another one, while an attempt with an older one is open."""

OURS = re.compile(r"\.?(\d{10})\.(?:agg|layout|json)(?:\.part)?")
"""Names of what is kept; a file of any other name is not removed."""


class _Written(Value, frozen=True, kw_only=True):
    """A model's file as it was written, whatever its name.

    Attributes:
        loss: Of the model, where it was written for its loss.
    """

    inode: int
    size: int
    modified_ns: int
    loss: float | None = None

    def is_at(self, path: Path) -> bool:
        """Whether the file there is this one."""
        if not path.is_file():
            return False
        status = path.stat()
        return (self.inode, self.size, self.modified_ns) == (status.st_ino, status.st_size, status.st_mtime_ns)


class _Point(Value, frozen=True, kw_only=True):
    """Where a run stood, and how its loss had gone by then."""

    head: Hex32
    progress: Progress


class _Session(Value, frozen=True, kw_only=True):
    """What is remembered; what follows the chain is of its run.

    Attributes:
        stands: The round of the aggregate whose model was the run's before and after the last record, and these points.
        written: Model files that this client wrote, by path: those that may be there.
        one_set: For whom it trains again from a model that was in a useless sum, of this run or an earlier one.
    """

    join_nonce: Hex16
    told: tuple[NumExamples, ...] = ()
    chain: Chain | None = None
    stands: tuple[int, _Point, _Point] | None = None
    written: dict[str, tuple[_Written, ...]] = {}  # noqa: RUF012 - msgspec copies it
    one_set: OneSet | None = None


class Kept(NamedTuple):
    """An aggregate that is kept.

    Attributes:
        path: Its frame.
        record: What it must be.
        progress: How the loss had gone where its model still stood later; None where it says so itself.
    """

    path: Path
    record: Record
    progress: Progress | None


def is_session(path: Path) -> bool:
    """Whether a file is a client's session, as far as its beginning says."""
    with path.open("rb") as file:
        return file.read(len(BEGINS)) == BEGINS


class ClientState:
    """The folder of one client; the caller holds its lock.

    Attributes:
        update, aggregate: Where the one that is being sent, or fetched, is meanwhile.
    """

    def __init__(self, folder: Path, keep: int = KEEP_AGGREGATES) -> None:
        """Go on with the folder's session, or begin one.

        Raises:
            StateError: It is damaged, or cannot be stored.
        """
        self._folder = folder
        self._file = folder / FILE
        self._count = keep
        self._aggregates = private_folder(folder / "aggregates")
        self.update = folder / "update.bin"
        self.aggregate = folder / "aggregate.bin"
        self._claimed: list[Path] = []
        self._session = self._read_session()
        for path in folder.glob("older-*.bin"):
            path.unlink()
        # What an earlier process encrypted is void: it may have been sent in part, and nobody knows how far.
        self.update.unlink(missing_ok=True)

    def set_aside(self, place: int) -> Path:
        """Give the aggregate that has come another name, while others are fetched; returns where it is."""
        path = self._folder / f"older-{place}.bin"
        self.aggregate.replace(path)
        return path

    @property
    def join_nonce(self) -> str:
        """By which the server knows a client that was restarted."""
        return self._session.join_nonce

    @property
    def told(self) -> frozenset[int]:
        """Sample weights that the server was told, and may announce."""
        return frozenset(self._session.told)

    def tell(self, num_examples: int) -> None:
        """Note a sample weight durably, before the server hears of it. Raises StateError where it cannot be stored."""
        others = tuple(number for number in self._session.told if number != num_examples)
        if self._session.told[-1:] != (num_examples,):
            self._write(msgspec.structs.replace(self._session, told=(*others[1 - MOST_TOLD :], num_examples)))

    @property
    def one_set(self) -> OneSet | None:
        """For whom this client trains again from a model that was in a useless sum."""
        return self._session.one_set

    def limit(self, one_set: OneSet | None) -> None:
        """Note that durably. Raises StateError where it cannot be stored."""
        if one_set != self._session.one_set:
            self._write(msgspec.structs.replace(self._session, one_set=one_set))

    def lift(self, code: str) -> bool:
        """Train again for whoever is there, where the code is that of what was refused; whether it is."""
        limit = self._session.one_set
        if limit is None or limit.lifted or limit.code != code:
            return False
        self.limit(msgspec.structs.replace(limit, lifted=True))
        return True

    @property
    def chain(self) -> Chain | None:
        """What this client has seen of a run; None where it has joined none."""
        return self._session.chain

    def follow(self, chain: Chain) -> None:
        """Note durably what was seen. Raises StateError where it cannot be stored."""
        before, told = self._session.chain, self._session.told
        if before and chain.round > before.round:
            told = told[-TOLD:]
        if chain != before:
            self._write(msgspec.structs.replace(self._session, chain=chain, told=told))

    def begin(self, chain: Chain) -> None:
        """Follow another run: what is kept of the one before goes.

        Raises:
            ExistsError: A file of the run before would be replaced by a model of this one.
            StateError: It cannot be stored.
        """
        if self._claimed:
            raise ExistsError(
                f"{self._claimed[0]} holds a model of the run before, and the server has begun another",
                hint="move it away, name another file, or add --force",
            )
        self._drop_all_but([])
        told = self._session.told[-1:]  # when it joined, before it knew the run
        self._write(_Session(join_nonce=self.join_nonce, told=told, chain=chain, one_set=self._session.one_set))

    # --- models in files of the user's --------------------------------------------------------------------------------

    def claim(self, path: Path) -> bool:
        """Say that a model's file will be replaced, where it is as this client wrote it in its run; whether it is.

        In another run it is not to be replaced; then ``begin`` raises.
        """
        if own := self._at(path) is not None:
            self._claimed.append(path)
        return own

    def loss_of(self, path: Path) -> float | None:
        """Loss of the model of this run that a file has; None where it has none."""
        written = self._at(path)
        return written.loss if written else None

    def write_model(self, path: Path, layout: Layout, arrays: Arrays, loss: float | None = None) -> None:
        """As models.file.write_model, and know the file again. Raises as that, and StateError."""

        def note(status: os.stat_result) -> None:
            # Before it takes its place, and beside the one that has it: after a crash either may be there.
            new = _Written(inode=status.st_ino, size=status.st_size, modified_ns=status.st_mtime_ns, loss=loss)
            there = self._at(path)
            written = {**self._session.written, str(path.absolute()): (there, new) if there else (new,)}
            self._write(msgspec.structs.replace(self._session, written=written))

        write_model(path, layout, arrays, note)

    def _at(self, path: Path) -> _Written | None:
        """What this client wrote there, if it is there still."""
        return next((w for w in self._session.written.get(str(path.absolute()), ()) if w.is_at(path)), None)

    # --- aggregates ---------------------------------------------------------------------------------------------------

    def keep(self, record: Record, layout: Layout, secret: SecretContext) -> None:
        """Keep the aggregate that has come and made a new model, with what it takes to read it again; drop older ones.

        Raises:
            StateError: It cannot be stored.
        """
        stem = f"{record.announcement.round:010}"
        with storing("the aggregate"):
            with replacing(self._aggregates / f"{stem}.layout") as file:
                file.write(seal(layout, secret))
            self.aggregate.replace(self._aggregates / f"{stem}.agg")
            with replacing(self._aggregates / f"{stem}.json") as file:  # the last one: by it the others count
                file.write(msgspec.json.encode(record))
        self._drop_all_but(kept_rounds(self._aggregates)[-self._count :])

    def stand(self, model_round: int, record: Record, before: Progress, after: Progress) -> None:
        """Note that the model of a kept round is the run's after this record too. Raises StateError."""
        first = _Point(head=record.announcement.head, progress=before)
        then = _Point(head=record.head, progress=after)
        self._write(msgspec.structs.replace(self._session, stands=(model_round, first, then)))

    def kept_before(self, record: Record) -> Kept | None:
        """The aggregate whose model the round of a record started from; None where it is not kept.

        Raises:
            StateError: A record that is kept is damaged.
        """
        head, number, point = record.announcement.head, record.announcement.round - 1, None
        if self._session.stands:
            standing, *points = self._session.stands
            point = next((p for p in points if p.head == head), None)
            number = standing if point else number
        path, kept = self._kept(number)
        if kept is None or (point is None and kept.head != head):
            return None
        return Kept(path, kept, point.progress if point else None)

    def path_of(self, record: Record) -> Path | None:
        """Where a record's aggregate is kept; None where it is not. Raises StateError as kept_before."""
        path, kept = self._kept(record.announcement.round)
        return path if kept == record else None

    def _kept(self, number: int) -> tuple[Path, Record | None]:
        """Where a round's aggregate is kept, and its record; None where one of them is not."""
        path = self._aggregates / f"{number:010}.json"
        aggregate = path.with_suffix(".agg")
        if not (path.is_file() and aggregate.is_file()):
            return aggregate, None
        with naming(path, "remove it"):
            return aggregate, messages.decode(read(path), Record)

    def _drop_all_but(self, rounds: list[int]) -> None:
        for path in self._aggregates.iterdir():
            if (found := OURS.fullmatch(path.name)) and int(found[1]) not in rounds:
                path.unlink(missing_ok=True)

    def _read_session(self) -> _Session:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Session)
        except FileNotFoundError:
            session = _Session(join_nonce=os.urandom(16).hex())
            self._write(session)
            return session
        except messages.UNREADABLE as error:
            raise StateError(
                f"{self._file} is damaged: {error}",
                hint="name a new folder with --state; the client then joins as a new one",
            ) from error

    def _write(self, session: _Session) -> None:
        with storing("the session"), replacing(self._file) as file:
            file.write(msgspec.json.encode(session))
        self._session = session


def kept_rounds(aggregates: Path) -> list[int]:
    """Rounds whose aggregates are in a folder, in order."""
    return sorted(int(path.stem) for path in aggregates.glob("*.json") if OURS.fullmatch(path.name))


@contextmanager
def naming(path: Path, hint: str) -> Iterator[None]:
    """Turn what does not parse into a StateError that names the file."""
    try:
        yield
    except MalformedError as error:
        raise StateError(f"{path} is damaged: {error}", hint=hint) from error


def read(path: Path) -> bytes:
    """A file that is kept. Raises StateError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
