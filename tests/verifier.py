"""A second verifier: checks what a round left behind, decrypts it, and decodes the model. Nothing of hefl's is in it.

    PYTHONPATH=tests python -m verifier SECRET.hefl RECORD.json AGGREGATE.agg [--earlier RECORDS.json]

prints check by check, and exits with 1 at the first that fails. With the records of all earlier rounds (a JSON list)
it also follows the chain of heads from its beginning.

Python's integers and hashlib, AES and HKDF from ``cryptography``, and the primitives of ``packed_reference``. Written
from hefl/README.md and keys/README.md alone, in the order in which that page has a reader refuse: form, place, members,
residues, tag, and only then a secret.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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


# --- one round --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """What an aggregate holds: the exact sums of integers, and the reduced weight that is in them."""

    announcement: Json
    sums: Sequence[int]
    weight: int
    clients: int


class Round:
    """One round's record and its aggregate, read; nothing is decrypted before ``checks`` has run to its end."""

    def __init__(self, key: Key, record: Json, aggregate: bytes) -> None:
        self.key, self.record = key, read_record(record)
        self.announcement: Json = self.record["announcement"]
        self.ctx = ctx_of(self.announcement)
        self.frame = read_frame(aggregate)
        people, client = self.announcement["participants"], self.announcement["weighting"] == "client"
        plain = client or self.announcement["exchange"] == "initial"
        self.announced = {p["name"]: 1 if plain else p["num_examples"] for p in people}
        self.weights = reference.reduced(self.announced)
        self.precision = self.announcement["precision_bits"] + 10 * client
        require("record", self.precision <= 40, f"lanes for {self.precision} bits")
        self.plan = reference.plan(self.announcement["values"], self.precision, sum(self.weights.values()))
        self.moduli = reference.primes(self.plan.degree)[: self.plan.limbs]
        self.blocks: list[list[list[int]]] = []
        self.authentic = False

    def checks(self) -> Iterator[str]:
        """All that is checked before a secret is touched; tells what has passed."""
        self._place()
        yield "place: kind, federation, generation, engine, round, attempt, ctx, name, values, blocks, seed"
        self._members()
        yield "members: as recorded; names-distinct, names-announced, weights-announced, names-ordered, members-enough"
        self._residues()
        yield "residues"
        self._tag()
        yield "tag"

    def open(self) -> Opened:
        """Check, and then decrypt."""
        for _ in self.checks():
            pass
        return self.decrypt()

    def _place(self) -> None:
        """What the frame is meant for."""
        frame, plan = self.frame, self.plan
        expected = {
            "kind": (frame.kind, 2),
            "federation": (frame.federation, self.key.federation),
            "generation": (frame.generation, self.key.generation),
            "engine": (frame.engine, b"packed"),
            "round": (frame.round, self.announcement["round"]),
            "attempt": (frame.attempt, self.announcement["attempt"]),
            "ctx": (frame.ctx, self.ctx),
            "name": (frame.name, b""),
            "values": (frame.values, self.announcement["values"]),
            "blocks": (len(frame.blocks), plan.blocks),
            "tag-length": (len(frame.tag), plan.tag_bytes),
            "seed": (frame.seed, bytes(32)),
            "record-digest": (frame.digest.hex(), self.record["digest"]),
            "record-tag": (frame.tag.hex(), self.record["tag"]),
        }
        for check, (found, right) in expected.items():
            require(check, found == right, f"the aggregate has {found!r}, and {right!r} belongs there")

    def _members(self) -> None:
        members, listed = self.frame.members, self.record["members"]
        said = [(m["name"], bytes.fromhex(m["seed"]), m["weight"]) for m in listed]
        require("record-members", list(members) == said, "the aggregate's members are not its record's")
        names = [name for name, _, _ in members]
        require("names-distinct", len(set(names)) == len(names), "a member stands twice")
        require("names-announced", self.announced.keys() >= set(names), "a member was not announced")
        weights = {name: weight for name, _, weight in members}
        require(
            "weights-announced", all(self.announced[n] == w for n, w in weights.items()), "a weight was not announced"
        )
        require("names-ordered", names == [n for n in self.announced if n in weights], "members out of order")
        least = 1 if self.announcement["exchange"] == "initial" else 2
        require("members-enough", len(names) >= least, f"a sum of {len(names)}")

    def _residues(self) -> None:
        bits, n = self.plan.bits, self.plan.degree
        self.blocks.clear()
        for data in self.frame.blocks:
            require("residues", len(data) == self.plan.block_bytes, f"a block of {len(data)} bytes")
            flat = reference.unpacked(data, bits)
            block = [flat[j * n : (j + 1) * n] for j in range(len(self.moduli))]
            for q, limb in zip(self.moduli, block, strict=True):
                require("residues", max(limb) < q, "one is not below its prime")
            self.blocks.append(block)
        tag = reference.unpacked(self.frame.tag, bits)[: 3 * len(self.moduli)]
        require("residues", all(t < self.moduli[i // 3] for i, t in enumerate(tag)), "a tag is not reduced")
        require(
            "residues", int.from_bytes(self.frame.tag, "little") >> len(tag) * bits == 0, "a tag with bits to spare"
        )

    def _tag(self) -> None:
        key, bits = self.key.group_key, self.plan.bits
        expected = reference.hashed(key, self.ctx, self.blocks, self.moduli, bits)
        for name, seed, _ in self.frame.members:
            for i, pad in enumerate(reference.pads(key, self.ctx, seed, name, self.moduli, bits)):
                expected[i] = (expected[i] + self.weights[name] * pad) % self.moduli[i // 3]
        tag = reference.packed(expected, bits).to_bytes(self.plan.tag_bytes, "little")
        require(
            "tag", hmac.compare_digest(tag, self.frame.tag), "it is not the announced sum of these members' updates"
        )
        self.authentic = True

    def decrypt(self) -> Opened:
        """The sums of an aggregate that has passed ``checks``."""
        require("tag", self.authentic, "it was not checked yet")
        n, weight = self.plan.degree, sum(self.weights[name] for name, _, _ in self.frame.members)
        secret = [0] * n
        for name, seed, _ in self.frame.members:
            one_time = reference.one_time_secret(self.key.group_key, self.ctx, seed, name, n)
            secret = [s + self.weights[name] * t for s, t in zip(secret, one_time, strict=True)]
        sums: list[int] = []
        for number_, block in enumerate(self.blocks):
            masks = reference.masks(self.ctx, number_, secret, self.moduli, self.plan.bits)
            opened = [
                [(c + a) % q for c, a in zip(limb, mask, strict=True)]
                for q, limb, mask in zip(self.moduli, block, masks, strict=True)
            ]
            sums += self._lanes(opened, weight)
        return Opened(self.announcement, sums[: self.announcement["values"]], weight, len(self.frame.members))

    def _lanes(self, block: Sequence[Sequence[int]], weight: int) -> list[int]:
        """A decrypted block's values, lane after lane."""
        plan, modulus = self.plan, 1
        for q in self.moduli:
            modulus *= q
        parts = [modulus // q * pow(modulus // q, -1, q) for q in self.moduli]
        starts = [plan.margin + k * plan.width for k in range(plan.lanes)]
        bias = (1 << (plan.margin - 1)) + sum(1 << (at + plan.width - 1) for at in starts)
        whole_ = [
            (sum(r * p for r, p in zip(rs, parts, strict=True)) + bias) % modulus for rs in zip(*block, strict=True)
        ]

        def cut(at: int, size: int) -> list[int]:
            return [(x >> at & ((1 << size) - 1)) - (1 << (size - 1)) for x in whole_]

        lanes = [value for at in starts for value in cut(at, plan.width)]
        bound = weight * ((1 << (self.precision - 1)) - 1)
        require("top-bits", max(whole_) >> (starts[-1] + plan.width) == 0, "something stands above the top lane")
        require("noise", max(map(abs, cut(0, plan.margin))) <= 21 * weight, f"it is over {21 * weight}")
        require("lanes", max(map(abs, lanes)) <= bound, f"a sum is over {bound}")
        return lanes


def report(given: argparse.Namespace) -> Iterator[str]:
    key = read_key(given.secret.read_bytes())
    yield "ok       key-file"
    record = read_record(parse(given.record.read_bytes()))
    yield "ok       record"
    listed = parse(given.earlier.read_bytes()) if given.earlier else []
    require("record", isinstance(listed, list), "--earlier takes a list of records")
    earlier = [read_record(value) for value in listed]
    if given.earlier or record["announcement"]["round"] == 0:
        check_history([*earlier, record], key, record["announcement"]["run"])
        yield f"ok       head, from the run's beginning through {len(earlier)} earlier records"
    else:
        yield "skipped  head: --earlier was not given"
    read = Round(key, record, given.aggregate.read_bytes())
    yield "ok       frame and digest"
    for check in read.checks():
        yield f"ok       {check}"
    opened = read.decrypt()
    yield "ok       top-bits, noise, lanes"
    yield f"         {len(opened.sums)} exact sums of {opened.clients} clients, total weight {opened.weight}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="verifier", description="Check and decrypt one recorded round.")
    parser.add_argument("secret", type=Path, metavar="SECRET.hefl")
    parser.add_argument("record", type=Path, metavar="RECORD.json")
    parser.add_argument("aggregate", type=Path, metavar="AGGREGATE.agg")
    parser.add_argument("--earlier", type=Path, metavar="RECORDS.json", help="a list of all earlier rounds' records")
    try:
        for line in report(parser.parse_args(arguments)):
            sys.stdout.write(line + "\n")
    except RefusedError as error:
        sys.stdout.write(f"FAILED   {error}\n")
        return 1
    except OSError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
