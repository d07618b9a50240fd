"""A client's folder: who it is to the server, and the last aggregates as they came."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from hefl import protocol, wire
from hefl.chain import Chain
from hefl.ckks.context import SecretContext
from hefl.engine import load_engine
from hefl.errors import ExistsError, MalformedError, MismatchError, StateError
from hefl.files import private_folder, replacing, storing
from hefl.history import Hex16, Hex32, NumExamples, Record, Value
from hefl.layout import Arrays, Layout, unseal
from hefl.learner import GlobalModel, make_codec
from hefl.modelfile import write_model
from hefl.params import KEEP_AGGREGATES
from hefl.updates import read_aggregate

log = logging.getLogger("hefl")

FILE = "session.json"

TOLD = 16
"""So many different sample weights are remembered: one that stands in an open attempt was told lately."""

OURS = re.compile(r"\d{10}\.(agg|layout|json)(\.part)?")
"""Names of what is kept; a file of any other name is not removed."""


class _FileId(NamedTuple):
    """A file as it was written, whatever its name."""

    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _FileId:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class _Session(Value, frozen=True, kw_only=True):
    """What is remembered; the last three are of the chain's run.

    Attributes:
        stands: The kept round whose model was still that of the run before and after the last record; and these heads.
        best: Averaged loss of the best model that was written, and where to.
        written: Model files that this client wrote, by path: the last one, and what it replaced.
    """

    join_nonce: Hex16
    told: tuple[NumExamples, ...] = ()
    chain: Chain | None = None
    stands: tuple[int, Hex32, Hex32] | None = None
    best: tuple[float, str] | None = None
    written: dict[str, tuple[_FileId, ...]] = {}  # noqa: RUF012 - msgspec copies it


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
        self._replaced: list[Path] = []
        self._session = self._read_session()
        # What an earlier process encrypted is void: it may have been sent in part, and nobody knows how far.
        self.update.unlink(missing_ok=True)

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
            self._write(msgspec.structs.replace(self._session, told=(*others[1 - TOLD :], num_examples)))

    @property
    def chain(self) -> Chain | None:
        """What this client has seen of a run; None where it has joined none."""
        return self._session.chain

    def follow(self, chain: Chain) -> None:
        """Note durably what was seen. Raises StateError where it cannot be stored."""
        if chain != self._session.chain:
            self._write(msgspec.structs.replace(self._session, chain=chain))

    def begin(self, chain: Chain) -> None:
        """Follow another run: what is kept of the one before goes.

        Raises:
            ExistsError: A file of the run before would be replaced by a model of this one.
            StateError: It cannot be stored.
        """
        for path in self._replaced:
            raise ExistsError(
                f"{path} holds a model of the run before, and the server has begun another",
                hint="move it away, name another file, or add --force",
            )
        for path in self._kept(""):
            path.unlink()
        self._write(_Session(join_nonce=self.join_nonce, told=self._session.told, chain=chain))

    # --- models in files of the user's --------------------------------------------------------------------------------

    def may_replace(self, path: Path) -> bool:
        """Whether a model's file is as this client wrote it, in the run that it is in."""
        is_own = self._is_own(path)
        if is_own:
            self._replaced.append(path)
        return is_own

    def _is_own(self, path: Path) -> bool:
        return path.is_file() and _FileId.of(path.stat()) in self._session.written.get(str(path.absolute()), ())

    def write_model(self, path: Path, layout: Layout, arrays: Arrays) -> None:
        """As modelfile.write_model, and know the file again. Raises as that, and StateError."""
        key = str(path.absolute())

        def note(status: os.stat_result) -> None:
            # First, and beside the one before: whichever of them is there after a crash is known.
            ids = (*self._session.written.get(key, ())[-1:], _FileId.of(status))
            self._write(msgspec.structs.replace(self._session, written={**self._session.written, key: ids}))

        write_model(path, layout, arrays, note)

    def best_loss(self, path: Path) -> float | None:
        """Of the best model of this run, as a file has it; None where it has none."""
        loss, where = self._session.best or (None, "")
        return loss if where == str(path.absolute()) and self._is_own(path) else None

    def note_best(self, path: Path, loss: float) -> None:
        """The best model is in a file. Raises StateError where that cannot be stored."""
        self._write(msgspec.structs.replace(self._session, best=(loss, str(path.absolute()))))

    # --- aggregates ---------------------------------------------------------------------------------------------------

    def keep(self, record: Record, layout: Layout, secret: SecretContext) -> None:
        """Keep the aggregate that has come and made a new model, with what it takes to read it again; drop older ones.

        Raises:
            StateError: It cannot be stored.
        """
        stem = f"{record.announcement.round:010}"
        with storing("the aggregate"):
            with replacing(self._aggregates / f"{stem}.layout") as file:
                file.write(layout.seal(secret))
            self.aggregate.replace(self._aggregates / f"{stem}.agg")
            with replacing(self._aggregates / f"{stem}.json") as file:  # the last one: by it the others count
                file.write(msgspec.json.encode(record))
        kept = sorted(path.stem for path in self._aggregates.glob("*.json"))
        for path in self._kept(""):
            if path.stem not in kept[-self._count :]:
                path.unlink(missing_ok=True)

    def stand(self, model_round: int, record: Record) -> None:
        """Note that the model of a kept round is the run's after this record too. Raises StateError."""
        stands = (model_round, record.announcement.head, record.head)
        self._write(msgspec.structs.replace(self._session, stands=stands))

    def kept_before(self, record: Record) -> tuple[Path, Record] | None:
        """The aggregate whose model the round of a record started from, and its own record; None where it is not kept.

        Raises:
            StateError: A record that is kept is damaged.
        """
        head = record.announcement.head
        number, *heads = self._session.stands or (-1,)
        if head not in heads:
            number = record.announcement.round - 1
        path = self._aggregates / f"{number:010}.json"
        if not (path.is_file() and path.with_suffix(".agg").is_file()):
            return None
        with _damaged(path, "remove it"):
            kept = protocol.decode(_read(path), Record)
        return (path.with_suffix(".agg"), kept) if head in (kept.head, *heads) else None

    def _kept(self, suffix: str) -> list[Path]:
        return [p for p in self._aggregates.glob(f"*{suffix}") if OURS.fullmatch(p.name)]

    def _read_session(self) -> _Session:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Session)
        except FileNotFoundError:
            session = _Session(join_nonce=os.urandom(16).hex())
            self._write(session)
            return session
        except protocol.UNREADABLE as error:
            raise StateError(
                f"{self._file} is damaged: {error}",
                hint="name a new folder with --state; the client then joins as a new one",
            ) from error

    def _write(self, session: _Session) -> None:
        with storing("the session"), replacing(self._file) as file:
            file.write(msgspec.json.encode(session))
        self._session = session


@dataclass(frozen=True, slots=True)
class BestModel:
    """Where ``--save-best`` keeps the best model of a run: also a client that was started again knows how good it is.

    Attributes:
        state: Of the client.
        path: The file.
    """

    state: ClientState
    path: Path

    @property
    def loss(self) -> float | None:
        """Of the model that is there; None where none is."""
        return self.state.best_loss(self.path)

    def write(self, model: GlobalModel, layout: Layout, loss: float) -> None:
        """Replace it by a better one. Raises StateError where it cannot be stored."""
        self.state.write_model(self.path, layout, model.arrays)
        self.state.note_best(self.path, loss)
        log.info("%s holds model %d, the best so far", self.path, model.round)


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A global model from a client's folder.

    Attributes:
        round: Whose aggregate it is.
        verified: The aggregate proved that it is the announced sum.
    """

    round: int
    layout: Layout
    arrays: Arrays
    verified: bool


def read_model(folder: Path, secret: SecretContext, round_num: int | None = None) -> KeptModel:
    """The global model that a round made, from what a client keeps; by default the last one.

    Any aggregate suffices for that: it holds the scales that it was encoded at.

    Raises:
        StateError: The round is not kept, or a file is damaged.
        MismatchError: It is of other keys.
        ProtocolError: As updates.read_aggregate: it is not what its record says.
    """
    kept = sorted(int(path.stem) for path in (folder / "aggregates").glob("*.json"))
    number = kept[-1] if round_num is None and kept else round_num
    if number not in kept:
        there = f"there are {_listed(kept)}" if kept else "there is none"
        raise StateError(
            f"{folder} keeps no model{'' if number is None else f' of round {number}'}: {there}",
            hint="a client keeps its last ones; see its --keep, and --state",
        )
    stem, hint = folder / "aggregates" / f"{number:010}", f"name another round with --round: {_listed(kept)}"
    with _damaged(path := stem.with_suffix(".agg"), hint):
        data = _read(path)
        identity = wire.open_frame(data).header.identity
    if identity != secret.identity:
        raise MismatchError(
            f"{path} is of {identity}, and the client's keys are of {secret.identity}",
            hint="a model is read with the keys that it was made with: take the client's folder of then",
        )
    with _damaged(path := stem.with_suffix(".layout"), hint):
        layout = unseal(_read(path), secret)
    with _damaged(path := stem.with_suffix(".json"), hint):
        record = protocol.decode(_read(path), Record)
    announcement, terms = record.announcement, record.announcement.terms
    engine = load_engine(
        terms.engine,
        precision_bits=terms.precision_bits,
        weighting=terms.weighting,
        insecure_plaintext=True,  # it is here already
    )
    total = read_aggregate(data, secret, engine, announcement, record)
    codec = make_codec(engine, layout, lambda: 1)  # which counts for what is sent only
    if announcement.values != codec.values(announcement.exchange):
        raise StateError(f"{stem}.agg is not of the model that {stem}.layout describes", hint=hint)
    initial = announcement.exchange == "initial"
    arrays = codec.decode_initial(total)[0] if initial else codec.decode_model(total, None)[0]
    return KeptModel(number, layout, arrays, engine.verifies)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


@contextmanager
def _damaged(path: Path, hint: str) -> Iterator[None]:
    """Turn what does not parse into a StateError that names the file."""
    try:
        yield
    except MalformedError as error:
        raise StateError(f"{path} is damaged: {error}", hint=hint) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
