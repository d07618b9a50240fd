"""Encrypt updates, add them, and decrypt the sum: each party's step of one attempt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import BinaryIO

from hefl.ckks.context import PublicContext, SecretContext
from hefl.encoding.codec import Sum
from hefl.engines.engine import Engine, Member, Trailer, Vector, check_members
from hefl.errors import ConflictError, MalformedError, TamperError
from hefl.params import MIN_CLIENTS
from hefl.protocol import frames
from hefl.protocol.records import Announcement, MemberEntry, Record


def write_update(
    file: BinaryIO,
    vector: Vector,
    secret: SecretContext,
    engine: Engine,
    announcement: Announcement,
    name: str,
) -> Trailer:
    """Encrypt a vector into a file as ``name``'s update; returns its trailer, by which its owner knows it again."""
    attempt = announcement.as_attempt()
    header = frames.Header.of("update", secret.identity, announcement, engine.block_count(attempt), name)
    writer = frames.Writer(file, header, tag_bytes=engine.tag_bytes(attempt))
    trailer = engine.encrypt(vector, secret, attempt, name, writer.block)
    writer.finish(trailer)
    return trailer


def max_update_bytes(engine: Engine, announcement: Announcement) -> int:
    """No honest update of this attempt is longer."""
    attempt = announcement.as_attempt()
    blocks, longest = engine.block_count(attempt), engine.max_block_bytes(attempt)
    return frames.max_bytes(blocks, longest, tag_bytes=engine.tag_bytes(attempt))


def max_aggregate_bytes(engine: Engine, announcement: Announcement) -> int:
    """No honest aggregate of this attempt is longer."""
    attempt = announcement.as_attempt()
    blocks, longest = engine.block_count(attempt), engine.max_block_bytes(attempt)
    return frames.max_bytes(blocks, longest, len(announcement.participants), engine.tag_bytes(attempt))


class Aggregation:
    """The server's half: adds up one attempt's updates, each at most once.

    Args:
        public: The server's context.
        engine: Which clients run too.
        announcement: Of the attempt.
        planned: Who is expected to be in, by which updates are weighed as they are added; None: everybody.
    """

    def __init__(
        self,
        public: PublicContext,
        engine: Engine,
        announcement: Announcement,
        planned: Collection[str] | None = None,
    ) -> None:
        self._identity = public.identity
        self._engine = engine
        self._announcement = announcement
        self._attempt = announcement.as_attempt()
        self._planned = frozenset(announcement.names).intersection(announcement.names if planned is None else planned)
        self._aggregator = engine.aggregator(public, self._attempt, self._planned)
        self._members: dict[str, Member] = {}

    @property
    def is_weighed_right(self) -> bool:
        """Whether those who are in weigh as they must in a sum of them alone.

        Where not, it takes a new aggregation that is planned for them.
        """
        return self._engine.weighs_alike(self._attempt, self._planned, self._members.keys())

    def open(self, source: frames.Source, name: str) -> frames.Frame:
        """Read this client's update of this attempt, and refuse what is something else.

        Raises:
            MismatchError, EngineError, StaleError, ConflictError, MalformedError: As wire.open_frame.
        """
        blocks = self._engine.block_count(self._attempt)
        expected = frames.Header.of("update", self._identity, self._announcement, blocks, name)
        frame = frames.open_frame(source, expected)
        if frame.members:
            raise MalformedError("an update with a list of members")
        _check_tag(frame, self._engine.tag_bytes(self._attempt))
        return frame

    def add(self, frame: frames.Frame, name: str) -> None:
        """Fold an update from ``open`` in, whole or not at all.

        Raises:
            ConflictError: This client's update is in the sum, or it is no participant.
            MalformedError: A block does not parse.
        """
        if name in self._members or name not in self._planned:
            raise ConflictError(f"{name} cannot be added: it is in the sum already, or no participant of this attempt")
        self._aggregator.add(name, frame.blocks, frame.trailer)
        self._members[name] = Member(name, frame.trailer.seed, self._attempt.weights[name])

    def finish(self, file: BinaryIO) -> Record:
        """Write the aggregate and return its record; members stand in the announced order.

        Raises:
            ConflictError: Too few are in the sum, or those who are in are not weighed right.
        """
        members = [self._members[name] for name in self._attempt.weights if name in self._members]
        least = 1 if self._announcement.exchange == "initial" else MIN_CLIENTS
        if len(members) < least:
            raise ConflictError(
                f"a sum of {len(members)} updates, where at least {least} must be in: it would show one"
            )
        if not self.is_weighed_right:
            raise ConflictError(f"a sum that was planned for {len(self._planned)} updates, and {len(members)} are in")
        blocks = self._engine.block_count(self._attempt)
        header = frames.Header.of("aggregate", self._identity, self._announcement, blocks)
        writer = frames.Writer(file, header, members, self._engine.tag_bytes(self._attempt))
        tag = self._aggregator.finish(writer.block)
        digest = writer.finish(Trailer(tag=tag))
        return Record(
            announcement=self._announcement,
            members=tuple(MemberEntry(name=m.name, seed=m.seed.hex(), weight=m.weight) for m in members),
            digest=digest.hex(),
            tag=tag.hex(),
        )


def read_aggregate(
    source: frames.Source,
    secret: SecretContext,
    engine: Engine,
    announcement: Announcement,
    record: Record | None = None,
    least: int = MIN_CLIENTS,
) -> Sum:
    """Check an aggregate against its announcement, and its record where there is one, and decrypt it.

    ``least`` updates must be in it, but for the initial arrays, which are one client's.

    Raises:
        MalformedError, MismatchError, EngineError, StaleError: The frame does not belong to the announcement.
        TamperError: Its members, tag or digest are not the record's; or its members are not announced ones, or too
            few; or it is not their sum.
    """
    attempt = announcement.as_attempt()
    expected = frames.Header.of("aggregate", secret.identity, announcement, engine.block_count(attempt))
    frame = frames.open_frame(source, expected)
    _check_tag(frame, engine.tag_bytes(attempt))
    if any(frame.trailer.seed):
        raise MalformedError("an aggregate with a seed of its own")
    if record and (record.digest, record.tag, record.as_members()) != (
        frame.digest.hex(),
        frame.trailer.tag.hex(),
        list(frame.members),
    ):
        raise TamperError("the aggregate is not the one that its record describes", check="record")
    _check_members(announcement, frame.members, least)
    return engine.decrypt(frame.blocks, frame.trailer.tag, secret, attempt, frame.members)


def _check_tag(frame: frames.Frame, tag_bytes: int) -> None:
    """Refuse bytes that no engine looks at: each is either checked or not there."""
    if len(frame.trailer.tag) != tag_bytes:
        raise MalformedError(f"a tag has {len(frame.trailer.tag)} bytes where {tag_bytes} belong")


def _check_members(announcement: Announcement, members: Sequence[Member], least: int) -> None:
    """Refuse a sum that is not of announced participants, in order, with their weights, and of enough of them.

    The order changes no sum; but one sum is one frame and one record.
    """
    announced = announcement.as_attempt().weights
    check_members(members, announced)
    named = {m.name for m in members}
    if [m.name for m in members] != [name for name in announced if name in named]:
        raise TamperError("the sum's members do not stand in the announced order", check="names-ordered")
    if announcement.exchange != "initial" and len(members) < least:
        raise TamperError(
            f"a sum of {len(members)} updates, where at least {least} must be in: it would show too much of one",
            check="enough-members",
        )
