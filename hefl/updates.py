"""Encrypt, aggregate, decrypt: what each party does with the frames of one announced attempt.

The three functions at the end work on bytes in memory; server and client use the pieces above them on files.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from hefl import wire
from hefl.ckks.context import PublicContext, SecretContext
from hefl.codec import Sum
from hefl.engine import DEFAULT_ENGINE, Engine, Member, Seal, Vector, load_engine
from hefl.errors import ConflictError, MalformedError, NotFiniteError, ParametersError
from hefl.history import Announcement, MemberEntry, Participant, Record, genesis
from hefl.params import MIN_CLIENTS
from hefl.trainer import check_num_examples


def write_update(
    file: BinaryIO,
    vector: Vector,
    secret: SecretContext,
    engine: Engine,
    announcement: Announcement,
    name: str,
) -> Seal:
    """Encrypt a vector into a file as ``name``'s update; returns its seal, by which its owner knows it again."""
    attempt = announcement.as_attempt()
    header = wire.Header.of("update", secret.identity, announcement, engine.block_count(attempt), name)
    writer = wire.Writer(file, header, tag_bytes=engine.tag_bytes(attempt))
    seal = engine.encrypt(vector, secret, attempt, name, writer.block)
    writer.finish(seal)
    return seal


def max_update_bytes(engine: Engine, announcement: Announcement) -> int:
    """No honest update of this attempt is longer."""
    attempt = announcement.as_attempt()
    blocks, longest = engine.block_count(attempt), engine.max_block_bytes(attempt)
    return wire.max_bytes(blocks, longest, tag_bytes=engine.tag_bytes(attempt))


def max_aggregate_bytes(engine: Engine, announcement: Announcement) -> int:
    """No honest aggregate of this attempt is longer."""
    attempt = announcement.as_attempt()
    blocks, longest = engine.block_count(attempt), engine.max_block_bytes(attempt)
    return wire.max_bytes(blocks, longest, len(announcement.participants), engine.tag_bytes(attempt))


class Summation:
    """The server's half: adds up one attempt's updates, each at most once."""

    def __init__(self, public: PublicContext, engine: Engine, announcement: Announcement) -> None:
        self._identity = public.identity
        self._engine = engine
        self._announcement = announcement
        self._attempt = announcement.as_attempt()
        self._aggregator = engine.aggregator(public, self._attempt)
        self._members: dict[str, Member] = {}

    def check(self, frame: wire.Frame, name: str) -> None:
        """Refuse a frame that is not this client's update of this attempt.

        Raises:
            MismatchError, EngineError, StaleError, ConflictError, MalformedError: As wire.Header.check.
        """
        blocks = self._engine.block_count(self._attempt)
        frame.header.check(wire.Header.of("update", self._identity, self._announcement, blocks, name))
        if frame.members:
            raise MalformedError("an update with a list of members")

    def add(self, frame: wire.Frame, name: str) -> None:
        """Fold a checked update in, whole or not at all.

        Raises:
            ConflictError: This client's update is in the sum, or it is no participant.
            MalformedError: A block does not parse.
        """
        if name in self._members or name not in self._attempt.weights:
            raise ConflictError(f"{name} cannot be added: it is in the sum already, or no participant of this attempt")
        self._aggregator.add(name, frame.blocks, frame.seal)
        self._members[name] = Member(name, frame.seal.seed, self._attempt.weights[name])

    def finish(self, file: BinaryIO) -> Record:
        """Write the aggregate and return its record; members stand in the announced order.

        Raises:
            ConflictError: Too few are in the sum.
        """
        members = [self._members[name] for name in self._attempt.weights if name in self._members]
        _check_members(self._announcement, members)
        blocks = self._engine.block_count(self._attempt)
        header = wire.Header.of("aggregate", self._identity, self._announcement, blocks)
        writer = wire.Writer(file, header, members, self._engine.tag_bytes(self._attempt))
        tag = self._aggregator.finish(writer.block)
        digest = writer.finish(Seal(tag=tag))
        return Record(
            announcement=self._announcement,
            members=tuple(MemberEntry(name=m.name, seed=m.seed.hex(), weight=m.weight) for m in members),
            digest=digest.hex(),
            tag=tag.hex(),
        )


def read_aggregate(
    source: wire.Source,
    secret: SecretContext,
    engine: Engine,
    announcement: Announcement,
    record: Record | None = None,
) -> Sum:
    """Check an aggregate against its announcement, and its record where there is one, and decrypt it.

    Raises:
        MalformedError, MismatchError, EngineError, StaleError: The frame does not belong to the announcement.
        ConflictError: Its members or digest are not the record's; or its members were not announced, or are too few.
    """
    frame, attempt = wire.open_frame(source), announcement.as_attempt()
    frame.header.check(wire.Header.of("aggregate", secret.identity, announcement, engine.block_count(attempt)))
    if record and (record.digest != frame.digest.hex() or record.as_members() != list(frame.members)):
        raise ConflictError("the aggregate is not the one that its record describes")
    _check_members(announcement, frame.members)
    return engine.decrypt(frame.blocks, frame.seal.tag, secret, attempt, frame.members)


def _check_members(announcement: Announcement, members: Sequence[Member]) -> None:
    """Refuse a sum that is not of announced participants, with the announced weights, and of enough of them."""
    announced = announcement.as_attempt().weights
    names = [m.name for m in members]
    if len(set(names)) != len(names) or any(announced.get(m.name) != m.weight for m in members):
        raise ConflictError("the aggregate's members are not the announced ones with the announced weights")
    least = 1 if announcement.exchange == "initial" else MIN_CLIENTS
    if len(members) < least:
        raise ConflictError(f"a sum of {len(members)} updates, where at least {least} must be in: it would show one")


# --- three calls on bytes -------------------------------------------------------------------------------------------


def announce(
    public: PublicContext, num_examples: Mapping[str, int], values: int, engine: str = DEFAULT_ENGINE
) -> Announcement:
    """Announce one weighted mean of vectors; every party works from the same announcement.

    Args:
        public: The server's context.
        num_examples: The participants' positive sample weights by name.
        values: Length of each vector.
        engine: ``tenseal``.

    Raises:
        NumExamplesError: A weight is not a whole number from 1 to what the engine can scale by.
        ParametersError: Fewer than two participants, a name that is none, or no values.

    Example:
        >>> secret = generate_secret()
        >>> public = secret.public()
        >>> attempt = announce(public, {"alice": 30, "bob": 10}, values=2)
        >>> updates = [encrypt([1.0, 2.0], secret, attempt, "alice"), encrypt([5.0, 6.0], secret, attempt, "bob")]
        >>> decrypt(aggregate(updates, public, attempt), secret, attempt).round(6).tolist()
        [2.0, 3.0]
    """
    limit = load_engine(engine).max_num_examples
    weights = {name: check_num_examples(count, limit) for name, count in sorted(num_examples.items())}
    if len(weights) < MIN_CLIENTS:
        raise ParametersError(f"a sum of fewer than {MIN_CLIENTS} vectors shows one of them, got {len(weights)}")
    run = os.urandom(16).hex()
    announcement = Announcement(
        run=run,
        round=1,
        attempt=1,
        exchange="training",
        engine=engine,
        weighting="server",
        nonce=os.urandom(32).hex(),
        head=genesis(public.identity, run),
        values=values,
        deadline_s=60.0,
        participants=tuple(
            Participant(name=name, num_examples=count, join_nonce=os.urandom(16).hex())
            for name, count in weights.items()
        ),
    )
    try:
        return msgspec.convert(msgspec.to_builtins(announcement), Announcement)
    except msgspec.ValidationError as error:
        raise ParametersError(f"cannot announce: {error}") from error


def encrypt(vector: Sequence[float] | NDArray[Any], secret: SecretContext, attempt: Announcement, name: str) -> bytes:
    """Encrypt one participant's vector.

    Args:
        vector: Shape (attempt.values,), finite.
        secret: The clients' context.
        attempt: From ``announce``.
        name: The participant's.

    Returns:
        An update, as the wire format has it.

    Raises:
        NotFiniteError: A value is NaN or infinite.
        ParametersError: The vector's shape is another, or the name was not announced.
    """
    values = np.asarray(vector, np.float64)
    if values.shape != (attempt.values,) or name not in attempt.names:
        raise ParametersError(
            f"{name!r} cannot encrypt an array of shape {values.shape}: announced are {', '.join(attempt.names)} "
            f"and shape ({attempt.values},)"
        )
    if not np.isfinite(values).all():
        raise NotFiniteError(f"value {int(np.argmin(np.isfinite(values)))} is NaN or infinite; nothing was encrypted")
    file = io.BytesIO()
    write_update(file, values, secret, load_engine(attempt.engine), attempt, name)
    return file.getvalue()


def aggregate(updates: Sequence[bytes], public: PublicContext, attempt: Announcement) -> bytes:
    """Add up updates, each scaled by its sender's ``num_examples``; needs no key.

    Raises:
        MalformedError, MismatchError, StaleError, ConflictError: An update does not belong here.
    """
    summation = Summation(public, load_engine(attempt.engine), attempt)
    for update in updates:
        frame = wire.open_frame(update)
        summation.check(frame, frame.header.name)
        summation.add(frame, frame.header.name)
    file = io.BytesIO()
    summation.finish(file)
    return file.getvalue()


def decrypt(aggregate: bytes, secret: SecretContext, attempt: Announcement) -> NDArray[np.float64]:
    """The weighted mean of the vectors that are in the aggregate, shape (attempt.values,).

    Raises:
        MalformedError, MismatchError, StaleError, ConflictError: The aggregate does not belong here.
    """
    total = read_aggregate(aggregate, secret, load_engine(attempt.engine), attempt)
    return total.vector.astype(np.float64) / total.total_weight
