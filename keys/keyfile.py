"""Read and write the key files: ``secret.hefl``, ``public.hefl``, ``clients.hefl``, ``address.hefl``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hefl.ckks.context import Fingerprints, PublicContext, SecretContext, seal_version, tenseal_version
from hefl.errors import KeyFileError
from hefl.files import write_private
from hefl.identity import Identity
from hefl.keys.file_format import AGAIN, NONE, KeyFile, check_same, compose, from_base64, parse, read, to_base64
from hefl.keys.passphrase import Passphrase
from hefl.keys.sealed import seal, unseal
from hefl.params import RINGS, Ring


def write_secret(path: Path, context: SecretContext, holder: str, passphrase: Passphrase | None = None) -> None:
    """Write ``secret.hefl``, sealed where there is a passphrase. Raises ExistsError where something is there."""
    key = {"group-key": to_base64(context.group_key)}
    data = compose("secret", context.identity, holder, _context_fields(context) | key)
    if passphrase:
        data = seal(data, "secret", context.identity, holder, passphrase)
    write_private(path, data)


def write_public(path: Path, context: PublicContext, holder: str) -> None:
    """Write ``public.hefl``. Raises ExistsError where something is there."""
    write_private(path, compose("public", context.identity, holder, _context_fields(context)))


def write_clients(
    path: Path, identity: Identity, holder: str, names: tuple[str, ...], revoked: tuple[str, ...] = ()
) -> None:
    """Write ``clients.hefl``: the names that a server lets in, and those that it once did, both sorted."""
    fields = {"clients": " ".join(names), "revoked": " ".join(revoked) or NONE}
    write_private(path, compose("clients", identity, holder, fields))


def write_address(path: Path, identity: Identity, holder: str, urls: tuple[str, ...]) -> None:
    """Write ``address.hefl``, where the server is; clients call the first."""
    write_private(path, compose("address", identity, holder, {"servers": " ".join(urls)}))


def read_secret(path: Path, passphrase: Passphrase | None = None) -> tuple[KeyFile, SecretContext]:
    """Read ``secret.hefl``, sealed or not.

    Raises:
        KeyFileError: It is not such a file, is damaged, may be read by others, or the passphrase does not open it.
    """
    file = read(path, "secret", "sealed")
    if file.kind == "sealed":
        inner = parse(path, unseal(file, "secret", passphrase), "secret")
        check_same(file, path, inner.identity, inner.holder)
        file = inner
    group_key = from_base64(file, "group-key")
    if len(group_key) != 32:
        raise KeyFileError(f"{path}: group-key must have 32 bytes, got {len(group_key)}", hint=AGAIN)
    context = SecretContext(file.identity, from_base64(file, "ckks"), _rings(file), group_key)
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
    return file, PublicContext(file.identity, from_base64(file, "ckks"), _rings(file), _fingerprints(file))


@dataclass(frozen=True, slots=True)
class ClientNames:
    """What ``clients.hefl`` lists, sorted.

    Attributes:
        clients: May join.
        revoked: Were clients of an earlier key generation, and are not any more.
    """

    clients: tuple[str, ...]
    revoked: tuple[str, ...]


def read_clients(path: Path) -> tuple[KeyFile, ClientNames]:
    """Read ``clients.hefl``."""
    file = read(path, "clients")
    names, revoked = (
        tuple(file.fields[field].split(" ")) if file.fields[field] != NONE else () for field in ("clients", "revoked")
    )
    for field, found in (("clients", names), ("revoked", revoked)):
        if sorted(set(found)) != list(found):
            raise KeyFileError(f"{path}: {field} must be sorted and each stand once", hint=AGAIN)
    if both := set(names) & set(revoked):
        raise KeyFileError(f"{path}: {min(both)} is both a client and revoked", hint=AGAIN)
    return file, ClientNames(names, revoked)


def read_address(path: Path) -> tuple[KeyFile, tuple[str, ...]]:
    """Read ``address.hefl``: the server's URLs, the first being the one to call."""
    file = read(path, "address")
    return file, tuple(file.fields["servers"].split(" "))


def _context_fields(context: SecretContext | PublicContext) -> dict[str, str]:
    return {
        "tenseal": tenseal_version(),
        "seal": seal_version(),
        "ckks-fingerprint": context.fingerprints.ckks,
        "group-fingerprint": context.fingerprints.group,
        "rings": " ".join(map(str, context.rings)),
        "ckks": to_base64(context.ckks),
    }


def _fingerprints(file: KeyFile) -> Fingerprints:
    return Fingerprints(file.fields["ckks-fingerprint"], file.fields["group-fingerprint"])


def _rings(file: KeyFile) -> tuple[Ring, ...]:
    if file.fields["rings"] != " ".join(map(str, RINGS)):
        raise KeyFileError(f"{file.path}: the rings are not those of this version of hefl", hint="make new keys")
    return RINGS
