"""The tree of hefl's errors.

    HeflError                       1   something failed
    ├── UsageError                  2   the command was called wrongly
    ├── KeysError                   3   keys and certificates
    │   ├── KeyFileError                a key file is not what it should be
    │   ├── MismatchError               files of two federations or generations met
    │   ├── SecretAtServerError         a secret context where none may be
    │   ├── SealVersionError            a context of another SEAL version
    │   ├── CertificateError            TLS refused a certificate
    │   └── UnknownClientError          not on the server's list
    ├── ParametersError             3   the parties' settings do not fit together
    │   ├── VersionError                protocol or wire format of another version
    │   ├── EngineError                 engines differ, or one is not allowed here
    │   ├── NumExamplesError            a sample weight that cannot be used
    │   └── LayoutError                 the model's tensors differ or cannot be averaged
    ├── UpdateError                 1   an update that cannot be encrypted
    │   ├── NotFiniteError              NaN or infinity
    │   └── OutOfRangeError             a value that the engine cannot hold
    ├── ProtocolError               4   the peer broke the protocol
    │   ├── MalformedError              bytes that do not parse, or too few, or too many
    │   ├── StaleError                  of another round or attempt
    │   ├── ConflictError               contradicts what was said before
    │   ├── TamperError                 a sum that is not the announced one
    │   └── UploadError                 a participant encrypted what the protocol does not allow
    ├── UnreachableError            5   nobody answers, or not in time
    │   ├── TooSlowError                what was to be sent comes too slowly
    │   └── TooManyError                more at once than one peer may ask for
    ├── UselessSumsError            1   sum after sum makes no model
    ├── NameInUseError              1   another live client has this name
    ├── PortInUseError              1   the port is taken
    ├── ExistsError                 1   the output is there already
    ├── StateError                  1   a state folder that cannot be used
    │   └── DiskFullError               no room on the disk; it may be made
    ├── ModelFileError              1   a file that holds no model
    ├── TrainerError                1   the user's trainer failed or does not fit
    └── KernelError                 1   compiled code or a random source that fails its check

The number is the command's exit code. The first line of a docstring is what a person reads where nothing better
is known.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import ClassVar


class HeflError(Exception):
    """Something failed.

    Args:
        message: What failed, the constraint and the value; lower case, no full stop.
        hint: The way out, where there is one; default: the class's.

    ``exit_code`` is the command's, ``http_status`` the server's answer, ``way_out`` a hint that is always right.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    way_out: ClassVar[str | None] = None

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or type(self).__name__).splitlines()[0].rstrip(".").lower()
        self.hint = hint or self.way_out
        super().__init__(self.message)


class UsageError(HeflError):
    """The command was called wrongly."""

    exit_code = 2


class KeysError(HeflError):
    """Something is wrong with a key or a certificate."""

    exit_code = 3
    http_status = 403
    way_out = "copy the folder from the key authority again, whole"


class KeyFileError(KeysError):
    """A key file is missing, damaged, of another version or readable by others."""


class MismatchError(KeysError):
    """Files of two federations or key generations met."""


class SecretAtServerError(KeysError):
    """A secret context stands where only a public one may be."""


class SealVersionError(KeysError):
    """A TenSEAL context was made by another version of SEAL."""


class CertificateError(KeysError):
    """TLS refused a certificate."""


class UnknownClientError(KeysError):
    """The client is not on the server's list."""


class ParametersError(HeflError):
    """The parties' settings do not fit together."""

    exit_code = 3
    http_status = 409


class VersionError(ParametersError):
    """The other side speaks another version of the protocol or the wire format."""

    way_out = "install the same version of hefl on both sides"


class EngineError(ParametersError):
    """The engines differ, or this engine is not allowed here."""

    way_out = "start the server and all clients with the same --engine"


class NumExamplesError(ParametersError):
    """A number of examples that cannot weigh an update."""


class LayoutError(ParametersError):
    """The tensors of two models differ, or cannot be averaged."""


class UpdateError(HeflError):
    """An update cannot be encrypted."""


class NotFiniteError(UpdateError):
    """An update holds NaN or infinity."""


class OutOfRangeError(UpdateError):
    """An update holds a value that the engine cannot hold."""


class ProtocolError(HeflError):
    """The peer broke the protocol.

    ``check`` names what it did not pass. Those of a whole class are ``protocol``, ``form``, ``attempt``, ``conflict``
    and ``range``; a TamperError names its own.
    """

    exit_code = 4
    http_status = 400
    check: str = "protocol"
    way_out = (
        "start again; if that does not help, the other side runs another hefl, or something between alters what is sent"
    )


class MalformedError(ProtocolError):
    """Bytes that do not parse, or too few of them, or too many."""

    check = "form"


class StaleError(ProtocolError):
    """Something of another round or attempt."""

    http_status = 410
    check = "attempt"


class ConflictError(ProtocolError):
    """Something that contradicts what was said before."""

    http_status = 409
    check = "conflict"


class TamperError(ProtocolError):
    """The server lied: of a sum, of who is in it, or of what has happened.

    ``check`` is one of TAMPER_CHECKS.
    """

    way_out = "do not go on with this server before whoever runs it knows why"

    def __init__(self, message: str = "", *, hint: str | None = None, check: str = "tag") -> None:
        self.check = check
        super().__init__(message, hint=hint)


TAMPER_CHECKS = (
    "names-distinct",
    "names-announced",
    "names-ordered",
    "weights-announced",
    "enough-members",
    "own-seed",
    "own-weight",
    "record",
    "tag",
    "run",
    "head",
    "history",
    "attempt-rises",
    "enough-participants",
    "one-set",
)
"""What a client checks before it answers an attempt, and before it believes a sum; each refuses alone."""


class UploadError(ProtocolError):
    """A participant's upload is out of range; the sum is genuine, and means nothing."""

    check = "range"
    way_out = "look into the logs of the other clients: one of them sent what hefl never sends"


class UnreachableError(HeflError):
    """Nobody answers, or not in time."""

    exit_code = 5
    http_status = 503


class TooSlowError(UnreachableError):
    """A request came too slowly."""

    http_status = 408


class TooManyError(UnreachableError):
    """One peer asks for too much at once."""

    http_status = 429


class UselessSumsError(HeflError):
    """Sum after sum made no model."""


class NameInUseError(HeflError):
    """Another live client has this name."""

    http_status = 409


class PortInUseError(HeflError):
    """The port is taken."""


class ExistsError(HeflError):
    """The output is there already."""


class StateError(HeflError):
    """A state folder that cannot be used."""

    way_out = "name another folder with --state"


class DiskFullError(StateError):
    """The disk is full."""

    http_status = 503


class ModelFileError(HeflError):
    """A file that should hold a model, and cannot be read as one."""


class TrainerError(HeflError):
    """The trainer failed, or does not do what a trainer must."""


class KernelError(HeflError):
    """Compiled code or a source of randomness failed its check."""

    way_out = "nothing was sent; install the versions that requirements.lock names, and report it"


def reason_of(error: OSError) -> str:
    """Why the operating system refused, in lower case."""
    if error.errno and error.errno in errno.errorcode and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error) or type(error).__name__).lower()


def _tree(root: type[HeflError]) -> dict[str, type[HeflError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def from_name(name: str, message: str, hint: str | None) -> HeflError:
    """The error that a peer reported by its class's name; one that is not of this module becomes a ProtocolError."""
    kind = _tree(HeflError).get(name, ProtocolError)
    return kind(message, hint=hint) if kind.__module__ == __name__ else ProtocolError(message, hint=hint)
