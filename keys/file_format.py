"""Key file format v1: text, one field a line, read strictly. README.md beside this file specifies it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from hefl.errors import KeyFileError, MismatchError, SecretAtServerError
from hefl.files import read_private
from hefl.identity import Identity
from hefl.keys.passphrase import Scrypted
from hefl.params import NAME_PATTERN

Kind = Literal["secret", "public", "clients", "address", "sealed"]
VERSION_LINE = "hefl/v1"
MAX_BYTES = 1 << 20
"""No key file is larger."""

_COMMON = ("federation", "generation", "holder", "created")
_CONTEXT = ("tenseal", "seal", "ckks-fingerprint", "group-fingerprint", "rings", "ckks")
FIELDS: Mapping[Kind, tuple[str, ...]] = {
    "secret": (*_COMMON, *_CONTEXT, "group-key", "checksum"),
    "public": (*_COMMON, *_CONTEXT, "checksum"),
    "clients": (*_COMMON, "clients", "revoked", "checksum"),
    "address": (*_COMMON, "servers", "checksum"),
    "sealed": (*_COMMON, "content", "kdf", "sealed", "checksum"),
}
"""The fields of each kind, in the one order that is read."""

_HEX16 = r"[0-9a-f]{32}"
_HEX32 = r"[0-9a-f]{64}"
_BASE64 = r"[A-Za-z0-9+/]+={0,2}"
_URL = r"https://[A-Za-z0-9.:\[\]-]+"
NONE = "-"
AGAIN = "copy the file again from the authority's folder"
_FORM: Mapping[str, str] = {
    "federation": _HEX16,
    "generation": r"[1-9][0-9]{0,8}",
    "holder": NAME_PATTERN,
    "created": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "tenseal": r"[0-9][0-9a-z.+]{0,30}",
    "seal": r"\d+\.\d+",
    "ckks-fingerprint": _HEX32,
    "group-fingerprint": _HEX32,
    "rings": r"\d+:\d+(,\d+)+( \d+:\d+(,\d+)+)*",
    "ckks": _BASE64,
    "group-key": _BASE64,
    "clients": rf"{NAME_PATTERN}( {NAME_PATTERN})*",
    "revoked": rf"{NONE}|{NAME_PATTERN}( {NAME_PATTERN})*",
    "servers": rf"{_URL}( {_URL})*",
    "content": r"secret|tls-key",
    "kdf": Scrypted.FORM,
    "sealed": _BASE64,
    "checksum": _HEX32,
}


@dataclass(frozen=True, slots=True)
class KeyFile:
    """One parsed key file.

    Attributes:
        path: Where it was.
        kind: What it is.
        identity: Federation and key generation.
        holder: The party that it was issued to: a client's name, ``server`` or ``authority``.
        fields: Every field as text, checked for form.
    """

    path: Path
    kind: Kind
    identity: Identity
    holder: str
    fields: Mapping[str, str]

    def __repr__(self) -> str:
        return f"KeyFile({self.path}, {self.kind}, {self.identity}, of {self.holder})"


def read(path: Path, *kinds: Kind) -> KeyFile:
    """Read a key file of one of these kinds, or of any where none is named; needs no passphrase.

    Raises:
        SecretAtServerError, KeyFileError: As parse, or it may be read by others.
    """
    return parse(path, read_private(path, MAX_BYTES), *kinds)


def parse(path: Path, data: bytes, *kinds: Kind) -> KeyFile:
    """Take a key file apart, strictly: every field, in order, in form, and nothing after it.

    Raises:
        SecretAtServerError: A secret file stands where a public one belongs.
        KeyFileError: Anything else is wrong; names the file, the line and the mend.
    """
    kinds = kinds or tuple(FIELDS)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path} is not a key file: byte {error.start} is not ASCII", hint=AGAIN) from error
    first, _, rest = text.partition("\n")
    if first in (f"{VERSION_LINE} secret", f"{VERSION_LINE} sealed") and kinds == ("public",):
        raise SecretAtServerError(
            f"{path} is a secret file, and a server may not hold one",
            hint="remove it from this machine, and rotate the keys if it has been here for long",
        )
    kind = next((k for k in kinds if first == f"{VERSION_LINE} {k}"), None)
    if kind is None:
        expected = " or ".join(f"'{VERSION_LINE} {k}'" for k in kinds)
        raise KeyFileError(
            f"{path} starts with {first[:40]!r}, not with {expected}",
            hint=f"it is damaged, another kind of file, or of another version of hefl: {AGAIN}",
        )
    if not rest.endswith("\n"):
        raise KeyFileError(f"{path} is truncated: its last line does not end", hint=AGAIN)
    fields = _fields(path, rest[:-1].split("\n"), FIELDS[kind])
    if fields["checksum"] != _checksum(data[: data.rindex(b"checksum: ")]):
        raise KeyFileError(f"{path} is damaged: its checksum is another", hint=AGAIN)
    identity = Identity(fields["federation"], int(fields["generation"]))
    return KeyFile(path, kind, identity, fields["holder"], fields)


def _fields(path: Path, lines: list[str], names: tuple[str, ...]) -> dict[str, str]:
    if len(lines) != len(names):
        raise KeyFileError(f"{path} has {len(lines)} fields where {len(names)} belong", hint=AGAIN)
    fields = {}
    for number, (line, name) in enumerate(zip(lines, names, strict=True), 2):
        found, colon, value = line.partition(": ")
        if found != name or not colon:
            raise KeyFileError(f"{path}, line {number}: {name!r} belongs here, not {found[:40]!r}", hint=AGAIN)
        if not re.fullmatch(_FORM[name], value):
            raise KeyFileError(f"{path}, line {number}: the value of {name!r} is not in form", hint=AGAIN)
        fields[name] = value
    return fields


def check_same(file: KeyFile, path: Path, identity: Identity, holder: str) -> None:
    """Refuse another file of the folder that is of another federation, generation or holder than a key file.

    Raises:
        MismatchError: They differ; says which is which.
    """
    if identity != file.identity:
        raise MismatchError(
            f"{file.path} is of {file.identity}, and {path} is of {identity}",
            hint="copy the whole folder again: its files belong together",
        )
    if holder != file.holder:
        raise MismatchError(
            f"{file.path} was issued to {file.holder}, and {path} to {holder}",
            hint="each party uses its own folder, whole",
        )


def compose(kind: Kind, identity: Identity, holder: str, more: Mapping[str, str]) -> bytes:
    """The bytes of a key file of now; ``more`` are the fields that not every kind has."""
    return checksummed(lines(kind, identity, holder, more, FIELDS[kind][:-1]))


def lines(kind: Kind, identity: Identity, holder: str, more: Mapping[str, str], names: tuple[str, ...]) -> bytes:
    """The version line and these fields; a time that ``more`` does not name is now."""
    fields = {
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **more,
        "federation": identity.federation,
        "generation": str(identity.generation),
        "holder": holder,
    }
    lines = [f"{VERSION_LINE} {kind}", *(f"{name}: {fields[name]}" for name in names)]
    return ("\n".join(lines) + "\n").encode("ascii")


def checksummed(head: bytes) -> bytes:
    """All lines but the last, and the last."""
    return head + f"checksum: {_checksum(head)}\n".encode("ascii")


def _checksum(head: bytes) -> str:
    """Against damage, not against a forger: it holds no key."""
    return hashlib.sha256(head).hexdigest()


def to_base64(data: bytes) -> str:
    """As fields hold bytes."""
    return base64.b64encode(data).decode("ascii")


def from_base64(file: KeyFile, name: str) -> bytes:
    """A field's bytes. Raises KeyFileError where it is no base64."""
    try:
        return base64.b64decode(file.fields[name], validate=True)
    except binascii.Error as error:
        raise KeyFileError(f"{file.path}: {name!r} is not base64: {error}", hint=AGAIN) from error
