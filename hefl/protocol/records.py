"""Public records of a run: announcements, members of sums, and the chain of heads.

    head_0     = SHA-256("hefl/v1/genesis" || federation || generation || run)
    ctx        = SHA-256("hefl/v1/ctx"  || head || announcement)
    head_{r+1} = SHA-256("hefl/v1/head" || record), and a record holds its announcement, and that its head

They are JSON on the wire. What is hashed is their canonical form: fields sorted by name, no white space.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from typing import Annotated

import msgspec

from hefl.ckks.context import SecretContext
from hefl.encoding.codec import RoundKind
from hefl.engines.engine import Attempt, Member, Terms, Weighting
from hefl.identity import Identity
from hefl.params import MAX_CLIENTS, MAX_NUM_EXAMPLES, MAX_VALUES, NAME_PATTERN

Name = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME_PATTERN}\Z")]
Hex16 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
NumExamples = Annotated[int, msgspec.Meta(ge=1, le=MAX_NUM_EXAMPLES)]
RoundNum = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Checked when it is decoded: types, ranges, and no field that is not known."""


class Participant(Value, frozen=True, kw_only=True):
    """One client in an announcement, with the sample weight that stands for this attempt."""

    name: Name
    num_examples: NumExamples
    join_nonce: Hex16


class Announcement(Value, frozen=True, kw_only=True):
    """What the server wants of whom, before anyone answers.

    Attributes:
        nonce: The server's, new for each attempt.
        head: Of the history so far.
        values: Length of each vector.
        deadline_s: Seconds from the announcement until the attempt closes with whoever is in.
        participants: Ordered by name.
    """

    run: Hex16
    round: RoundNum
    attempt: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    exchange: RoundKind
    engine: str
    precision_bits: Annotated[int, msgspec.Meta(ge=0, le=64)]
    weighting: Weighting
    nonce: Hex32
    head: Hex32
    values: Annotated[int, msgspec.Meta(ge=1, le=4 * MAX_VALUES)]
    deadline_s: Annotated[float, msgspec.Meta(gt=0)]
    participants: Annotated[tuple[Participant, ...], msgspec.Meta(min_length=1, max_length=MAX_CLIENTS)]

    def __post_init__(self) -> None:
        if any(a.name >= b.name for a, b in itertools.pairwise(self.participants)):
            raise ValueError("participants must be ordered by name, and each stand once")
        if (self.exchange == "initial") != (self.round == 0):
            raise ValueError(
                "initial arrays belong to round 0, and nothing else does: later they would undo the training"
            )
        if self.exchange == "initial" and len(self.participants) != 1:
            raise ValueError("initial arrays come from one participant")

    @property
    def ctx(self) -> bytes:
        """32 bytes that bind everything derived for this attempt."""
        return hashlib.sha256(b"hefl/v1/ctx" + bytes.fromhex(self.head) + canonical(self)).digest()

    @property
    def names(self) -> tuple[str, ...]:
        """The participants' names."""
        return tuple(p.name for p in self.participants)

    def num_examples_of(self, name: str) -> int | None:
        """A participant's announced sample weight; None for who takes no part."""
        return next((p.num_examples for p in self.participants if p.name == name), None)

    def as_attempt(self) -> Attempt:
        """What an engine needs to know; initial arrays weigh 1, and so do updates that clients have weighed."""
        plain = self.exchange == "initial" or self.weighting == "client"
        return Attempt(self.ctx, self.values, {p.name: 1 if plain else p.num_examples for p in self.participants})

    @property
    def terms(self) -> Terms:
        """How its updates are encrypted and summed."""
        return Terms(self.engine, self.precision_bits, self.weighting)


class MemberEntry(Value, frozen=True, kw_only=True):
    """One update that is in a sum."""

    name: Name
    seed: Hex32
    weight: NumExamples


class Record(Value, frozen=True, kw_only=True):
    """What became of an attempt: who is in the sum, and which bytes the sum is.

    Attributes:
        digest: The aggregate's: SHA-256 of its file without the digest at its end.
        tag: The sum's authentication, hexadecimal; empty where the engine has none.
    """

    announcement: Announcement
    members: Annotated[tuple[MemberEntry, ...], msgspec.Meta(min_length=1, max_length=MAX_CLIENTS)]
    digest: Hex32
    tag: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{2})*\Z", max_length=1024)]

    @property
    def head(self) -> str:
        """The history's head after this record."""
        return hashlib.sha256(b"hefl/v1/head" + canonical(self)).hexdigest()

    def as_members(self) -> list[Member]:
        """What an engine needs to know."""
        return [Member(m.name, bytes.fromhex(m.seed), m.weight) for m in self.members]


def genesis(identity: Identity, run: str) -> str:
    """head_0 of a run."""
    body = bytes.fromhex(identity.federation) + identity.generation.to_bytes(4, "big") + bytes.fromhex(run)
    return hashlib.sha256(b"hefl/v1/genesis" + body).hexdigest()


def confirmation(secret: SecretContext, head: str, name: str) -> str:
    """By which a client tells the others, through a server that cannot make one, in which head a run ended for it."""
    return hmac.new(secret.derive("hefl/v1/confirm"), bytes.fromhex(head) + name.encode(), hashlib.sha256).hexdigest()


def canonical(value: Value) -> bytes:
    """The bytes that are hashed."""
    return msgspec.json.encode(value, order="sorted")
