"""Read and write the bytes of an update and of an aggregate.

    header | members (aggregates only) | blocks | seed | tag | digest

    header   MAGIC, version, kind, engine, federation, generation, round, attempt, ctx, name, values,
             block count, member count, tag length; see HEADER
    member   name (32 bytes, zero-padded), seed (32), weight (8)
    block    length (4), bytes
    digest   SHA-256 of everything before it

Numbers are little-endian. README.md of the project says who sends what when.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from hefl.engines.engine import Member, Trailer
from hefl.errors import ConflictError, EngineError, MalformedError, MismatchError, StaleError, VersionError
from hefl.identity import Identity
from hefl.params import MAX_CLIENTS
from hefl.protocol.records import Announcement

MAGIC = b"HEFL"
VERSION = 1
HEADER = struct.Struct("<4sBB10s16sIII32s32sQIIH")
MEMBER = struct.Struct("<32s32sQ")
LENGTH = struct.Struct("<I")
MAX_BLOCK_BYTES = 1 << 20
"""No engine makes a longer block: a reader holds one at a time, however long a frame may be."""

NAME_BYTES = 32
SEED_BYTES = 32
DIGEST_BYTES = 32

Kind = Literal["update", "aggregate"]
Source = Path | bytes
"""Where a frame is: in a file, or in memory."""

_KINDS: dict[Kind, int] = {"update": 1, "aggregate": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What stands first; ``name`` is the sender of an update, and empty for an aggregate."""

    kind: Kind
    engine: str
    identity: Identity
    round: int
    attempt: int
    ctx: bytes
    name: str
    values: int
    block_count: int

    @classmethod
    def of(cls, kind: Kind, identity: Identity, announcement: Announcement, block_count: int, name: str = "") -> Header:
        """The header that belongs to an attempt."""
        return cls(
            kind=kind,
            engine=announcement.engine,
            identity=identity,
            round=announcement.round,
            attempt=announcement.attempt,
            ctx=announcement.ctx,
            name=name,
            values=announcement.values,
            block_count=block_count,
        )

    def check(self, expected: Header) -> None:
        """Refuse what belongs elsewhere, and say where.

        Raises:
            MismatchError, EngineError, StaleError, ConflictError, MalformedError: By which field differs first.
        """
        if self.kind != expected.kind:
            raise MalformedError(f"an {self.kind} came where an {expected.kind} belongs")
        if self.identity != expected.identity:
            raise MismatchError(f"the {self.kind} is of {self.identity}, and this is {expected.identity}")
        if self.engine != expected.engine:
            raise EngineError(f"the {self.kind} was made by engine {self.engine!r}, not {expected.engine!r}")
        if (self.round, self.attempt) != (expected.round, expected.attempt):
            raise StaleError(
                f"the {self.kind} is of round {self.round}, attempt {self.attempt}, "
                f"and round {expected.round}, attempt {expected.attempt} is open"
            )
        if self.ctx != expected.ctx:
            raise StaleError(f"the {self.kind} is of another run's round {self.round}")
        if self.name != expected.name:
            raise ConflictError(f"the {self.kind} is of client {self.name!r}, not {expected.name!r}")
        if (self.values, self.block_count) != (expected.values, expected.block_count):
            raise MalformedError(
                f"the {self.kind} has {self.values} values in {self.block_count} blocks, "
                f"not {expected.values} in {expected.block_count}"
            )


class Writer:
    """Writes one update or aggregate, front to back."""

    def __init__(self, file: BinaryIO, header: Header, members: Sequence[Member] = (), tag_bytes: int = 0) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._header = header
        self._tag_bytes = tag_bytes
        self._left = header.block_count
        for name in (header.name, *(m.name for m in members)):
            if len(name.encode()) > NAME_BYTES:
                raise ValueError(f"the name {name!r} does not fit {NAME_BYTES} bytes")
        self._put(
            HEADER.pack(
                MAGIC,
                VERSION,
                _KINDS[header.kind],
                header.engine.encode(),
                bytes.fromhex(header.identity.federation),
                header.identity.generation,
                header.round,
                header.attempt,
                header.ctx,
                header.name.encode(),
                header.values,
                header.block_count,
                len(members),
                tag_bytes,
            )
        )
        for member in members:
            self._put(MEMBER.pack(member.name.encode(), member.seed, member.weight))

    def block(self, data: bytes | memoryview) -> None:
        """Write the next block."""
        if len(data) > MAX_BLOCK_BYTES:
            raise ValueError(f"a block of {len(data)} bytes, where none has more than {MAX_BLOCK_BYTES}")
        self._left -= 1
        self._put(LENGTH.pack(len(data)))
        self._put(data)

    def finish(self, trailer: Trailer) -> bytes:
        """Write the end; returns the digest."""
        if self._left or len(trailer.tag) != self._tag_bytes:
            raise ValueError(f"{self._left} blocks are missing, or the tag has {len(trailer.tag)} bytes")
        self._put(trailer.seed)
        self._put(trailer.tag)
        digest = self._hash.digest()
        self._file.write(digest)
        return digest

    def _put(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)


@dataclass(frozen=True, slots=True)
class Frame:
    """A file whose bytes are whole and in form: the digest is right and every length adds up.

    Whether its content is meant for this attempt, ``header.check`` says; whether it is a ciphertext, the engine.
    """

    source: Source
    header: Header
    members: tuple[Member, ...]
    trailer: Trailer
    digest: bytes
    _first_block: int

    def blocks(self) -> Iterator[bytes]:
        """The blocks in order, one at a time."""
        with _open(self.source) as file:
            file.seek(self._first_block)
            for _ in range(self.header.block_count):
                (length,) = LENGTH.unpack(_read(file, LENGTH.size))
                yield _read(file, length)


def max_bytes(block_count: int, max_block_bytes: int, members: int = 0, tag_bytes: int = 0) -> int:
    """No honest frame of so many blocks is longer."""
    blocks = block_count * (LENGTH.size + max_block_bytes)
    return HEADER.size + members * MEMBER.size + blocks + SEED_BYTES + tag_bytes + DIGEST_BYTES


def read_header(source: Source) -> Header:
    """What stands first in a frame, before anything else is looked at. Raises as open_frame."""
    with _open(source) as file:
        return _parse_header(_read(file, HEADER.size))[0]


def read_digest(path: Path) -> bytes:
    """The digest at the end of a whole frame, as its writer left it; open_frame says whether it is right."""
    with path.open("rb") as file:
        file.seek(-DIGEST_BYTES, io.SEEK_END)
        return file.read()


def is_whole(path: Path) -> bool:
    """Whether a frame has the digest of its bytes. Where not, they were damaged; where so, that proves nothing."""
    with path.open("rb") as file:
        hashed, left = hashlib.sha256(), path.stat().st_size - DIGEST_BYTES
        while left > 0 and (read := file.read(min(left, MAX_BLOCK_BYTES))):
            hashed.update(read)
            left -= len(read)
        return file.read() == hashed.digest()


def open_frame(source: Source, expected: Header | None = None) -> Frame:
    """Read a frame through once, checking its form and its digest.

    With an expected header, what belongs elsewhere is refused before as many blocks are read as it claims.

    Raises:
        VersionError: It is of another wire format.
        MalformedError: It is not a frame, is truncated, or has bytes too many; says where.
    """
    hashed = hashlib.sha256()
    size = len(source) if isinstance(source, bytes) else source.stat().st_size

    def take(file: BinaryIO, length: int) -> bytes:
        if file.tell() + length > size - DIGEST_BYTES:
            raise MalformedError(f"truncated: {length} bytes belong at {file.tell()}, and {size} came in all")
        data = _read(file, length)
        hashed.update(data)
        return data

    with _open(source) as file:
        header, member_count, tag_bytes = _parse_header(take(file, HEADER.size))
        if expected:
            header.check(expected)
        members = tuple(_parse_member(take(file, MEMBER.size)) for _ in range(member_count))
        first_block = file.tell()
        for _ in range(header.block_count):
            (length,) = LENGTH.unpack(take(file, LENGTH.size))
            if length > MAX_BLOCK_BYTES:
                raise MalformedError(f"a block of {length} bytes, where none has more than {MAX_BLOCK_BYTES}")
            take(file, length)
        trailer = Trailer(take(file, SEED_BYTES), take(file, tag_bytes))
        left = size - file.tell() - DIGEST_BYTES
        if left:
            raise MalformedError(f"{left} bytes too many")
        digest = _read(file, DIGEST_BYTES)
    if digest != hashed.digest():
        raise MalformedError("the digest does not match the bytes: they were damaged on the way")
    return Frame(source, header, members, trailer, digest, first_block)


def _open(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _read(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise MalformedError(f"truncated: {len(data)} of {length} bytes")
    return data


def _parse_header(data: bytes) -> tuple[Header, int, int]:
    (
        magic,
        version,
        kind,
        engine,
        federation,
        generation,
        round_num,
        attempt,
        ctx,
        name,
        values,
        blocks,
        members,
        tag,
    ) = HEADER.unpack(data)
    if magic != MAGIC:
        raise MalformedError("the bytes do not start as hefl's do")
    if version != VERSION:
        raise VersionError(f"wire format {version} came, and this is hefl with format {VERSION}")
    kinds = {number: kind for kind, number in _KINDS.items()}
    if kind not in kinds or members > MAX_CLIENTS:
        raise MalformedError(f"a header with kind {kind} and {members} members")
    header = Header(
        kind=kinds[kind],
        engine=_text(engine),
        identity=Identity(federation.hex(), generation),
        round=round_num,
        attempt=attempt,
        ctx=ctx,
        name=_text(name),
        values=values,
        block_count=blocks,
    )
    return header, members, tag


def _parse_member(data: bytes) -> Member:
    name, seed, weight = MEMBER.unpack(data)
    return Member(_text(name), seed, weight)


def _text(padded: bytes) -> str:
    text = padded.rstrip(b"\0")
    if not text.isascii() or b"\0" in text:
        raise MalformedError("a name in the header is not a name")
    return text.decode()
