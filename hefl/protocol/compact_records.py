"""Encode records in few bytes, for a client that was away.

MessagePack of arrays, with bytes for hexadecimal text, and a member by its place among the participants. What is hashed
is a record's canonical JSON all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from hefl.errors import MalformedError
from hefl.params import MAX_CLIENTS, RECORDS_AT_ONCE
from hefl.protocol.messages import UNREADABLE
from hefl.protocol.records import Announcement, Record


class _Participant(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    num_examples: int
    join_nonce: bytes


class _Member(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    place: int
    seed: bytes
    weight: int


class _Record(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    run: bytes
    round: int
    attempt: int
    exchange: str
    engine: str
    precision_bits: int
    weighting: str
    nonce: bytes
    head: bytes
    values: int
    deadline_s: float
    participants: Annotated[tuple[_Participant, ...], msgspec.Meta(max_length=MAX_CLIENTS)]
    members: Annotated[tuple[_Member, ...], msgspec.Meta(max_length=MAX_CLIENTS)]
    digest: bytes
    tag: bytes


# Lengths are checked before what they count is made: a few bytes of MessagePack become a hundred of Python's.
_Parts = Annotated[list[bytes], msgspec.Meta(max_length=RECORDS_AT_ONCE)]


def to_bytes(record: Record) -> bytes:
    """A record whose members are participants."""
    of = record.announcement
    places = {name: place for place, name in enumerate(of.names)}
    return msgspec.msgpack.encode(
        _Record(
            run=bytes.fromhex(of.run),
            round=of.round,
            attempt=of.attempt,
            exchange=of.exchange,
            engine=of.engine,
            precision_bits=of.precision_bits,
            weighting=of.weighting,
            nonce=bytes.fromhex(of.nonce),
            head=bytes.fromhex(of.head),
            values=of.values,
            deadline_s=of.deadline_s,
            participants=tuple(
                _Participant(p.name, p.num_examples, bytes.fromhex(p.join_nonce)) for p in of.participants
            ),
            members=tuple(_Member(places[m.name], bytes.fromhex(m.seed), m.weight) for m in record.members),
            digest=bytes.fromhex(record.digest),
            tag=bytes.fromhex(record.tag),
        )
    )


def from_bytes(data: bytes) -> Record:
    """Inverse of to_bytes, checked as a record that comes as JSON.

    Raises:
        MalformedError: It does not parse, or a value is out of bounds.
    """
    try:
        short = msgspec.msgpack.decode(data, type=_Record)
        announcement = {
            **{name: _plain(getattr(short, name)) for name in Announcement.__struct_fields__ if name != "participants"},
            "participants": [
                {"name": p.name, "num_examples": p.num_examples, "join_nonce": p.join_nonce.hex()}
                for p in short.participants
            ],
        }
        members = [
            {"name": short.participants[_place(m, short)].name, "seed": m.seed.hex(), "weight": m.weight}
            for m in short.members
        ]
        whole = {"announcement": announcement, "members": members, "digest": short.digest.hex(), "tag": short.tag.hex()}
        return msgspec.convert(whole, Record)
    except UNREADABLE as error:
        raise MalformedError(f"not a record: {error}") from error


def encode_records(records: Sequence[Record]) -> bytes:
    """Records of one answer."""
    return msgspec.msgpack.encode([to_bytes(record) for record in records])


def decode_records(data: bytes) -> tuple[Record, ...]:
    """Inverse of encode_records. Raises as from_bytes."""
    try:
        parts = msgspec.msgpack.decode(data, type=_Parts)
    except UNREADABLE as error:
        raise MalformedError(f"not a list of records: {error}") from error
    return tuple(from_bytes(part) for part in parts)


def _plain(value: bytes | int | float | str) -> int | float | str:
    return value.hex() if isinstance(value, bytes) else value


def _place(member: _Member, short: _Record) -> int:
    if not 0 <= member.place < len(short.participants):
        raise msgspec.ValidationError(f"a member at place {member.place} of {len(short.participants)}")
    return member.place
