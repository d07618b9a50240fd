"""Makes the vectors of the wire format again, with the reference implementation and nothing of hefl's.

    PYTHONPATH=tests/reference python tests/reference/vectors/make.py

writes frames.json and the frames beside this file. Everything in them is derived from the names in here, the keys too:
they are published, and made for these vectors only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import packed_reference as reference

HERE = Path(__file__).parent

ABOUT = [
    "Test vectors of the wire format, version 1; hefl/protocol/README.md describes it.",
    "The keys are published and made for these vectors only: never encrypt anything else under them.",
    "Value i of a client is cycle[i % len(cycle)]; element i of the sum is sum[i % len(sum)].",
    "A bad frame is the good one 'of' with edits [offset, bytes to take out, bytes to put in]; offsets are of the good",
    "one. Where digest is true, its last 32 bytes are then the SHA-256 of all before them. sha256 is of the result.",
    "It is read as an update of 'from' by the server, or else as the aggregate by a client; 'with' replaces fields of",
    "its 'sum' for that.",
]

Edits = list[tuple[int, int, str]]


def derived(label: str) -> bytes:
    return hashlib.sha256(b"hefl test vectors " + label.encode()).digest()


def weights() -> list[dict[str, Any]]:
    cases = [
        {"a": 30, "b": 10},
        {"a": 7},
        {"a": 65535, "b": 1},
        {"a": 65536, "b": 1},
        {"a": 10**12, "b": 3, "c": 10**12 - 1},
        {"a": 100_003, "b": 100_003, "c": 100_019},
        {"a": 1_000_000, "b": 1, "c": 1, "d": 30, "e": 999_999},
    ]
    sums = [(case, list(case)) for case in cases]
    sums += [(cases[-1], ["b", "d"]), (cases[4], ["b", "c"]), ({"a": 30, "b": 10, "c": 7}, ["a", "b"])]
    return [
        {"num_examples": case, "members": members, "weights": reference.weights_in(case, members)}
        for case, members in sums
    ]


def plans() -> list[dict[str, Any]]:
    cases = [(1, 24, 1), (7, 24, 4), (8200, 8, 4), (61_706, 24, 3), (1_663_370, 24, 2444), (10**7, 40, 65536)]
    fields = ("degree", "bits", "limbs", "lanes", "margin", "width", "blocks", "block_bytes", "tag_bytes")
    return [
        {"values": v, "precision_bits": p, "total_weight": w}
        | {field: getattr(reference.plan(v, p, w), field) for field in fields}
        for v, p, w in cases
    ]


class WeightedSum:
    """One attempt, with all its frames."""

    def __init__(
        self,
        what: str,
        precision: int,
        values: int,
        num_examples: Mapping[str, int],
        cycles: Mapping[str, Sequence[int]],
    ) -> None:
        """Those in cycles, all of one length, take part; those without drop out."""
        self.what = what
        self.key = derived(f"{what} key")
        self.federation, run = derived("federation")[:16], derived(f"{what} run")[:16]
        self.announcement: dict[str, Any] = {
            "run": run.hex(),
            "round": 1,
            "attempt": 2,
            "exchange": "training",
            "engine": "packed",
            "precision_bits": precision,
            "weighting": "server",
            "nonce": derived(f"{what} nonce").hex(),
            "head": reference.genesis(self.federation, 1, run).hex(),
            "values": values,
            "deadline_s": 60.0,
            "participants": [
                {"name": name, "num_examples": n, "join_nonce": derived(f"{what} {name} join")[:16].hex()}
                for name, n in num_examples.items()
            ],
        }
        self.ctx = reference.ctx_of(self.announcement)
        reduced = reference.reduced(num_examples)
        self.plan = plan = reference.plan(values, precision, sum(reduced.values()))
        self.moduli = reference.primes(plan.degree)[: plan.limbs]
        self.place = reference.Place(self.federation, 1, 1, 2, self.ctx, values)
        self.cycles = cycles
        self.seeds = {name: derived(f"{what} {name} seed") for name in num_examples}
        updates = {name: self._update(name, precision, sum(reduced.values())) for name in cycles}
        parts = [[(reduced[name], blocks[b]) for name, (blocks, _) in updates.items()] for b in range(plan.blocks)]
        tags = [(reduced[name], tag) for name, (_, tag) in updates.items()]
        self.members = [(name, self.seeds[name], num_examples[name]) for name in cycles]
        self.tag = reference.add_up(tags, plan.bits, self.moduli)
        self.frames = {
            f"{what}-{name}.update": reference.frame(1, self.place, name, blocks, self.seeds[name], tag)
            for name, (blocks, tag) in updates.items()
        }
        self.aggregate_name = f"{what}.aggregate"
        blocks = [reference.add_up(part, plan.bits, self.moduli) for part in parts]
        self.frames[self.aggregate_name] = reference.frame(2, self.place, "", blocks, bytes(32), self.tag, self.members)
        self.weight = sum(reduced[name] for name in cycles)
        length = len(next(iter(cycles.values())))
        self.sum = [sum(reduced[name] * cycle[i] for name, cycle in cycles.items()) for i in range(length)]

    def _update(self, name: str, precision: int, total_weight: int) -> tuple[list[bytes], bytes]:
        values, cycle = self.place.values, self.cycles[name]
        return reference.update(
            reference.Given(
                group_key=self.key,
                ctx=self.ctx,
                name=name,
                seed=self.seeds[name],
                noise_key=derived(f"{self.what} {name} noise"),
                degree=self.plan.degree,
                primes=self.moduli,
                bits=self.plan.bits,
                lanes=self.plan.lanes,
                precision=precision,
                total_weight=total_weight,
                values=[cycle[i % len(cycle)] for i in range(values)],
            )
        )

    def described(self, files: Sequence[str]) -> dict[str, Any]:
        record = {
            "announcement": self.announcement,
            "members": [{"name": name, "seed": seed.hex(), "weight": w} for name, seed, w in self.members],
            "digest": self.frames[self.aggregate_name][-32:].hex(),
            "tag": self.tag.hex(),
        }
        return {
            "what": self.what,
            "published_test_key": self.key.hex(),
            "federation": self.federation.hex(),
            "generation": 1,
            "announcement": self.announcement,
            "ctx": self.ctx.hex(),
            "cycles": self.cycles,
            "sum": self.sum,
            "total_weight": self.weight,
            "record": record,
            "head": reference.head_of(record).hex(),
            "sha256": {name: hashlib.sha256(self.frames[name]).hexdigest() for name in files},
        }


def edited(data: bytes, edits: Edits, digest: bool) -> bytes:
    for at, length, put in sorted(edits, reverse=True):
        data = data[:at] + bytes.fromhex(put) + data[at + length :]
    return data[:-32] + hashlib.sha256(data[:-32]).digest() if digest else data


class BadFrames:
    """Ways to spoil the frames of one sum, each with the error that it must be refused with."""

    def __init__(self, of: WeightedSum) -> None:
        self._of = of
        self.entries: list[dict[str, Any]] = []
        self.frame, self._name, self._from = b"", "", ""

    def open(self, name: str, sender: str = "") -> None:
        """Go on with this frame, read as an update of the sender's, or as an aggregate."""
        self._name, self.frame, self._from = name, self._of.frames[name], sender
        self.members = int.from_bytes(self.frame[120:124], "little")
        self.first = 126 + 72 * self.members
        self.tag = len(self.frame) - 32 - len(self._of.tag)
        self.block = 4 + self._of.plan.block_bytes

    def add(
        self,
        what: str,
        edits: Edits,
        error: str,
        message: str,
        *,
        digest: bool = True,
        check: str = "",
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        data = edited(self.frame, edits, digest)
        entry = {"what": what, "sum": self._of.what, "of": self._name, "from": self._from, "edits": edits}
        expected = {"error": error, "message": message, "check": check}
        self.entries.append(
            entry
            | {"digest": digest, "sha256": hashlib.sha256(data).hexdigest(), "with": dict(changes or {})}
            | expected
        )

    def header(self, what: str, at: int, put: str, error: str, message: str) -> None:
        self.add(what, [(at, len(put) // 2, put)], error, message)

    def residue(self, at: int, index: int, value: int) -> Edits:
        """The edit that puts a value in place of a residue, or of a tag's element, of those that start at ``at``."""
        low, bits = index * self._of.plan.bits, self._of.plan.bits
        start, end = low // 8, -(-(low + bits) // 8)
        number = int.from_bytes(self.frame[at + start : at + end], "little")
        number ^= ((number >> low % 8 & ((1 << bits) - 1)) ^ value) << low % 8
        return [(at + start, end - start, number.to_bytes(end - start, "little").hex())]

    def flip(self, at: int) -> Edits:
        return [(at, 1, f"{self.frame[at] ^ 1:02x}")]

    def form(self) -> None:
        """What no frame may be."""
        end, add = len(self.frame), self.add
        self.header("wrong magic", 0, b"HEFX".hex(), "MalformedError", "do not start as hefl's do")
        self.header("version 2", 4, "02", "VersionError", "wire format 2 came")
        self.header("unknown kind", 5, "03", "MalformedError", "kind 3")
        self.header("too many members", 120, "01040000", "MalformedError", "1025 members")
        self.header("an engine's name that is not ASCII", 6, "ff", "MalformedError", "is not a name")
        self.header("a name that is not ASCII", 76, "c3a4", "MalformedError", "is not a name")
        self.header("a name with a zero inside", 77, "00", "MalformedError", "is not a name")
        for where, at in (
            ("to nothing", 0),
            ("in the header", 100),
            ("after the header", 126),
            ("in a block's length", self.first + 2),
            ("in a block", self.first + 1000),
            ("before the seed", self.tag - 32),
            ("in the tag", self.tag + 3),
            ("in the digest", end - 1),
        ):
            add(f"truncated {where}", [(at, end - at, "")], "MalformedError", "truncated", digest=False)
        for where, at in (("in a block", self.first + 1000), ("in the tag", self.tag + 3)):
            add(f"truncated {where}, digested anew", [(at, end - 32 - at, "")], "MalformedError", "truncated")
        add("a byte after the tag", [(end - 32, 0, "00")], "MalformedError", "1 bytes too many")
        add("a byte after the digest", [(end, 0, "00")], "MalformedError", "1 bytes too many", digest=False)
        add("a wrong digest", self.flip(end - 1), "MalformedError", "the digest", digest=False)
        add("a damaged block", self.flip(self.first + 1000), "MalformedError", "the digest", digest=False)
        add("a block's length over 2^20", [(self.first, 4, "01001000")], "MalformedError", "none has more than 1048576")
        add("a block's length of zero", [(self.first, 4, "00000000")], "MalformedError", "bytes too many")

    def _resized(self, cut: int, more: int) -> Edits:
        """The first block with its last bytes cut, or zeros added."""
        size = self.block - 4 - cut + more
        return [
            (self.first, 4, size.to_bytes(4, "little").hex()),
            (self.first + self.block - cut, cut, "00" * more),
        ]

    def place(self) -> None:
        """A frame in form that belongs elsewhere."""
        self.header("another federation", 16, "ab", "MismatchError", "federation ab")
        self.header("another generation", 32, "02000000", "MismatchError", "key generation 2")
        self.header("another engine", 6, b"tenseal\0\0\0".hex(), "EngineError", "'tenseal'")
        self.header("another round", 36, "02000000", "StaleError", "of round 2, attempt 2")
        self.header("another attempt", 40, "01000000", "StaleError", "of round 1, attempt 1")
        self.header("another ctx", 44, "00" * 32, "StaleError", "another run's round 1")
        self.header("another name", 76, (b"mallory" + bytes(25)).hex(), "ConflictError", "'mallory'")
        self.header("another number of values", 108, "08", "MalformedError", "8 values")

    def content(self) -> None:
        """Blocks and tags that are none; whoever reads them finds this before it computes anything."""
        add, (first, *_, last) = self.add, self._of.moduli
        n, count, at = self._of.plan.degree, len(self._of.moduli), self.first + 4
        reduced = "residue that is not below its prime"
        add("the first residue is its prime", self.residue(at, 0, first), "MalformedError", reduced)
        add("a residue one above its prime", self.residue(at, n - 1, first + 1), "MalformedError", reduced)
        add("the last residue is its prime", self.residue(at, n * count - 1, last), "MalformedError", reduced)
        add("a block too short", self._resized(4, 0), "MalformedError", "a block has")
        add("a block too long", self._resized(0, 4), "MalformedError", "a block has")
        none = [(116, 4, "00000000"), (self.first, self.block, "")]
        add("too few blocks", none, "MalformedError", "in 0 blocks")
        short = [(116, 4, "02000000"), (self.first, 0, "00000000")]
        add("too many blocks", short, "MalformedError", "in 2 blocks")
        not_reduced, size = "a tag is not reduced", len(self._of.tag)
        add("a tag's first element is its prime", self.residue(self.tag, 0, first), "MalformedError", not_reduced)
        add(
            "a tag's last element is its prime",
            self.residue(self.tag, 3 * count - 1, last),
            "MalformedError",
            not_reduced,
        )
        spare = self.frame[self.tag + size - 1] | 0x80
        add("bits left over in a tag", [(self.tag + size - 1, 1, f"{spare:02x}")], "MalformedError", not_reduced)
        less, more = (size - 1).to_bytes(2, "little").hex(), (size + 1).to_bytes(2, "little").hex()
        add("a tag too short", [(124, 2, less), (self.tag, 1, "")], "MalformedError", f"a tag has {size - 1} bytes")
        add("a tag too long", [(124, 2, more), (self.tag, 0, "00")], "MalformedError", f"a tag has {size + 1} bytes")

    def update(self) -> None:
        """What only an update can be."""
        name, seed, weight = self._of.members[0]
        member = name.encode().ljust(32, b"\0") + seed + weight.to_bytes(8, "little")
        listed = [(120, 4, "01000000"), (126, 0, member.hex())]
        self.add("an update with a member", listed, "MalformedError", "an update with a list of members")
        self.header("an aggregate in its place", 5, "02", "MalformedError", "an aggregate came")

    def membership(self) -> None:
        """An aggregate of whom it may not be."""
        at, add = 126, self.add
        first, second = self.frame[at : at + 72], self.frame[at + 72 : at + 144]
        both, one, none = [(120, 4, f"{k:02x}000000") for k in (2, 1, 0)]
        add("an update in its place", [(5, 1, "01")], "MalformedError", "an update came")

        def lie(what: str, edits: Edits, check: str, message: str) -> None:
            add(what, edits, "TamperError", message, check=check)

        swapped, weight = (second + first).hex(), at + 64
        lie("a member twice", [both, (at + 72, 72, first.hex())], "names-distinct", "one of them twice")
        lie("members in another order", [both, (at, 144, swapped)], "names-ordered", "the announced order")
        lie("an unknown member", [(at, 32, b"mallory".ljust(32, b"\0").hex())], "names-announced", "'mallory'")
        lie("a member of another weight", [(weight, 8, "1f" + "00" * 7)], "weights-announced", "weighs 31")
        lie("a member of weight 0", [(weight, 8, "00" * 8)], "weights-announced", "weighs 0")
        lie("one member", [one, (at + 72, 72, "")], "enough-members", "a sum of 1 updates")
        lie("no member", [none, (at, 144, "")], "names-distinct", "names no client")
        add("a seed of its own", [(self.tag - 32, 1, "01")], "MalformedError", "a seed of its own")

    def forgery(self) -> None:
        """An aggregate that is well-formed, and is not the sum."""
        altered, at = "not the announced weighted sum", self.first + 4

        def add(what: str, edits: Edits, **changes: Any) -> None:
            self.add(what, edits, "TamperError", altered, check="tag", changes=changes)

        add("a bit of a residue", self.flip(at))
        add("a bit of the last residue", self.residue(at, self._last, self._residue(at, self._last) ^ 1))
        add("a bit of a member's seed", self.flip(126 + 32))
        add("two members' seeds exchanged", self._exchanged(126 + 32, 126 + 72 + 32, 32))
        add("a bit of the tag", self.flip(self.tag))
        add("another tag", [(self.tag, len(self._of.tag), "00" * len(self._of.tag))])
        add("another group key", [], published_test_key=derived("another key").hex())

    @property
    def _last(self) -> int:
        return self._of.plan.degree * len(self._of.moduli) - 1

    def _residue(self, at: int, index: int) -> int:
        data = self.frame[at : at + self._of.plan.block_bytes]
        return reference.unpacked(data, self._of.plan.bits)[index]

    def _exchanged(self, a: int, b: int, size: int) -> Edits:
        return [(a, size, self.frame[b : b + size].hex()), (b, size, self.frame[a : a + size].hex())]

    def blocks(self) -> None:
        """Two genuine blocks in each other's place; a member that dropped out in another's."""
        altered = "not the announced weighted sum"
        second = self.first + self.block
        swap = [
            (self.first, self.block, ""),
            (second + self.block, 0, self.frame[self.first : second].hex()),
        ]
        self.add("blocks exchanged", swap, "TamperError", altered, check="tag")
        absent = [(126 + 72, 32, b"carol".ljust(32, b"\0").hex())]
        self.add("one who dropped out in another's place", absent, "TamperError", altered, check="tag")


def build() -> tuple[dict[str, Any], dict[str, bytes]]:
    """The description, and the frames by file name."""
    cycles = {
        "alice": [8388607, -8388607, 0, 1, -1, 12345, -777],
        "bob": [8388607, -8388607, 1, -1, 0, -54321, 4242],
    }
    default = WeightedSum("default", 24, 7, {"alice": 30, "bob": 10}, cycles)
    narrow_cycles = {"alice": [127, -127, 5, 0, 1], "bob": [127, -127, -4, 7, 0]}
    narrow = WeightedSum("narrow", 8, 8200, {"alice": 20, "bob": 10, "carol": 10}, narrow_cycles)

    update = BadFrames(default)
    update.open("default-alice.update", "alice")
    update.form()
    update.place()
    update.content()
    update.update()
    aggregate = BadFrames(default)
    aggregate.open("default.aggregate")
    aggregate.place()
    aggregate.content()
    aggregate.membership()
    aggregate.forgery()
    blocks = BadFrames(narrow)
    blocks.open("narrow.aggregate")
    blocks.blocks()

    files = {**default.frames, narrow.aggregate_name: narrow.frames[narrow.aggregate_name]}
    described = {
        "about": ABOUT,
        "weights": weights(),
        "plans": plans(),
        "sums": [default.described(list(default.frames)), narrow.described([narrow.aggregate_name])],
        "bad": update.entries + aggregate.entries + blocks.entries,
    }
    return json.loads(json.dumps(described)), files


def main() -> None:
    described, files = build()
    (HERE / "frames.json").write_text(json.dumps(described, indent=1) + "\n")
    for name, data in files.items():
        (HERE / name).write_bytes(data)


if __name__ == "__main__":
    main()
