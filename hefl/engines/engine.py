"""The interface of an encryption engine.

An engine turns a flat vector into encrypted blocks, sums weighted blocks without a key, and decrypts a sum.
Blocks travel in the frames of ``protocol.frames``; an engine never sees a file or a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from numpy.typing import NDArray

from hefl.ckks.context import PublicContext, SecretContext
from hefl.encoding.codec import Codec, Sum
from hefl.errors import EngineError, TamperError
from hefl.models.layout import Layout

Vector = NDArray[Any]
Write = Callable[[bytes | memoryview], object]
Blocks = Callable[[], Iterator[bytes]]
"""Starts again at each call: an engine may pass over an update twice."""


Weighting = Literal["server", "client"]


class Terms(NamedTuple):
    """How updates are encrypted and summed, which all parties must do alike.

    Attributes:
        engine: Its name.
        precision_bits: Of a fixed-point value; 0 where the engine computes with floating point.
        weighting: Who multiplies by the sample weights.
    """

    engine: str
    precision_bits: int = 0
    weighting: Weighting = "server"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a weighted sum, as everybody knows it.

    Attributes:
        ctx: 32 bytes that bind the attempt: its round, its participants, its history.
        values: Length of each vector.
        weights: Each participant's positive integer weight, in the announced order.
    """

    ctx: bytes
    values: int
    weights: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Member:
    """One update in a sum.

    Attributes:
        name: Whose.
        seed: 32 bytes, its own; all zero where the engine has no seeds.
        weight: The announced weight.
    """

    name: str
    seed: bytes
    weight: int


@dataclass(frozen=True, slots=True)
class Trailer:
    """What an engine adds to an update's blocks.

    Attributes:
        seed: 32 bytes; all zero where the engine has no seeds.
        tag: Authenticates the blocks; empty where the engine cannot.
    """

    seed: bytes = bytes(32)
    tag: bytes = b""


class Aggregator(Protocol):
    """Adds weighted updates of one attempt."""

    def add(self, name: str, blocks: Blocks, trailer: Trailer) -> None:
        """Fold one participant's update in, whole or not at all.

        Raises:
            MalformedError: A block does not parse.
        """

    def finish(self, write: Write) -> bytes:
        """Write the sum's blocks in order; returns its tag."""


class Engine(Protocol):
    """A way to sum vectors that the adder cannot read.

    Attributes:
        name: As ``--engine`` takes it.
        verifies: A sum proves that it is the announced one.
        loopback_only: It may run on one machine only.
        max_num_examples: The largest sample weight that it can scale by.
    """

    name: str
    verifies: bool
    loopback_only: bool
    max_num_examples: int

    @property
    def terms(self) -> Terms:
        """What all parties must agree on."""

    def prepare(self) -> None:
        """Do what takes long the first time, and check what this machine computes."""

    def weight_of(self, name: str, attempt: Attempt) -> int:
        """What a client's vector is multiplied by, up to a factor that is the same for all."""

    def warning(self, attempt: Attempt) -> str | None:
        """Return a warning about this attempt for the log, or None."""

    def rounding(self, attempt: Attempt, members: Collection[str], name: str) -> float:
        """How far a member's share of a sum is from its share of the members' examples, relative to that."""

    def weighs_alike(self, attempt: Attempt, planned: Collection[str], members: Collection[str]) -> bool:
        """Whether an aggregator for ``planned`` clients weighs these members as a sum of them alone must."""

    def codec(self, layout: Layout) -> Codec:
        """How a model and its metrics become a vector for this engine."""

    def block_count(self, attempt: Attempt) -> int:
        """Blocks of an update of this attempt, and of its sum."""

    def max_block_bytes(self, attempt: Attempt) -> int:
        """No honest block, of an update or of a sum, is longer."""

    def tag_bytes(self, attempt: Attempt) -> int:
        """Length of an update's tag, and of a sum's; 0 where the engine cannot authenticate."""

    def encrypt(self, vector: Vector, secret: SecretContext, attempt: Attempt, name: str, write: Write) -> Trailer:
        """Encrypt a vector of shape (attempt.values,) that this engine's codec made, block by block."""

    def aggregator(self, public: PublicContext, attempt: Attempt, members: Collection[str] | None = None) -> Aggregator:
        """An empty sum, for updates of these members; None: of all who are announced."""

    def decrypt(
        self,
        blocks: Blocks,
        tag: bytes,
        secret: SecretContext,
        attempt: Attempt,
        members: Sequence[Member],
    ) -> Sum:
        """Decrypt a sum of the members' weighted vectors.

        Raises:
            MalformedError: A block does not parse.
            TamperError: The engine verifies, and this is not the announced sum; it was not decrypted.
            UploadError: A participant encrypted what the protocol does not allow.
        """


class BaseEngine:
    """Defaults of an engine: floating-point sums that scale each update by its share, and that nobody can verify."""

    name: str
    verifies = False
    loopback_only = False

    @property
    def terms(self) -> Terms:
        """As Engine."""
        return Terms(self.name)

    def prepare(self) -> None:
        """Nothing takes long."""

    def weight_of(self, name: str, attempt: Attempt) -> int:
        """As announced."""
        return attempt.weights[name]

    def warning(self, attempt: Attempt) -> str | None:
        """Return None."""
        return None

    def rounding(self, attempt: Attempt, members: Collection[str], name: str) -> float:
        """None that counts beside that of floating-point numbers."""
        return 0.0

    def weighs_alike(self, attempt: Attempt, planned: Collection[str], members: Collection[str]) -> bool:
        """Only where nobody is missing: an update is multiplied by its share of the sum."""
        return len(planned) == len(members)

    def tag_bytes(self, attempt: Attempt) -> int:
        """None: sums are not authenticated."""
        return 0


def check_terms(engine: Engine, terms: Terms, whose: str) -> None:
    """Refuse a peer that computes in another way.

    Raises:
        EngineError: Engine, precision or weighting differ; says which.
    """
    mine = engine.terms
    for what, here, there in (
        ("engine", mine.engine, terms.engine),
        ("precision", mine.precision_bits, terms.precision_bits),
        ("weighting", mine.weighting, terms.weighting),
    ):
        if here != there:
            raise EngineError(
                f"{whose} uses {what} {there!r}, and this side {what} {here!r}",
                hint=f"give all clients and the server the same --{what}",
            )


def check_members(members: Sequence[Member], announced: Mapping[str, int]) -> None:
    """Refuse a sum's members that are not distinct, announced, and of the announced weights.

    Raises:
        TamperError: Names the check that they did not pass.
    """
    names = [m.name for m in members]
    if not names or len(set(names)) != len(names):
        raise TamperError("the sum names no client, or one of them twice", check="names-distinct")
    for m in members:
        if m.name not in announced:
            raise TamperError(f"{m.name!r} is in the sum and was not announced", check="names-announced")
        if m.weight != announced[m.name]:
            raise TamperError(
                f"{m.name!r} weighs {m.weight} in the sum, and {announced[m.name]} was announced",
                check="weights-announced",
            )
