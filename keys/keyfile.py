"""Key file format v1: text, one field a line, read strictly. README.md beside this file specifies it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from hefl.ckks.context import (
    Fingerprints,
    Identity,
    PublicContext,
    SecretContext,
    seal_version,
    tenseal_version,
)
from hefl.errors import KeyFileError, MismatchError, SecretAtServerError
from hefl.files import read_private, write_private
from hefl.params import NAME_PATTERN, RINGS, Ring

Kind = Literal["secret", "public", "clients", "address"]

VERSION_LINE = "hefl/v1"
MAX_BYTES = 1 << 20
"""No key file is larger."""

_COMMON = ("federation", "generation", "holder", "created")
_CONTEXT = ("tenseal", "seal", "ckks-fingerprint", "group-fingerprint", "rings", "ckks")
FIELDS: Mapping[Kind, tuple[str, ...]] = {
    "secret": (*_COMMON, *_CONTEXT, "group-key"),
    "public": (*_COMMON, *_CONTEXT),
    "clients": (*_COMMON, "clients"),
    "address": (*_COMMON, "servers"),
}
"""The fields of each kind, in the one order that is read."""

_HEX16 = r"[0-9a-f]{32}"
_HEX32 = r"[0-9a-f]{64}"
_BASE64 = r"[A-Za-z0-9+/]+={0,2}"
_URL = r"https://[A-Za-z0-9.:\[\]-]+"
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
    "servers": rf"{_URL}( {_URL})*",
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


def write_secret(path: Path, context: SecretContext, holder: str) -> None:
    """Write ``secret.hefl``. Raises ExistsError where something is there."""
    key = {"group-key": _base64(context.group_key)}
    _write(path, "secret", context.identity, holder, _context_fields(context) | key)


def write_public(path: Path, context: PublicContext, holder: str) -> None:
    """Write ``public.hefl``. Raises ExistsError where something is there."""
    _write(path, "public", context.identity, holder, _context_fields(context))


def write_clients(path: Path, identity: Identity, holder: str, names: tuple[str, ...]) -> None:
    """Write ``clients.hefl``, the names that a server lets in."""
    _write(path, "clients", identity, holder, {"clients": " ".join(names)})


def write_address(path: Path, identity: Identity, holder: str, urls: tuple[str, ...]) -> None:
    """Write ``address.hefl``, where the server is; clients call the first."""
    _write(path, "address", identity, holder, {"servers": " ".join(urls)})


def read_secret(path: Path) -> tuple[KeyFile, SecretContext]:
    """Read ``secret.hefl``.

    Raises:
        KeyFileError: It is not such a file, is damaged, or may be read by others.
    """
    file = read(path, "secret")
    group_key = _bytes(file, "group-key")
    if len(group_key) != 32:
        raise KeyFileError(f"{path}: group-key must have 32 bytes, got {len(group_key)}", hint="copy the file again")
    context = SecretContext(file.identity, _bytes(file, "ckks"), _rings(file), group_key)
    if context.fingerprints != _fingerprints(file):
        raise KeyFileError(
            f"{path}: the keys do not match their fingerprints", hint="the file is damaged: copy it again"
        )
    return file, context


def read_public(path: Path) -> tuple[KeyFile, PublicContext]:
    """Read ``public.hefl``.

    Raises:
        SecretAtServerError: It is a secret file.
        KeyFileError: It is not such a file, is damaged, or may be read by others.
    """
    file = read(path, "public")
    return file, PublicContext(file.identity, _bytes(file, "ckks"), _rings(file), _fingerprints(file))


def read_clients(path: Path) -> tuple[KeyFile, tuple[str, ...]]:
    """Read ``clients.hefl``: the names that may join, sorted."""
    file = read(path, "clients")
    names = tuple(file.fields["clients"].split(" "))
    if sorted(set(names)) != list(names):
        raise KeyFileError(f"{path}: clients must be sorted and each stand once", hint="copy the file again")
    return file, names


def read_address(path: Path) -> tuple[KeyFile, tuple[str, ...]]:
    """Read ``address.hefl``: the server's URLs, the first being the one to call."""
    file = read(path, "address")
    return file, tuple(file.fields["servers"].split(" "))


def read(path: Path, kind: Kind) -> KeyFile:
    """Read a key file of one kind, strictly: every field, in order, in form, and nothing after it.

    Raises:
        SecretAtServerError: A secret file stands where a public one belongs.
        KeyFileError: Anything else is wrong; names the file, the line and the mend.
    """
    data = read_private(path, MAX_BYTES)
    again = "copy the file again from the authority's folder"
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path} is not a key file: byte {error.start} is not ASCII", hint=again) from error
    first, _, rest = text.partition("\n")
    if first == f"{VERSION_LINE} secret" and kind == "public":
        raise SecretAtServerError(
            f"{path} is a secret file, and a server may not hold one",
            hint="remove it from this machine, and rotate the keys if it has been here for long",
        )
    if first != f"{VERSION_LINE} {kind}":
        raise KeyFileError(
            f"{path} starts with {first[:40]!r}, not with '{VERSION_LINE} {kind}'",
            hint="it is another kind of file, or of another version of hefl",
        )
    if not rest.endswith("\n"):
        raise KeyFileError(f"{path} is truncated: its last line does not end", hint=again)
    lines, names, fields = rest[:-1].split("\n"), FIELDS[kind], {}
    if len(lines) != len(names):
        raise KeyFileError(f"{path} has {len(lines)} fields where {len(names)} belong", hint=again)
    for number, (line, name) in enumerate(zip(lines, names, strict=True), 2):
        found, colon, value = line.partition(": ")
        if found != name or not colon:
            raise KeyFileError(f"{path}, line {number}: {name!r} belongs here, not {found[:40]!r}", hint=again)
        if not re.fullmatch(_FORM[name], value):
            raise KeyFileError(f"{path}, line {number}: the value of {name!r} is not in form", hint=again)
        fields[name] = value
    identity = Identity(fields["federation"], int(fields["generation"]))
    return KeyFile(path, kind, identity, fields["holder"], fields)


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


def _write(path: Path, kind: Kind, identity: Identity, holder: str, more: Mapping[str, str]) -> None:
    fields = {
        "federation": identity.federation,
        "generation": str(identity.generation),
        "holder": holder,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **more,
    }
    lines = [f"{VERSION_LINE} {kind}", *(f"{name}: {fields[name]}" for name in FIELDS[kind])]
    write_private(path, ("\n".join(lines) + "\n").encode("ascii"))


def _context_fields(context: SecretContext | PublicContext) -> dict[str, str]:
    return {
        "tenseal": tenseal_version(),
        "seal": seal_version(),
        "ckks-fingerprint": context.fingerprints.ckks,
        "group-fingerprint": context.fingerprints.group,
        "rings": " ".join(map(str, context.rings)),
        "ckks": _base64(context.ckks),
    }


def _fingerprints(file: KeyFile) -> Fingerprints:
    return Fingerprints(file.fields["ckks-fingerprint"], file.fields["group-fingerprint"])


def _rings(file: KeyFile) -> tuple[Ring, ...]:
    if file.fields["rings"] != " ".join(map(str, RINGS)):
        raise KeyFileError(f"{file.path}: the rings are not those of this version of hefl", hint="make new keys")
    return RINGS


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(file: KeyFile, name: str) -> bytes:
    try:
        return base64.b64decode(file.fields[name], validate=True)
    except binascii.Error as error:
        raise KeyFileError(f"{file.path}: {name!r} is not base64: {error}", hint="copy the file again") from error
