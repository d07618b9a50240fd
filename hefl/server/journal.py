"""The journal of a run: every event is durable before anyone hears of it.

A run is what ``rounds.advance`` makes of its events, from the last checkpoint on. SQLite keeps them in one file, in
WAL mode with ``synchronous=FULL``: a transaction that has ended is on the disk, one that has not leaves nothing. Each
event's hash covers the one before it, and each record's does too; the settings have one. So a journal that was damaged
or edited is refused instead of believed.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hefl.engines.engine import Terms
from hefl.errors import ProtocolError, StateError
from hefl.identity import Identity
from hefl.params import ROUNDS
from hefl.protocol.messages import Join
from hefl.protocol.records import Record, genesis
from hefl.rounds.events import KINDS, Announced, Event, Published
from hefl.rounds.kept_settings import KeptSettings, refuse_another
from hefl.rounds.run import Run, advance
from hefl.server.journal_file import damaged, looking, open_file, reader, reported
from hefl.server.links import first_link, next_link, run_link
from hefl.server.spool import holds_files

FILE = "journal.sqlite"
APPLICATION_ID = 0x4845464C  # "HEFL", at a fixed place in the file
SCHEMA_VERSION = 5
CHECKPOINT_EVENTS = 256
"""So many events between two attempts are replaced by the run that they made: a restart stays quick, a file small."""

FIRST_PAGE_BYTES = 4096
"""A journal that is no longer holds nothing yet: what was written is in the log beside it."""

SCHEMA = """
CREATE TABLE run (
    run TEXT NOT NULL, federation TEXT NOT NULL, generation INTEGER NOT NULL,
    engine TEXT NOT NULL, precision_bits INTEGER NOT NULL, weighting TEXT NOT NULL, settings BLOB,
    reference BLOB, link BLOB NOT NULL
);
CREATE TABLE checkpoint (seq INTEGER NOT NULL, run BLOB NOT NULL, link BLOB NOT NULL);
CREATE TABLE event (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL, link BLOB NOT NULL
);
CREATE TABLE record (round INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""

T = TypeVar("T")

_NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Moment:
    """A run as of one event.

    Attributes:
        seq: The event's number; rises by one with each, and never falls.
        run: After it.
        announced_at: Wall-clock time at which the open attempt was announced; 0 where none is open.
    """

    seq: int
    run: Run
    announced_at: float


class Journal:
    """The journal in a folder that the caller has locked; its methods may run in any thread.

    Attributes:
        now: The run as of the last durable event.
        reference: What the first client said of its model, which the others' must equal; None before there is one.
        settings: What the run keeps of how its server was started; None before one has listened.
        resumed: The folder held this run already.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        terms: Terms,
        *,
        rounds: int | None,
        min_clients: int,
        known: tuple[str, ...],
    ) -> None:
        """Begin a run in an empty folder, or go on with the one that is there.

        ``rounds`` are the trainings that it is to have; None are its own, and ROUNDS where it is begun. A run of which
        nothing was announced yet makes way for one with other settings.

        Raises:
            MismatchError, EngineError, ParametersError: As keptsettings.refuse_another; nothing has changed.
            StateError: It is damaged, or cannot be stored.
        """
        self._path = folder / FILE
        self._lock = threading.Lock()
        fresh = Run(run=os.urandom(16).hex(), rounds=rounds or ROUNDS, min_clients=min_clients, known=known, head="")
        fresh = replace(fresh, head=genesis(identity, fresh.run))
        with reported(self._path), ExitStack() as undo:
            self._db = undo.enter_context(closing(open_file(self._path)))
            self.resumed = self._has_schema()
            if self.resumed and self._gives_way(identity, terms, rounds):
                self._db.close()
                for suffix in ("-wal", "-shm", ""):
                    (folder / f"{FILE}{suffix}").unlink(missing_ok=True)
                self._db, self.resumed = undo.enter_context(closing(open_file(self._path))), False
            if not self.resumed:
                if holds_files(folder):
                    damaged(self._path, "it is empty or was missing, and there are aggregates or updates of a run")
                self._create(fresh, identity, terms)
            self.now, self._link, self.settings, self.reference = _load(self._db)
            _check_records(self._db, identity, self.now.run)
            self._reader = reader(self._path)
            undo.pop_all()
        # What an operator may change from one start to the next.
        self.now = replace(self.now, run=replace(self.now.run, min_clients=min_clients))

    def append(self, event: Event) -> None:
        """Make an event durable, then the run's. Events are stored in the order in which this is called.

        Raises:
            StaleError, ConflictError: As rounds.advance; nothing has changed.
            DiskFullError, StateError: It cannot be stored; nothing has changed.
        """
        with self._lock:
            after, at = advance(self.now.run, event), time.time()
            seq, kind, body = self.now.seq + 1, _NAMES[type(event)], msgspec.json.encode(event)
            link = next_link(self._link, seq, at, kind, body)
            with self._transaction() as db:
                db.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?)", (seq, at, kind, body, link))
                if isinstance(event, Published):
                    number, record = event.record.announcement.round, msgspec.json.encode(event.record)
                    db.execute("INSERT INTO record VALUES (?, ?)", (number, record))
                if after.announcement is None:
                    link = self._checkpoint(db, seq, after, link)
            self.now, self._link = _moment(self.now, seq, after, event, at), link

    def refer(self, reference: Join) -> None:
        """Keep what a client said of its model. Raises as append."""
        self._rewrite(self.settings, reference)

    def settle(self, settings: KeptSettings) -> None:
        """Keep these settings for the next start. Raises as append."""
        self._rewrite(settings, self.reference)

    def _rewrite(self, settings: KeptSettings | None, reference: Join | None) -> None:
        with self._lock:
            with self._transaction() as db:
                *row, _, _ = _run_row(db)
                row += [said and msgspec.json.encode(said) for said in (settings, reference)]
                db.execute("UPDATE run SET settings = ?, reference = ?, link = ?", (*row[-2:], run_link(row)))
            self.settings, self.reference = settings, reference

    def records(self, after: int, limit: int) -> list[Record]:
        """Records of the rounds after this one, in order, at most ``limit``; only what is durable."""
        query = "SELECT body FROM record WHERE round > ? ORDER BY round LIMIT ?"
        with reported(self._path):
            return [_decode(body, Record) for (body,) in self._reader.execute(query, (after, limit))]

    def last_records(self, count: int) -> list[Record]:
        """The newest records, the last one first."""
        query = "SELECT body FROM record ORDER BY round DESC LIMIT ?"
        with reported(self._path):
            return [_decode(body, Record) for (body,) in self._reader.execute(query, (count,))]

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._reader.close()
            self._db.close()

    def _has_schema(self) -> bool:
        """Whether a run was begun here. A start that was killed before leaves an empty file."""
        if self._db.execute("PRAGMA user_version").fetchone()[0]:
            return True
        if self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            damaged(self._path, "it is not hefl's")
        return False

    def _create(self, run: Run, identity: Identity, terms: Terms) -> None:
        with self._transaction() as db:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            row = (run.run, identity.federation, identity.generation, *terms, None, None)
            db.execute("INSERT INTO run VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, run_link(row)))
            self._write_checkpoint(db, 0, run)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _gives_way(self, identity: Identity, terms: Terms, rounds: int | None) -> bool:
        """Whether the run in the file has other settings and may make way; raises where it may not."""
        _check_version(self._db, self._path)
        _, federation, generation, *mine, _, _ = _run_row(self._db)
        found, run = Identity(federation, generation), _load(self._db)[0].run
        shorter = rounds is not None and rounds < run.rounds and not run.is_over
        if (found, Terms(*mine)) == (identity, terms) and not shorter:
            return False
        if (run.next_round, run.attempt) != (0, 0):
            refuse_another(self._path.parent, (found, Terms(*mine), run.rounds), identity, terms, rounds)
        return True

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it, on the disk, or nothing."""
        with reported(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it
                    self._db.execute("ROLLBACK")
                raise

    def _checkpoint(self, db: sqlite3.Connection, seq: int, run: Run, link: bytes) -> bytes:
        """Replace events by the run that they made, where they are many; returns the link that the next row extends."""
        if db.execute("SELECT count(*) FROM event").fetchone()[0] < CHECKPOINT_EVENTS:
            return link
        db.execute("DELETE FROM event")
        return self._write_checkpoint(db, seq, run)

    def _write_checkpoint(self, db: sqlite3.Connection, seq: int, run: Run) -> bytes:
        body = msgspec.json.encode(run)
        link = first_link(seq, body)
        db.execute("DELETE FROM checkpoint")
        db.execute("INSERT INTO checkpoint VALUES (?, ?, ?)", (seq, body, link))
        return link


def is_journal(path: Path) -> bool:
    """Whether a file is a journal, or may become one, as far as its beginning says."""
    with path.open("rb") as file:
        start = file.read(72)
    return start[68:] == APPLICATION_ID.to_bytes(4) or path.stat().st_size <= FIRST_PAGE_BYTES


def read_settings(folder: Path) -> tuple[Terms, KeptSettings] | None:
    """Terms and settings of the run in a folder that the caller has locked; None where no server has listened for one.

    Raises:
        StateError: It is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with reported(path), closing(open_file(path)) as db:
        if not db.execute("PRAGMA user_version").fetchone()[0]:
            return None
        _check_version(db, path)
        *_, engine, precision_bits, weighting, settings, _ = _run_row(db)
        return settings and (Terms(engine, precision_bits, weighting), _decode(settings, KeptSettings))


def read_moment(folder: Path) -> Moment:
    """The run in a folder, whether a server works on it or not; changes nothing.

    Raises:
        StateError: There is none, or it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise StateError(
            f"{folder} holds no run", hint="name the folder that 'hefl serve' was given: DIR/server, or its --state"
        )
    with reported(path), looking(path) as db:
        db.execute("BEGIN")  # everything as of one moment
        _check_version(db, path)
        return _load(db)[0]


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    version, application = (db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("user_version", "application_id"))
    if application != APPLICATION_ID:
        damaged(path, "it is not hefl's")
    if version != SCHEMA_VERSION:
        raise StateError(
            f"{path} has schema version {version}, and this hefl reads version {SCHEMA_VERSION}",
            hint="use the version of hefl that began the run",
        )


def _load(db: sqlite3.Connection) -> tuple[Moment, bytes, KeptSettings | None, Join | None]:
    """What a journal says: the run, the last row's link, what it keeps of its server's start, and the reference."""
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise ValueError(verdict)
    seq, body, link = db.execute("SELECT seq, run, link FROM checkpoint").fetchone()
    if link != first_link(seq, body):
        raise ValueError("its checkpoint is not the one that was written")
    moment = Moment(seq, _decode(body, Run), 0.0)
    for number, at, kind, text, stored in db.execute("SELECT seq, at, kind, body, link FROM event ORDER BY seq"):
        link = next_link(link, number, at, kind, text)
        if number != moment.seq + 1 or link != stored:
            raise ValueError(f"event {number} is not the one that was written")
        event = _decode(text, KINDS[kind])
        try:
            moment = _moment(moment, number, advance(moment.run, event), event, at)
        except ProtocolError as error:
            raise ValueError(f"event {number} does not follow: {error}") from error
    *_, settings, reference = _run_row(db)
    return moment, link, settings and _decode(settings, KeptSettings), reference and _decode(reference, Join)


def _check_records(db: sqlite3.Connection, identity: Identity, run: Run) -> None:
    """Refuse records that do not form the chain from the run's beginning to its head."""
    head = genesis(identity, run.run)
    for number, (stored, body) in enumerate(db.execute("SELECT round, body FROM record ORDER BY round")):
        record = _decode(body, Record)
        announcement = record.announcement
        if (stored, announcement.round, announcement.head) != (number, number, head):
            raise ValueError(f"the record of round {number} does not extend the one before")
        head = record.head
    if head != run.head:
        raise ValueError("the last record is not the one that the run ends with")


def _moment(before: Moment, seq: int, run: Run, event: Event, at: float) -> Moment:
    opened = at if isinstance(event, Announced) else before.announced_at
    return Moment(seq, run, opened if run.announcement else 0.0)


def _run_row(db: sqlite3.Connection) -> tuple[Any, ...]:
    """Run, federation, generation, engine, precision, weighting, settings and reference; the last two may be None."""
    *row, link = db.execute("SELECT * FROM run").fetchone() or (None,)
    if link != run_link(row):
        raise ValueError("its settings are not those that were written")
    return tuple(row)


def _decode(body: bytes, kind: type[T]) -> T:
    return msgspec.json.decode(body, type=kind)
