"""A second verifier: checks what a round left behind, and decrypts it. Nothing of hefl's is in it.

    PYTHONPATH=tests/reference python -m verifier SECRET.hefl RECORD.json AGGREGATE.agg [--earlier RECORDS.json]

prints check by check, and exits with 1 at the first that fails. With the records of all earlier rounds (a JSON list)
it also follows the chain of heads from its beginning.

Python's integers and hashlib, AES and HKDF from ``cryptography``, and the primitives of ``packed_reference``.
It follows hefl/protocol/README.md, in the order in which that page has a reader refuse: form, place, members, residues,
tag, and only then a secret. ``verifier_input`` reads, and ``verifier_model`` makes a model of the sums.
"""

from __future__ import annotations

import argparse
import hmac
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import packed_reference as reference
from verifier_input import (
    Json,
    Key,
    RefusedError,
    check_history,
    ctx_of,
    parse,
    read_frame,
    read_key,
    read_record,
    require,
)


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
        self.weights = reference.weights_in(self.announced, [name for name, _, _ in self.frame.members])
        self.precision = self.announcement["precision_bits"] + 10 * client
        require("record", self.precision <= 40, f"lanes for {self.precision} bits")
        self.plan = reference.plan(self.announcement["values"], self.precision, reference.total_planned(self.announced))
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
