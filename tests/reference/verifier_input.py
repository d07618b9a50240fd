"""What the second verifier reads: key files, records and their history, frames. Nothing of hefl's is in it.

From keys/README.md and hefl/protocol/README.md; each reader refuses what they do not allow, by the name of a check.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import packed_reference as reference

MAX_MEMBERS = 1024
MAX_BLOCK_BYTES = 1 << 20
NAME = r"[a-z0-9][a-z0-9-]{0,31}"


class RefusedError(Exception):
    """A check failed; ``check`` is its name."""

    def __init__(self, check: str, why: str) -> None:
        super().__init__(f"{check}: {why}")
        self.check = check


def require(check: str, holds: bool, why: str) -> None:
    if not holds:
        raise RefusedError(check, why)


# --- the key file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """What a ``secret.hefl`` says that a verifier needs."""

    federation: bytes
    generation: int
    group_key: bytes = field(repr=False)


SECRET_FIELDS = {
    "federation": r"[0-9a-f]{32}",
    "generation": r"[1-9][0-9]*",
    "holder": NAME,
    "created": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "tenseal": r"\S+",
    "seal": r"\S+",
    "ckks-fingerprint": r"[0-9a-f]{64}",
    "group-fingerprint": r"[0-9a-f]{64}",
    "rings": r"\d+:\d+(,\d+)*( \d+:\d+(,\d+)*)*",
    "ckks": r"[A-Za-z0-9+/]+={0,2}",
    "group-key": r"[A-Za-z0-9+/]+={0,2}",
    "checksum": r"[0-9a-f]{64}",
}


def from_base64(text: str) -> bytes:
    require("key-file", len(text) % 4 == 0, "base64 without its padding")
    data = base64.b64decode(text)
    require("key-file", base64.b64encode(data).decode() == text, "base64 that is written in another way")
    return data


def read_key(data: bytes) -> Key:
    require("key-file", data.isascii() and data.endswith(b"\n"), "not ASCII, or its last line does not end")
    first, *lines = data.decode()[:-1].split("\n")
    require("key-file", first == "hefl/v1 secret", f"it starts with {first[:20]!r}")
    pairs = [line.split(": ", 1) for line in lines]
    require("key-file", [pair[0] for pair in pairs] == [*SECRET_FIELDS], "fields missing, unknown or out of order")
    fields = {pair[0]: pair[-1] for pair in pairs}
    for name, form in SECRET_FIELDS.items():
        require("key-file", re.fullmatch(form, fields[name]) is not None, f"{name} is not in form")
    head = data[: data.rindex(b"checksum: ")]
    require("key-file", hashlib.sha256(head).hexdigest() == fields["checksum"], "its checksum is another")
    group_key, ckks = from_base64(fields["group-key"]), from_base64(fields["ckks"])
    require("key-file", len(group_key) == 32, "the group key has not 32 bytes")
    prints = (
        hashlib.sha256(b"hefl/v1/fingerprint" + ckks).hexdigest(),
        reference.derive(group_key, b"", "hefl/v1/fingerprint").hex(),
    )
    require(
        "key-file", prints == (fields["ckks-fingerprint"], fields["group-fingerprint"]), "keys without their prints"
    )
    return Key(bytes.fromhex(fields["federation"]), int(fields["generation"]), group_key)


# --- records ----------------------------------------------------------------------------------------------------------

Json = dict[str, Any]
Holds = Callable[[Any], bool]


def parse(data: bytes) -> Any:
    """JSON in UTF-8; no name twice, no NaN."""

    def once(pairs: list[tuple[str, Any]]) -> Json:
        require("record", len(dict(pairs)) == len(pairs), "a field stands twice")
        return dict(pairs)

    def refuse(text: str) -> None:
        raise RefusedError("record", f"{text} is no number")

    try:
        return json.loads(data.decode(), object_pairs_hook=once, parse_constant=refuse)
    except ValueError as error:
        raise RefusedError("record", f"not JSON: {error}") from error


def hexadecimal(size: int) -> Holds:
    return lambda value: isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", value) is not None


def whole(low: int, high: int) -> Holds:
    return lambda value: type(value) is int and low <= value <= high


def one_of(*values: str) -> Holds:
    return lambda value: value in values


def is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(NAME, value) is not None


def is_list(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= MAX_MEMBERS


PARTICIPANT: Mapping[str, Holds] = {"name": is_name, "num_examples": whole(1, 2**40), "join_nonce": hexadecimal(16)}
MEMBER: Mapping[str, Holds] = {"name": is_name, "seed": hexadecimal(32), "weight": whole(1, 2**40)}
ANNOUNCEMENT: Mapping[str, Holds] = {
    "run": hexadecimal(16),
    "round": whole(0, 2**31 - 1),
    "attempt": whole(1, 2**31 - 1),
    "exchange": one_of("initial", "training", "closing"),
    "engine": one_of("packed"),
    "precision_bits": whole(8, 40),
    "weighting": one_of("server", "client"),
    "nonce": hexadecimal(32),
    "head": hexadecimal(32),
    "values": whole(1, 2**33),
    "deadline_s": lambda value: type(value) in (int, float) and 0 < value < float("inf"),
    "participants": is_list,
}
RECORD: Mapping[str, Holds] = {
    "announcement": lambda value: isinstance(value, dict),
    "members": is_list,
    "digest": hexadecimal(32),
    "tag": lambda value: isinstance(value, str) and re.fullmatch(r"([0-9a-f]{2})*", value) is not None,
}


def check_fields(value: Any, fields: Mapping[str, Holds], what: str) -> None:
    require("record", isinstance(value, dict) and value.keys() == fields.keys(), f"fields of {what}")
    for name, holds in fields.items():
        require("record", holds(value[name]), f"{name} of {what}")


def read_record(value: Any) -> Json:
    """A record in form; ``deadline_s`` becomes a float, as it is hashed."""
    check_fields(value, RECORD, "a record")
    announcement = value["announcement"]
    check_fields(announcement, ANNOUNCEMENT, "an announcement")
    for participant in announcement["participants"]:
        check_fields(participant, PARTICIPANT, "a participant")
    for member in value["members"]:
        check_fields(member, MEMBER, "a member")
    names = [p["name"] for p in announcement["participants"]]
    require("record", names == sorted(set(names)), "participants are not sorted, or one stands twice")
    initial = announcement["exchange"] == "initial"
    require("record", initial == (announcement["round"] == 0), "round 0 is initial, and no other")
    require("record", not initial or len(names) == 1, "initial arrays of several participants")
    return {**value, "announcement": {**announcement, "deadline_s": float(announcement["deadline_s"])}}


def canonical(value: Any) -> bytes:
    """The bytes that are hashed."""
    if isinstance(value, dict):
        return b"{" + b",".join(canonical(name) + b":" + canonical(value[name]) for name in sorted(value)) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(canonical, value)) + b"]"
    if isinstance(value, float):
        return number(value).encode()
    return json.dumps(value, ensure_ascii=False).encode()


def number(value: float) -> str:
    """The shortest digits; an exponent from 1e16 on and below 1e-5, without a sign or zeros that nobody needs."""
    mantissa, _, exponent = repr(value).partition("e")
    if not exponent:
        return mantissa
    if 1e-5 <= value < 1e-4:
        return "0." + "0" * (-int(exponent) - 1) + mantissa.replace(".", "")
    return f"{mantissa}e{int(exponent)}"


def ctx_of(announcement: Json) -> bytes:
    return hashlib.sha256(b"hefl/v1/ctx" + bytes.fromhex(announcement["head"]) + canonical(announcement)).digest()


def head_of(record: Json) -> str:
    return hashlib.sha256(b"hefl/v1/head" + canonical(record)).hexdigest()


def check_history(records: Sequence[Json], key: Key, run: str) -> None:
    """One run from its beginning, round after round, each record extending the one before."""
    head = reference.genesis(key.federation, key.generation, bytes.fromhex(run)).hex()
    for number_, record in enumerate(records):
        announcement = record["announcement"]
        require("run", announcement["run"] == run, f"round {number_} is of run {announcement['run']}")
        require("rounds", announcement["round"] == number_, f"round {announcement['round']} where {number_} belongs")
        require("head", announcement["head"] == head, f"round {number_} does not extend the history before it")
        head = head_of(record)


# --- frames -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    kind: int
    engine: bytes
    federation: bytes
    generation: int
    round: int
    attempt: int
    ctx: bytes
    name: bytes
    values: int
    members: Sequence[tuple[str, bytes, int]]
    blocks: Sequence[bytes]
    seed: bytes
    tag: bytes
    digest: bytes


class Bytes:
    """Takes from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        require("frame", self.at + count <= len(self.data), "truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def name(self, count: int) -> bytes:
        name = self.take(count).rstrip(b"\0")
        require("frame", name.isascii() and b"\0" not in name, "a name that is none")
        return name


def read_frame(data: bytes) -> Frame:
    source = Bytes(data)
    require("frame", source.take(4) == b"HEFL", "not one of hefl's")
    require("frame", source.number(1) == 1, "of another version")
    kind, engine, federation = source.number(1), source.name(10), source.take(16)
    require("frame", kind in (1, 2), f"kind {kind}")
    generation, round_, attempt = (source.number(4) for _ in range(3))
    ctx, name, values = source.take(32), source.name(32), source.number(8)
    block_count, member_count, tag_length = source.number(4), source.number(4), source.number(2)
    require("frame", member_count <= MAX_MEMBERS, f"{member_count} members")
    members = [(source.name(32).decode(), source.take(32), source.number(8)) for _ in range(member_count)]
    blocks = []
    for _ in range(block_count):
        length = source.number(4)
        require("frame", length <= MAX_BLOCK_BYTES, f"a block of {length} bytes")
        blocks.append(source.take(length))
    seed, tag = source.take(32), source.take(tag_length)
    digest = hashlib.sha256(data[: source.at]).digest()
    found = source.take(32)
    require("frame", source.at == len(data), "bytes after the end")
    require("digest", found == digest, "it is not that of the bytes before it")
    return Frame(
        kind,
        engine,
        federation,
        generation,
        round_,
        attempt,
        ctx,
        name,
        values,
        members,
        blocks,
        seed,
        tag,
        digest,
    )
