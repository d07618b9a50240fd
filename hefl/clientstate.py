"""A client's folder: who it is to the server, and the last aggregates as they came."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hefl import protocol
from hefl.chain import Chain
from hefl.ckks.context import SecretContext
from hefl.engine import load_engine
from hefl.errors import StateError
from hefl.files import private_folder, replacing, storing
from hefl.history import Hex16, NumExamples, Record, Value
from hefl.layout import Arrays, Layout, unseal
from hefl.learner import make_codec
from hefl.params import KEEP_AGGREGATES
from hefl.updates import read_aggregate

TOLD = 16
"""So many different sample weights are remembered: one that stands in an open attempt was told lately."""


class _Session(Value, frozen=True, kw_only=True):
    join_nonce: Hex16
    told: tuple[NumExamples, ...] = ()
    chain: Chain | None = None


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
        self._file = folder / "session.json"
        self._count = keep
        self._aggregates = private_folder(folder / "aggregates")
        self.update = folder / "update.bin"
        self.aggregate = folder / "aggregate.bin"
        # What an earlier process encrypted is void: it may have been sent in part, and nobody knows how far.
        self.update.unlink(missing_ok=True)
        self._session = self._read_session()

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
        """Follow another run: what is kept of the one before goes. Raises StateError where it cannot be stored."""
        for path in self._aggregates.iterdir():
            path.unlink()
        self.follow(chain)

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
        for path in self._aggregates.iterdir():
            if path.stem not in kept[-self._count :]:
                path.unlink(missing_ok=True)

    def kept_before(self, record: Record) -> tuple[Path, Record] | None:
        """The aggregate of the round before a record's, and its own record; None where it is not kept.

        Raises:
            MalformedError, StateError: A record that is kept is damaged.
        """
        path = self._aggregates / f"{record.announcement.round - 1:010}.json"
        if not path.is_file():
            return None
        kept = protocol.decode(_read(path), Record)
        return (path.with_suffix(".agg"), kept) if kept.head == record.announcement.head else None

    def _read_session(self) -> _Session:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Session)
        except FileNotFoundError:
            session = _Session(join_nonce=os.urandom(16).hex())
            self._write(session)
            return session
        except protocol.UNREADABLE as error:
            raise StateError(
                f"{self._file} is damaged: {error}", hint="remove it; the client then joins as a new one"
            ) from error

    def _write(self, session: _Session) -> None:
        with storing("the session"), replacing(self._file) as file:
            file.write(msgspec.json.encode(session))
        self._session = session


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
        ProtocolError, MismatchError: As updates.read_aggregate: it is not what its record says.
    """
    kept = sorted(int(path.stem) for path in (folder / "aggregates").glob("*.json"))
    number = kept[-1] if round_num is None and kept else round_num
    if number not in kept:
        there = f"there are {', '.join(map(str, kept))}" if kept else "there is none"
        raise StateError(
            f"{folder} keeps no model{'' if number is None else f' of round {number}'}: {there}",
            hint="a client keeps its last ones; see its --keep, and --state",
        )
    stem = folder / "aggregates" / f"{number:010}"
    layout = unseal(_read(stem.with_suffix(".layout")), secret)
    record = protocol.decode(_read(stem.with_suffix(".json")), Record)
    announcement, terms = record.announcement, record.announcement.terms
    engine = load_engine(
        terms.engine,
        precision_bits=terms.precision_bits,
        weighting=terms.weighting,
        insecure_plaintext=True,  # it is here already
    )
    total = read_aggregate(_read(stem.with_suffix(".agg")), secret, engine, announcement, record)
    codec = make_codec(engine, layout, lambda: 1)  # which counts for what is sent only
    if announcement.values != codec.values(announcement.exchange):
        raise StateError(f"{stem}.agg is not of the model that {stem}.layout describes", hint="name another --round")
    initial = announcement.exchange == "initial"
    arrays = codec.decode_initial(total)[0] if initial else codec.decode_model(total, None)[0]
    return KeptModel(number, layout, arrays, engine.verifies)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
