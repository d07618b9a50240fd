"""Messages between client and server over HTTPS.

    POST /v1/join                               Join -> Welcome
    GET  /v1/run?after=VERSION                  -> View, once there is something newer, or after POLL_S
    PUT  /v1/rounds/ROUND/ATTEMPT/update        an update's frame, behind Expect: 100-continue; or the rest of it
    GET  /v1/rounds/ROUND/ATTEMPT/update        -> Held: how much of it is here, so that it need not travel again
    POST /v1/rounds/ROUND/ATTEMPT/enough        instead of an update: the client will not train any more
    POST /v1/rounds/ROUND/useless               -> Noted: the round's sum made no model for this member of it
    GET  /v1/rounds/ROUND/aggregate             -> an aggregate's frame
    GET  /v1/records?after=ROUND                -> compact records, oldest first; without ROUND from round 0
    POST /v1/metrics                            MetricsReport, from a client that chooses to tell
    POST /v1/fetched                            Confirmation: the client has the last record
    POST /v1/leave                              the client goes

Every request bears the headers below. A refusal is a Refusal with a 4xx or 5xx status; after a 408, a 429
and a 503 it is worth trying again.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Annotated, TypeVar, get_args

import msgspec

from hefl.ckks.context import PublicContext, SecretContext
from hefl.encoding.codec import RoundKind
from hefl.engines.engine import Terms, Weighting
from hefl.errors import HeflError, LayoutError, MalformedError, MismatchError, ProtocolError, VersionError, from_name
from hefl.params import MAX_METRICS, MAX_NUM_EXAMPLES, MAX_VALUES, NAME_PATTERN, PROTOCOL
from hefl.protocol.records import Announcement, Hex16, Hex32, Name, NumExamples, Record, RoundNum, Value

HEADER_PROTOCOL = "Hefl-Protocol"
HEADER_FEDERATION = "Hefl-Federation"
HEADER_GENERATION = "Hefl-Generation"
HEADER_KEYS = "Hefl-Keys"
"""Fingerprints of the client's keys, which must be those that the server's public file bears."""
HEADER_SESSION = "Hefl-Session"
"""The join nonce, so that a process that was replaced learns it."""
HEADER_NUM_EXAMPLES = "Hefl-Num-Examples"
"""With an update: the sender's sample weight from the next round on."""
HEADER_DIGEST = "Hefl-Digest"
"""About an update: its digest, by which the server knows it again."""
HEADER_WHOLE = "Hefl-Whole"
"""With an update, "yes": its model was in a useless sum, so it may only be in a sum of all who are announced."""
HEADER_OFFSET = "Hefl-Offset"
"""With the rest of an update: where it goes on."""
HEADER_CLIENT = "Hefl-Client"
"""The client's name over plain HTTP, where no certificate says it."""

MAX_JSON_BYTES = 8 << 20
"""No honest Join is longer; its sealed layout has some 50 bytes a tensor."""
MAX_SHORT_BYTES = 1 << 16
"""Nor is anything else that a client says in JSON."""
MAX_ANSWER_BYTES = 2 * MAX_JSON_BYTES
"""Nor what a server answers in JSON: RECORDS_AT_ONCE, or a sealed layout."""
MAX_TEXT = 2000
"""A refusal says no more, whatever it quotes."""

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises at JSON that does not parse: the second where it is not UTF-8."""

T = TypeVar("T", bound=Value)


class Join(Value, frozen=True, kw_only=True):
    """A client is here.

    Attributes:
        layout: HMAC of the model's layout; equal for equal layouts.
        sealed_layout: The layout, encrypted for the other clients, base64.
        values: Length of the vector for each exchange.
    """

    engine: Annotated[str, msgspec.Meta(pattern=rf"\A{NAME_PATTERN}\Z")]
    precision_bits: Annotated[int, msgspec.Meta(ge=0, le=64)]
    weighting: Weighting
    num_examples: NumExamples
    join_nonce: Hex16
    layout: Hex32
    sealed_layout: bytes
    values: dict[RoundKind, Annotated[int, msgspec.Meta(ge=1, le=4 * MAX_VALUES)]]

    def __post_init__(self) -> None:
        if self.values.keys() != set(get_args(RoundKind)):
            raise ValueError(f"values must be stated for each of {', '.join(get_args(RoundKind))}")

    @property
    def terms(self) -> Terms:
        """How it encrypts."""
        return Terms(self.engine, self.precision_bits, self.weighting)


class Welcome(Value, frozen=True, kw_only=True):
    """The client is in."""

    run: Hex16


class View(Value, frozen=True, kw_only=True):
    """The run as one client needs to see it.

    Attributes:
        version: Rises with every change.
        rounds: The round of the last training, as it is planned by now.
        phase: As rounds.Phase.
        announcement: Of the open attempt.
        committed: This client's update is in.
        model, closing: The last records that carry a model, and the closing metrics.
        confirmations: Of those who have the last record, by name; see records.confirmation.
        settled: Nobody who is here will confirm any more.
    """

    version: int
    rounds: int
    phase: str
    announcement: Announcement | None
    committed: bool
    model: Record | None
    closing: Record | None
    confirmations: dict[Name, Hex32] = {}  # noqa: RUF012 - msgspec copies it
    settled: bool = False

    @property
    def records(self) -> tuple[Record, ...]:
        """The last model's record, and that of the closing exchange after it; an older one tells nothing any more."""
        if self.model and self.closing and self.closing.announcement.round < self.model.announcement.round:
            return (self.model,)
        return tuple(record for record in (self.model, self.closing) if record)


class Confirmation(Value, frozen=True, kw_only=True):
    """What a client says of a run's end to the other clients."""

    mac: Hex32


class Held(Value, frozen=True, kw_only=True):
    """What the server has of an update.

    Attributes:
        bytes: From its beginning.
        committed: It is in the sum, and nothing more is to be sent.
    """

    bytes: Annotated[int, msgspec.Meta(ge=0)]
    committed: bool


class Noted(Value, frozen=True, kw_only=True):
    """What a client said counts.

    Attributes:
        version: From this one on a view takes it into account.
    """

    version: int


MetricName = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,64}\Z")]
Metric = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]  # JSON has no infinity, and what parses to one is refused


class MetricsReport(Value, frozen=True, kw_only=True):
    """What a client tells the server of a model's quality, for the server's page.

    Attributes:
        round: Whose model it is; 0 is the initial one.
        metrics: The clients' averages as this client decrypted them, to three digits; None where one is missing.
    """

    round: RoundNum
    metrics: Annotated[dict[MetricName, Metric | None], msgspec.Meta(min_length=1, max_length=MAX_METRICS)]


class ReferenceLayout(Value, frozen=True, kw_only=True):
    """The layout that a joining client's must equal.

    Attributes:
        client: Whose it is. Of those who are here, the client that joined first.
        sealed: The layout, encrypted for the other clients, base64.
        settled: A round is over, and the layout stays for the rest of the run. Before, it stays while somebody is here
            who has it.
    """

    client: Name
    sealed: bytes
    settled: bool


class Refusal(Value, frozen=True, kw_only=True):
    """Why a request was refused; ``reference`` is what a layout differs from."""

    error: str
    message: str
    hint: str | None = None
    reference: ReferenceLayout | None = None


def headers(secret: SecretContext, session: str) -> dict[str, str]:
    """The headers of every request."""
    return {
        HEADER_PROTOCOL: str(PROTOCOL),
        HEADER_FEDERATION: secret.identity.federation,
        HEADER_GENERATION: str(secret.identity.generation),
        HEADER_KEYS: str(secret.fingerprints),
        HEADER_SESSION: session,
    }


def check_headers(given: Mapping[str, str], public: PublicContext) -> None:
    """The server's check of a request's headers.

    Raises:
        VersionError: Another version of the protocol.
        MismatchError: Keys of another federation or generation, which it names, or others of the same name.
    """
    if given.get(HEADER_PROTOCOL) != str(PROTOCOL):
        raise VersionError(
            f"this server speaks version {PROTOCOL} of hefl's protocol, and the request "
            f"{given.get(HEADER_PROTOCOL, '')[:20] or 'none'}",
            hint="install the same version of hefl on both sides",
        )
    federation, generation = given.get(HEADER_FEDERATION, ""), given.get(HEADER_GENERATION, "")
    if (federation, generation) != (public.identity.federation, str(public.identity.generation)):
        raise MismatchError(
            f"the client's keys are of federation {federation[:8]}, key generation {generation[:10]}, "
            f"and the server's of {public.identity}",
            hint="copy the client's folder, or the server's, from the authority again",
        )
    if given.get(HEADER_KEYS) != str(public.fingerprints):
        raise MismatchError(
            f"the client's keys and the server's both bear the name of {public.identity}, and are not the same",
            hint="copy the client's folder and the server's from the authority again",
        )


class OtherLayoutError(LayoutError):
    """A model's layout differs from the other clients'; carries theirs, sealed, which only a client can open."""

    def __init__(self, message: str, reference: ReferenceLayout) -> None:
        super().__init__(message)
        self.reference = reference


def refusal_of(error: HeflError) -> Refusal:
    """An error as it travels."""
    reference = error.reference if isinstance(error, OtherLayoutError) else None
    hint = None if error.hint is None else _plain(error.hint)
    return Refusal(error=type(error).__name__, message=_plain(error.message), hint=hint, reference=reference)


def error_of(body: bytes, status: int) -> HeflError:
    """What a server refused; an answer that is no Refusal is a ProtocolError."""
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except UNREADABLE:
        return ProtocolError(f"the server answered with status {status} and nothing that hefl says")
    message, hint = _plain(refusal.message), None if refusal.hint is None else _plain(refusal.hint)
    if refusal.reference is not None:
        return OtherLayoutError(message, refusal.reference)
    return from_name(refusal.error, message, hint)


def _plain(text: str) -> str:
    """Text that may quote a peer: of bounded length, and what is no text in it is escaped."""
    return text[:MAX_TEXT].encode(errors="backslashreplace").decode()


def decode(body: bytes, kind: type[T]) -> T:
    """A value from JSON, checked.

    Raises:
        MalformedError: It does not parse, or a field is missing, unknown or out of range; names it.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except UNREADABLE as error:
        raise MalformedError(f"not a {kind.__name__}: {error}") from error


def parser(kind: type[T]) -> Callable[[bytes], T]:
    """What reads a value of this kind. Raises as decode."""
    return lambda body: decode(body, kind)


def whole_number(text: str, name: str, least: int = 0) -> int:
    """A number from a path, a query or a header. Raises MalformedError where it is none, or out of range."""
    if not re.fullmatch(r"\d{1,13}", text, re.ASCII) or not least <= int(text) <= MAX_NUM_EXAMPLES:
        raise MalformedError(f"{name!r} must be a whole number from {least} to {MAX_NUM_EXAMPLES}, got {text[:20]!r}")
    return int(text)


def is_loopback(host: str) -> bool:
    """The host cannot be another machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
