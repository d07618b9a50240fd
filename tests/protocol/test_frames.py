from __future__ import annotations

import dataclasses
import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import pytest
from builders import announcement, redigested
from hypothesis import example, given
from hypothesis import strategies as st

from hefl.engines.engine import Attempt, Member, Trailer
from hefl.engines.load import load_engine
from hefl.errors import ConflictError, EngineError, HeflError, MalformedError, MismatchError, StaleError, VersionError
from hefl.identity import Identity
from hefl.params import ENGINES, MAX_CLIENTS, MAX_VALUES
from hefl.protocol.frames import MAX_BLOCK_BYTES, Frame, Header, Writer, is_whole, max_bytes, open_frame

IDENTITY = Identity("0f" * 16, 3)
HEADER = Header.of("update", IDENTITY, announcement(), 2, "alice")
MEMBERS = (Member("alice", b"\x01" * 32, 30), Member("bob", b"\x02" * 32, 2**40))
BLOCKS = [b"first block", b""]
SEAL = Trailer(b"\x03" * 32, b"tag")
FORMAT = struct.Struct("<4s B B 10s 16s I I I 32s 32s Q I I H".replace(" ", ""))
"""The header, written down once more."""


def framed(
    header: Header = HEADER,
    members: tuple[Member, ...] = (),
    blocks: list[bytes] | None = None,
    trailer: Trailer = SEAL,
) -> bytes:
    blocks = BLOCKS if blocks is None else blocks
    file = io.BytesIO()
    writer = Writer(file, dataclasses.replace(header, block_count=len(blocks)), members, len(trailer.tag))
    for block in blocks:
        writer.block(block)
    digest = writer.finish(trailer)
    data = file.getvalue()
    assert digest == hashlib.sha256(data[:-32]).digest() == data[-32:]
    return data


AGGREGATE = dataclasses.replace(HEADER, kind="aggregate", name="")
UPDATE_BYTES = framed()
AGGREGATE_BYTES = framed(AGGREGATE, MEMBERS)


# --- round trip -------------------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(["update", "aggregate"]),
    engine=st.sampled_from(["tenseal", "plaintext"]),
    federation=st.binary(min_size=16, max_size=16),
    numbers=st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
    values=st.integers(0, 2**64 - 1),
    name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True),
    weights=st.lists(st.integers(1, 2**40), max_size=4),
    blocks=st.lists(st.binary(max_size=50), max_size=4),
    tag=st.binary(max_size=80),
)
def test_what_is_written_is_read(
    kind: Any,
    engine: str,
    federation: bytes,
    numbers: tuple[int, int, int],
    values: int,
    name: str,
    weights: list[int],
    blocks: list[bytes],
    tag: bytes,
) -> None:
    header = Header(
        kind=kind,
        engine=engine,
        identity=Identity(federation.hex(), numbers[0]),
        round=numbers[1],
        attempt=numbers[2],
        ctx=hashlib.sha256(federation).digest(),
        name=name,
        values=values,
        block_count=len(blocks),
    )
    members = tuple(Member(f"client-{i}", bytes([i]) * 32, weight) for i, weight in enumerate(weights))
    data = framed(header, members, blocks, Trailer(b"s" * 32, tag))
    frame = open_frame(data)
    assert (frame.header, frame.members, frame.trailer) == (header, members, Trailer(b"s" * 32, tag))
    assert list(frame.blocks()) == blocks == list(frame.blocks())
    assert frame.digest == data[-32:]


def test_the_bytes_are_those_that_the_format_describes() -> None:
    value = announcement()
    assert AGGREGATE_BYTES[: FORMAT.size] == FORMAT.pack(
        b"HEFL", 1, 2, b"tenseal", b"\x0f" * 16, 3, 1, 1, value.ctx, b"", 3, 2, 2, 3
    )
    rest = AGGREGATE_BYTES[FORMAT.size :]
    members = b"".join(struct.pack("<32s32sQ", m.name.encode(), m.seed, m.weight) for m in MEMBERS)
    blocks = struct.pack("<I", 11) + b"first block" + struct.pack("<I", 0)
    assert rest[:-32] == members + blocks + b"\x03" * 32 + b"tag"
    update = FORMAT.pack(b"HEFL", 1, 1, b"tenseal", b"\x0f" * 16, 3, 1, 1, value.ctx, b"alice", 3, 2, 0, 3)
    assert UPDATE_BYTES[: FORMAT.size] == update


def test_a_frame_in_a_file_reads_as_one_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "frame"
    path.write_bytes(AGGREGATE_BYTES)
    in_file, in_memory = open_frame(path), open_frame(AGGREGATE_BYTES)
    assert dataclasses.replace(in_file, source=AGGREGATE_BYTES) == in_memory
    assert list(in_file.blocks()) == BLOCKS


@given(st.lists(st.integers(0, 100), max_size=5), st.integers(0, 5), st.integers(0, 80))
def test_no_frame_is_longer_than_the_bound(lengths: list[int], members: int, tag_bytes: int) -> None:
    data = framed(
        AGGREGATE,
        tuple(Member("a", bytes(32), 1) for _ in range(members)),
        [bytes(n) for n in lengths],
        Trailer(tag=bytes(tag_bytes)),
    )
    assert len(data) <= max_bytes(len(lengths), 100, members, tag_bytes)
    if lengths and min(lengths) == 100:
        assert len(data) == max_bytes(len(lengths), 100, members, tag_bytes)


def test_a_writer_refuses_to_end_before_all_blocks_are_there_or_after_too_many() -> None:
    for count in (1, 3):
        writer = Writer(io.BytesIO(), HEADER)
        for _ in range(count):
            writer.block(b"x")
        with pytest.raises(ValueError, match="blocks are missing"):
            writer.finish(Trailer())


def test_a_writer_refuses_a_tag_of_another_length() -> None:
    writer = Writer(io.BytesIO(), dataclasses.replace(HEADER, block_count=0), tag_bytes=3)
    with pytest.raises(ValueError, match="tag"):
        writer.finish(Trailer(tag=b"four"))


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [UPDATE_BYTES, AGGREGATE_BYTES], ids=["update", "aggregate"])
@pytest.mark.parametrize("digest", [False, True], ids=["cut", "cut and digested anew"])
def test_a_frame_cut_at_any_byte_is_refused(data: bytes, digest: bool) -> None:
    for length in range(len(data)):
        cut = data[:length]
        with pytest.raises(MalformedError):
            open_frame(cut[:-32] + hashlib.sha256(cut[:-32]).digest() if digest else cut)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    for length in (0, 1, FORMAT.size, len(AGGREGATE_BYTES) - 1):
        (tmp_path / "frame").write_bytes(AGGREGATE_BYTES[:length])
        with pytest.raises(MalformedError, match="truncated"):
            open_frame(tmp_path / "frame")


@pytest.mark.parametrize("data", [UPDATE_BYTES, redigested(b"HEFL" + bytes(3 << 20))], ids=["frame", "long nonsense"])
def test_a_file_is_whole_where_its_digest_is_that_of_its_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "frame"
    path.write_bytes(data)
    assert is_whole(path)
    damaged = [data[:-1], data[1:], data + b"x", b"", data[-32:]]
    damaged += [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in (0, 36, len(data) // 2, len(data) - 1)]
    for other in damaged:
        path.write_bytes(other)
        assert not is_whole(path)


@pytest.mark.parametrize("data", [UPDATE_BYTES, AGGREGATE_BYTES], ids=["update", "aggregate"])
@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_anywhere_is_refused(data: bytes, bits: int) -> None:
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= bits
        with pytest.raises((MalformedError, VersionError)):
            open_frame(bytes(flipped))


@given(st.binary(min_size=1, max_size=40))
def test_bytes_too_many_are_refused(extra: bytes) -> None:
    with pytest.raises(MalformedError):
        open_frame(UPDATE_BYTES + extra)
    with pytest.raises(MalformedError, match=f"{len(extra)} bytes too many"):
        open_frame(redigested(UPDATE_BYTES[:-32] + extra + bytes(32)))


@given(st.binary(max_size=400))
@example(FORMAT.pack(b"HEFL", 1, 1, b"tenseal", bytes(16), 1, 1, 1, bytes(32), b"", 2**63, 2**32 - 1, 0, 0) + bytes(64))
def test_arbitrary_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(MalformedError):
        open_frame(data)


@given(st.integers(0, len(AGGREGATE_BYTES) - 33), st.integers(1, 255))
def test_a_liars_change_under_a_right_digest_parses_or_is_refused(at: int, bits: int) -> None:
    changed = bytearray(AGGREGATE_BYTES)
    changed[at] ^= bits
    try:
        frame = open_frame(redigested(changed))
    except (MalformedError, VersionError):
        return
    assert isinstance(frame, Frame)
    list(frame.blocks())


def patched(at: int, value: bytes, data: bytes = AGGREGATE_BYTES) -> bytes:
    changed = bytearray(data)
    changed[at : at + len(value)] = value
    return redigested(changed)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (patched(0, b"HEFX"), "do not start"),
        (patched(4, b"\x02"), "wire format 2 came.*format 1"),
        (patched(5, b"\x03"), "kind 3"),
        (patched(6, b"\xff"), "not a name"),
        (patched(6, b"ten\0eal"), "not a name"),
        (patched(FORMAT.size - 6, struct.pack("<I", MAX_CLIENTS + 1)), f"{MAX_CLIENTS + 1} members"),
        (patched(FORMAT.size - 6, struct.pack("<I", MAX_CLIENTS)), "truncated"),
        (patched(FORMAT.size - 10, struct.pack("<I", 2**32 - 1)), "truncated|a block of"),
        (patched(FORMAT.size, b"\xc3\xa4"), "not a name"),
        (patched(FORMAT.size, b"HEFL" * 100), None),
    ],
)
def test_a_header_that_no_honest_peer_writes_is_refused(data: bytes, message: str | None) -> None:
    with pytest.raises((MalformedError, VersionError), match=message):
        open_frame(data)


def test_a_reader_is_never_made_to_hold_more_than_the_longest_block_of_any_engine() -> None:
    framed(blocks=[bytes(MAX_BLOCK_BYTES)])
    with pytest.raises(ValueError, match=f"{MAX_BLOCK_BYTES + 1} bytes"):
        framed(blocks=[bytes(MAX_BLOCK_BYTES + 1)])
    longer = framed(blocks=[bytes(MAX_BLOCK_BYTES), bytes(4)])
    joined = patched(FORMAT.size - 10, struct.pack("<I", 1), longer)
    with pytest.raises(MalformedError, match=f"none has more than {MAX_BLOCK_BYTES}"):
        open_frame(patched(FORMAT.size, struct.pack("<I", MAX_BLOCK_BYTES + 8), joined))


@pytest.mark.parametrize("name", ENGINES)
def test_no_engine_makes_a_longer_block(name: str) -> None:
    engine = load_engine(name, insecure_plaintext=True)
    for values in (1, 10**5, 10**7, 4 * MAX_VALUES):
        for weights in ({"a": 1}, {"a": 1, "b": 2**16 - 1}):
            assert engine.max_block_bytes(Attempt(bytes(32), values, weights)) <= MAX_BLOCK_BYTES


# --- where a frame belongs --------------------------------------------------------------------------------------------


def test_a_header_belongs_where_it_is_equal() -> None:
    open_frame(UPDATE_BYTES).header.check(HEADER)


@pytest.mark.parametrize(
    ("change", "error", "status"),
    [
        ({"kind": "aggregate"}, MalformedError, 400),
        ({"identity": Identity("0e" * 16, 3)}, MismatchError, 403),
        ({"identity": Identity("0f" * 16, 2)}, MismatchError, 403),
        ({"engine": "plaintext"}, EngineError, 409),
        ({"round": 0}, StaleError, 410),
        ({"round": 2}, StaleError, 410),
        ({"attempt": 2}, StaleError, 410),
        ({"ctx": bytes(32)}, StaleError, 410),
        ({"name": "bob"}, ConflictError, 409),
        ({"values": 4}, MalformedError, 400),
        ({"block_count": 3}, MalformedError, 400),
    ],
)
def test_a_header_of_elsewhere_is_refused_by_what_differs(
    change: dict[str, Any], error: type[HeflError], status: int
) -> None:
    other = dataclasses.replace(HEADER, **change)
    for here, there in ((HEADER, other), (other, HEADER)):
        with pytest.raises(error) as caught:
            here.check(there)
        assert type(caught.value) is error
        assert caught.value.http_status == status


def test_a_header_takes_everything_from_identity_and_announcement() -> None:
    value = announcement(round=7, attempt=2, engine="plaintext", values=9)
    assert Header.of("update", IDENTITY, value, 4, "bob") == Header(
        kind="update",
        engine="plaintext",
        identity=IDENTITY,
        round=7,
        attempt=2,
        ctx=value.ctx,
        name="bob",
        values=9,
        block_count=4,
    )


def test_a_frame_that_claims_more_blocks_than_belong_is_refused_before_they_are_read() -> None:
    file = io.BytesIO()
    Writer(file, dataclasses.replace(HEADER, block_count=200_000))
    with pytest.raises(MalformedError, match="in 200000 blocks, not 3 in 2"):
        open_frame(file.getvalue() + bytes(32), HEADER)  # of which nothing but the header is there
    with pytest.raises(MalformedError, match="truncated"):
        open_frame(file.getvalue() + bytes(32))
