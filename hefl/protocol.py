"""What client and server say to each other over HTTPS, beside the frames of ``wire``.

    POST /v1/join                               Join -> Welcome
    GET  /v1/run?after=VERSION                  -> View, once there is something newer, or after POLL_S
    PUT  /v1/rounds/ROUND/ATTEMPT/update        an update's frame
    GET  /v1/rounds/ROUND/aggregate             -> an aggregate's frame
    POST /v1/fetched                            the client has the last record
    POST /v1/leave                              the client goes

Every request bears the headers below. A refusal is a Refusal with a 4xx or 5xx status.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, TypeVar

import msgspec

from hefl.ckks.context import Identity
from hefl.codec import Exchange
from hefl.errors import HeflError, LayoutError, MalformedError, MismatchError, ProtocolError, from_name
from hefl.history import Announcement, Hex16, Hex32, NumExamples, Record, Value
from hefl.params import MAX_VALUES, PROTOCOL

HEADER_PROTOCOL = "Hefl-Protocol"
HEADER_FEDERATION = "Hefl-Federation"
HEADER_GENERATION = "Hefl-Generation"
HEADER_SESSION = "Hefl-Session"
"""The join nonce, so that a process that was replaced learns it."""
HEADER_NUM_EXAMPLES = "Hefl-Num-Examples"
"""With an update: the sender's sample weight from the next round on."""
HEADER_CLIENT = "Hefl-Client"
"""The client's name over plain HTTP, where no certificate says it."""

MAX_JSON_BYTES = 8 << 20

T = TypeVar("T", bound=Value)


class Join(Value, frozen=True, kw_only=True):
    """A client is here.

    Attributes:
        layout: HMAC of the model's layout; equal for equal layouts.
        sealed_layout: The layout, encrypted for the other clients, base64.
        values: Length of the vector for each exchange.
    """

    engine: str
    weighting: str
    num_examples: NumExamples
    join_nonce: Hex16
    layout: Hex32
    sealed_layout: bytes
    values: dict[Exchange, Annotated[int, msgspec.Meta(ge=1, le=4 * MAX_VALUES)]]


class Welcome(Value, frozen=True, kw_only=True):
    """The client is in."""

    run: Hex16
    rounds: int


class View(Value, frozen=True, kw_only=True):
    """The run as one client needs to see it.

    Attributes:
        version: Rises with every change.
        phase: As rounds.Phase.
        announcement: Of the open attempt.
        committed: This client's update is in.
        model, closing: The last records that carry a model, and the closing metrics.
    """

    version: int
    phase: str
    announcement: Announcement | None
    committed: bool
    model: Record | None
    closing: Record | None


class Refusal(Value, frozen=True, kw_only=True):
    """Why a request was refused; ``sealed_layout`` is the reference that a layout differs from."""

    error: str
    message: str
    hint: str | None = None
    sealed_layout: bytes | None = None


def headers(identity: Identity, session: str) -> dict[str, str]:
    """The headers of every request."""
    return {
        HEADER_PROTOCOL: str(PROTOCOL),
        HEADER_FEDERATION: identity.federation,
        HEADER_GENERATION: str(identity.generation),
        HEADER_SESSION: session,
    }


def check_headers(given: dict[str, str], identity: Identity) -> None:
    """The server's check of a request's headers.

    Raises:
        ProtocolError: Another version of the protocol.
        MismatchError: Keys of another federation or generation; says which is which.
    """
    if given.get(HEADER_PROTOCOL) != str(PROTOCOL):
        raise ProtocolError(
            f"this server speaks version {PROTOCOL} of hefl's protocol, and the request "
            f"{given.get(HEADER_PROTOCOL) or 'none'}",
            hint="install the same version of hefl on both sides",
        )
    federation, generation = given.get(HEADER_FEDERATION, ""), given.get(HEADER_GENERATION, "")
    if (federation, generation) != (identity.federation, str(identity.generation)):
        raise MismatchError(
            f"the client's keys are of federation {federation[:8]}, key generation {generation[:10]}, "
            f"and the server's of {identity}",
            hint="copy the client's folder, or the server's, from the authority again",
        )


def refusal_of(error: HeflError, sealed_layout: bytes | None = None) -> Refusal:
    """An error as it travels."""
    return Refusal(error=type(error).__name__, message=error.message, hint=error.hint, sealed_layout=sealed_layout)


def raise_refusal(body: bytes, status: int) -> Refusal:
    """Raise what a server's refusal says; returns it only where the caller must look at the layout itself."""
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"the server answered with status {status} and nothing that hefl says") from error
    found = from_name(refusal.error, refusal.message, refusal.hint)
    if isinstance(found, LayoutError) and refusal.sealed_layout:
        return refusal
    raise found


def decode(body: bytes, kind: type[T]) -> T:
    """A value from JSON, checked.

    Raises:
        MalformedError: It does not parse, or a field is missing, unknown or out of range; names it.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise MalformedError(f"not a {kind.__name__}: {error}") from error


def num_examples_of(text: str) -> int:
    """A sample weight from a header. Raises MalformedError where it is none."""
    try:
        return msgspec.convert(text, NumExamples, strict=False)
    except msgspec.ValidationError as error:
        raise MalformedError(f"{HEADER_NUM_EXAMPLES}: {error}") from error


def is_loopback(host: str) -> bool:
    """The host cannot be another machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
