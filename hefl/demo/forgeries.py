"""Forge sums: what a lying server could publish instead of the announced one.

For ``lying_server``, which shows that clients catch each of them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np

from hefl.ckks.blocks import BlockCoder
from hefl.ckks.context import PublicContext
from hefl.ckks.mac import tag_from_bytes, tag_to_bytes
from hefl.ckks.ntt import U32, U64
from hefl.engines.engine import Member, Trailer
from hefl.engines.packed import PackedEngine
from hefl.protocol import frames
from hefl.protocol.records import Announcement, MemberEntry, Record
from hefl.protocol.updates import Aggregation


@dataclass(frozen=True, slots=True)
class Upload:
    """One client's update, as the server holds it: residues (blocks, limbs, N), tag (limbs, REPEATS), seed."""

    residues: U32
    tag: U64
    seed: bytes


@dataclass(slots=True)
class Forgery:
    """What the liar is about to publish; lies change it.

    Attributes:
        coder: Of the attempt.
        weights: By which updates are multiplied.
        uploads: Of this attempt, by name.
        earlier: Uploads of the round before, by name.
        before: The sum of the round before.
        abandoned: Uploads of an attempt at this round that came to nothing, by name.
        members, residues, tag: What will be published; honest to begin with.
        edit: Changes the bytes of the frame.
    """

    coder: BlockCoder
    weights: Mapping[str, int]
    uploads: Mapping[str, Upload]
    earlier: Mapping[str, Upload]
    before: U32
    abandoned: Mapping[str, Upload]
    members: list[Member]
    residues: U32
    tag: U64
    edit: Callable[[bytearray], None] = lambda data: None

    @property
    def moduli(self) -> U64:
        """The primes, to divide residues by: shape (limbs, 1)."""
        return self.coder.basis.moduli.astype(np.uint64)[:, None]

    def add(self, upload: Upload, weight: int) -> None:
        """Add a multiple of an update and of its tag, as an honest server does."""
        factor = (weight % self.moduli.astype(np.int64)).astype(np.uint64)
        self.residues = ((self.residues + factor * upload.residues) % self.moduli).astype(np.uint32)
        self.tag = (self.tag + factor * upload.tag) % self.moduli

    def add_constant(self, number: int) -> None:
        """Add an integer to the first coefficient of the first block, and leave the tag as it is."""
        for j, q in enumerate(self.coder.basis.primes):
            self.residues[0, j, 0] = (int(self.residues[0, j, 0]) + number) % q


def _in_margin(f: Forgery) -> None:
    """Add 1 to a coefficient, where rounding would take it away."""
    f.add_constant(1)


def _in_lane(f: Forgery) -> None:
    """Add 1 to a value."""
    f.add_constant(1 << f.coder.plan.margin_bits)


def _above_lanes(f: Forgery) -> None:
    """Add above the top value."""
    plan = f.coder.plan
    f.add_constant(1 << (plan.margin_bits + plan.lanes * plan.width_bits))


def _scale_one(f: Forgery) -> None:
    """Count the first client's update with one more of its weight, tag and all."""
    f.add(f.uploads[f.members[0].name], 1)


def _swap_weights(f: Forgery) -> None:
    """Multiply two clients' updates by each other's weight, or by half as much again where they are equal."""
    a, b = f.members[0].name, f.members[1].name
    difference = f.weights[b] - f.weights[a] or 1
    f.add(f.uploads[a], difference)
    f.add(f.uploads[b], -difference)


def _count_twice(f: Forgery) -> None:
    """Add the first client's update once more."""
    f.add(f.uploads[f.members[0].name], f.weights[f.members[0].name])


def _leave_out(f: Forgery) -> None:
    """Take the first client's update out, and name the client nevertheless."""
    f.add(f.uploads[f.members[0].name], -f.weights[f.members[0].name])


def _replay_update(f: Forgery) -> None:
    """Put the first client's earlier update in the place of its own."""
    name = f.members[0].name
    _leave_out(f)
    f.add(f.earlier[name], f.weights[name])


def _replay_update_and_seed(f: Forgery) -> None:
    """The same, and name the earlier update's seed."""
    _replay_update(f)
    first = f.members[0]
    f.members[0] = replace(first, seed=f.earlier[first.name].seed)


def _replay_sum(f: Forgery) -> None:
    """Publish the sum of the round before once more."""
    f.residues = f.before


def _one_upload(f: Forgery) -> None:
    """Publish the first client's upload as the sum."""
    upload = f.uploads[f.members[0].name]
    f.residues, f.tag = upload.residues, upload.tag


def _swap_blocks(f: Forgery) -> None:
    """Exchange the first and the last block; where there is one block only, its first two limbs' halves."""
    f.residues = f.residues[::-1] if len(f.residues) > 1 else np.roll(f.residues, f.residues.shape[2] // 2, axis=2)


def _rotate(f: Forgery) -> None:
    """Multiply by X: every value moves on by one, and the last comes back negated."""
    moved = np.roll(f.residues, 1, axis=2)
    moved[:, :, 0] = (f.moduli[:, 0] - moved[:, :, 0]) % f.moduli[:, 0]
    f.residues = moved


def _mix_rounds(f: Forgery) -> None:
    """Take the first block from the round before."""
    f.residues = np.concatenate([f.before[:1], f.residues[1:]])


def _mix_attempts(f: Forgery) -> None:
    """Take the first client's update from an attempt that was abandoned."""
    _leave_out(f)
    f.add(f.abandoned[f.members[0].name], f.weights[f.members[0].name])


def _other_seed(f: Forgery) -> None:
    """Name another seed for the first client's update."""
    f.members[0] = replace(f.members[0], seed=bytes(32))


def _other_weight(f: Forgery) -> None:
    """Say that the first client weighs one more, and add its update once more, so that it does."""
    first = f.members[0]
    f.add(f.uploads[first.name], 1)
    f.members[0] = replace(first, weight=first.weight + 1)


def _member_twice(f: Forgery) -> None:
    """Name the first client twice, and add its update twice."""
    _count_twice(f)
    f.members.insert(0, f.members[0])


def _truncate(f: Forgery) -> None:
    """Leave out the last bytes of the frame."""

    def cut(data: bytearray) -> None:
        del data[-64:]

    f.edit = cut


def _unreduced(f: Forgery) -> None:
    """Write a residue that is its prime: the same number, in a form that nobody else writes."""

    def write_prime(data: bytearray) -> None:
        first = frames.HEADER.size + len(f.members) * frames.MEMBER.size + frames.LENGTH.size
        bits, q = f.coder.plan.limb_bits, f.coder.basis.primes[0]
        word = int.from_bytes(data[first : first + 8], "little")
        data[first : first + 8] = (word >> bits << bits | q).to_bytes(8, "little")

    f.edit = write_prime


Lie = Callable[[Forgery], None]

SUM_LIES: Mapping[str, Lie] = {
    "add-to-margin": _in_margin,
    "add-to-lane": _in_lane,
    "add-above-lanes": _above_lanes,
    "scale-client": _scale_one,
    "swap-weights": _swap_weights,
    "other-weight": _other_weight,
    "count-twice": _count_twice,
    "leave-out": _leave_out,
    "member-twice": _member_twice,
    "other-seed": _other_seed,
    "replay-update": _replay_update,
    "replay-seed": _replay_update_and_seed,
    "replay-sum": _replay_sum,
    "one-upload": _one_upload,
    "swap-blocks": _swap_blocks,
    "multiply-by-x": _rotate,
    "mix-rounds": _mix_rounds,
    "mix-attempts": _mix_attempts,
    "truncate": _truncate,
    "unreduced": _unreduced,
}
"""What may be wrong with a published sum, by the name that ``--tamper`` takes."""

NEEDS_BEFORE = ("replay-update", "replay-seed", "replay-sum", "mix-rounds")
NEEDS_ABANDONED = ("mix-attempts",)


@dataclass(slots=True)
class LiarState:
    """What a liar has kept that an honest server throws away.

    Attributes:
        lie: The lie's name; one of SUM_LIES, or another that leaves sums alone.
        told: Rounds whose sums were lies.
        uploads, residues: Of the last round that was published, honest.
        abandoned: Uploads of an attempt at the open round that came to nothing.
    """

    lie: str
    told: list[int] = field(default_factory=list)
    uploads: Mapping[str, Upload] = field(default_factory=dict)
    residues: U32 | None = None
    abandoned: Mapping[str, Upload] = field(default_factory=dict)


class LyingAggregation(Aggregation):
    """An attempt's sum, as a liar publishes it: honest until a training round in which the lie can be told.

    Args:
        public, engine, announcement: As Aggregation.
        memory: Of the run so far.
        planned: As Aggregation.
    """

    def __init__(
        self,
        public: PublicContext,
        engine: PackedEngine,
        announcement: Announcement,
        memory: LiarState,
        planned: Collection[str] | None = None,
    ) -> None:
        super().__init__(public, engine, announcement, planned)
        self._training = announcement.exchange == "training"
        self._memory = memory
        self._coder = BlockCoder(engine.plan(self._attempt), self._attempt.ctx)
        self._weights = engine.weights(self._attempt, planned).of
        self.uploads: dict[str, Upload] = {}

    def add(self, frame: frames.Frame, name: str) -> None:
        """As Aggregation, and keep the update."""
        super().add(frame, name)
        tag = tag_from_bytes(frame.trailer.tag, self._coder.basis)
        self.uploads[name] = Upload(self._residues(frame), tag, frame.trailer.seed)

    def finish(self, file: BinaryIO) -> Record:
        """As Aggregation, but for the lie."""
        honest = io.BytesIO()
        record = super().finish(honest)
        frame = frames.open_frame(honest.getvalue())
        residues, memory = self._residues(frame), self._memory
        if self._can_lie():
            memory.told.append(frame.header.round)
            tag = tag_from_bytes(frame.trailer.tag, self._coder.basis)
            forgery = Forgery(
                coder=self._coder,
                weights=self._weights,
                uploads=self.uploads,
                earlier=memory.uploads,
                before=residues if memory.residues is None else memory.residues,
                abandoned=memory.abandoned,
                members=list(frame.members),
                residues=residues.copy(),
                tag=tag,
            )
            SUM_LIES[memory.lie](forgery)
            record = _write(file, frame.header, forgery, record)
        else:
            file.write(honest.getvalue())
        if self._training:
            memory.uploads, memory.residues, memory.abandoned = self.uploads, residues, {}
        return record

    def _can_lie(self) -> bool:
        memory = self._memory
        if memory.lie not in SUM_LIES:
            return False
        needs = {**dict.fromkeys(NEEDS_BEFORE, memory.uploads), **dict.fromkeys(NEEDS_ABANDONED, memory.abandoned)}
        return self._training and bool(needs.get(memory.lie, True))

    def _residues(self, frame: frames.Frame) -> U32:
        return np.stack([self._coder.from_bytes(data) for data in frame.blocks()])


def _write(file: BinaryIO, header: frames.Header, forgery: Forgery, record: Record) -> Record:
    """Write the forged sum in a frame that is in form, and its record."""
    tag = tag_to_bytes(forgery.tag, forgery.coder.plan.limb_bits)
    out = io.BytesIO()
    writer = frames.Writer(out, header, forgery.members, len(tag))
    for residues in forgery.residues:
        writer.block(forgery.coder.to_bytes(np.ascontiguousarray(residues)))
    writer.finish(Trailer(tag=tag))
    data = bytearray(out.getbuffer()[: -frames.DIGEST_BYTES])
    forgery.edit(data)
    digest = hashlib.sha256(data).digest()
    file.write(data + digest)
    return Record(
        announcement=record.announcement,
        members=tuple(MemberEntry(name=m.name, seed=m.seed.hex(), weight=m.weight) for m in forgery.members),
        digest=digest.hex(),
        tag=tag.hex(),
    )
