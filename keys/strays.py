"""Find secret files where none may be, by their content: in a server's folder and below it."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hefl.errors import KeyFileError, KeysError, SecretAtServerError, reason_of
from hefl.identity import Identity
from hefl.keys.credentials import MAX_BYTES, read_certificate
from hefl.keys.names import RESERVED
from hefl.keys.tls import UNREADABLE, Holder, holder_of
from hefl.params import NAME_PATTERN

BEGIN_BYTES = 4096
"""So much of each file is looked at: a key file says in its first lines what it is and whose."""

MAX_FILES = 100_000
"""No folder with more is looked through; a run's state has a few for each client."""

OWN_NAMES = ("public.hefl", "clients.hefl", "server.crt", "server.key", "ca.crt")
"""Files that a server reads, and refuses there where they are not what they should be."""

SECRET_NAMES = ("secret.hefl", "ca.key", "client.key")
"""A file that is called so is taken for one, also where it is damaged."""

AWAY = (
    "move it off this machine; if others may have read it here, "
    "'hefl keygen DIR --rotate' at the authority makes new keys"
)
"""The way out."""

_KEY_FILE = re.compile(rb"^(?:\xef\xbb\xbf)?hefl/v\d+ (secret|sealed)(?:\r?\n|\Z)", re.MULTILINE)
_FIELD = re.compile(rb"^(federation|generation|holder|content): ([a-z0-9-]{1,40})\r?$", re.MULTILINE)
_PEM = re.compile(rb"^(?:\xef\xbb\xbf)?-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Stray:
    """One secret file.

    Attributes:
        path: Where it is.
        what: What it holds, and whose that is.
        is_secret: It holds a federation's secret keys; otherwise a private TLS key, or what is called like a secret.
    """

    path: Path
    what: str
    is_secret: bool


def check_no_secret(folder: Path, uploads: Path | None = None, hint: str | None = None) -> None:
    """Refuse a server's folder with a secret file in it, or in a folder below it.

    Args:
        folder: The server's.
        uploads: As strays_in.
        hint: A better one than how to be rid of it, if there is one.

    Raises:
        SecretAtServerError: There is one; names the worst.
        KeyFileError: As strays_in.
    """
    found = strays_in(folder, uploads)
    if not found:
        return
    first, more, all_of_them = found[0], "", ""
    if len(found) > 1:
        more, all_of_them = f"; it is not the only one: {len(found)} are here", f"; 'hefl inspect {folder}' names all"
    raise SecretAtServerError(
        f"{first.path} is a secret file, and a server may not hold one: {first.what}{more}",
        hint=hint or AWAY + all_of_them,
    )


def strays_in(folder: Path, uploads: Path | None = None) -> list[Stray]:
    """Secret files below a server's folder, the worst first, but for its own TLS key and copies of that.

    Each file's beginning is read, through links too. A key file and a private key in PEM are known by it; what is
    packed, or sealed by something else, is not.

    Args:
        folder: The server's.
        uploads: Where clients' uploads arrive. A server that starts removes them, and what is in them is the clients'
            choice: they are not looked at.

    Raises:
        KeyFileError: A file or a folder cannot be read, so that nobody knows what it is; or there are too many.
    """
    try:
        own = read_certificate(folder / "server.crt")
        holder_of(own, folder / "server.crt")
    except KeysError:
        own = None  # said where it is read for use
    places = _places(folder)
    found = [
        stray
        for path in _files(folder)
        if not (path.parent == uploads and re.fullmatch(NAME_PATTERN, path.name))
        if path.name not in OWN_NAMES or _place(path) not in places
        if (stray := _look(path, _beginning(path), own, folder))
    ]
    return sorted(found, key=lambda stray: (not stray.is_secret, stray.path))


def _places(folder: Path) -> set[tuple[int, int] | None]:
    """Where the files are that a server reads: by links of the folder they may lie below it, as Kubernetes has them."""
    return {_place(folder / name) for name in OWN_NAMES if (folder / name).is_symlink()}


def _place(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _files(folder: Path) -> Iterator[Path]:
    """Every plain file below a folder, through links; a folder that several links lead to, once."""
    waiting, seen, count = [folder], set(), 0
    while waiting:
        place = waiting.pop()
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            below = list(place.iterdir())
        except OSError as error:
            raise _unreadable(place, error) from error
        for path in below:
            mode = _mode(path)
            if stat.S_ISDIR(mode):
                waiting.append(path)
            elif stat.S_ISREG(mode):
                count += 1
                if count > MAX_FILES:
                    raise KeyFileError(
                        f"{folder} holds more than {MAX_FILES} files, too many to see that none is secret",
                        hint="a server's folder holds five files; the run's state may be elsewhere, see --state",
                    )
                yield path


def _mode(path: Path) -> int:
    """What is at a path, or where its link leads; 0 where that is nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0
    except OSError as error:
        if path.is_symlink() and not isinstance(error, PermissionError):
            return 0  # it leads round in a circle, or through a file
        raise _unreadable(path, error) from error


def _beginning(path: Path, most: int = BEGIN_BYTES) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(most)
    except FileNotFoundError:
        return b""  # gone since
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(
        f"{path} cannot be read, and nobody knows whether a secret is in it: {reason_of(error)}",
        hint="move it away, or let this user read it: a server's folder may hold no secret file",
    )


def _look(path: Path, data: bytes, own: x509.Certificate | None, folder: Path) -> Stray | None:
    """What a file is by its beginning, where it may not be here. Key files and PEM are text: no byte of them is 0."""
    if b"\0" in data:
        data = b""
    if key_file := _KEY_FILE.search(data):
        fields = {name.decode(): value.decode() for name, value in _FIELD.findall(data, key_file.end())}
        is_sealed = key_file[1] == b"sealed"
        is_secret = not is_sealed or fields.get("content") != "tls-key"
        holder = _holder(fields)
        if not is_secret and _is_own(holder, own):
            return None
        what = _whose("secret keys" if is_secret else "private TLS key", holder)
        return Stray(path, f"it holds {what}{', sealed with a passphrase' if is_sealed else ''}", is_secret)
    if _PEM.search(data) and path != folder / "server.key":
        holder = _certified(path, own)
        if _is_own(holder, own):
            return None
        what = _whose("private TLS key" if holder else "private key", holder)
        return Stray(path, f"it holds {what}", is_secret=False)
    if path.name in SECRET_NAMES:
        return Stray(path, "it is called like one, whatever it holds", is_secret=False)
    return None


def _is_own(holder: Holder | None, own: x509.Certificate | None) -> bool:
    """Whether that is the server, of whatever key generation."""
    if holder is None or own is None:
        return False
    mine = holder_of(own, "server.crt")
    return (holder.name, holder.identity.federation) == (mine.name, mine.identity.federation)


def _whose(what: str, holder: Holder | None) -> str:
    if holder is None:
        return f"{what if what.endswith('s') else f'a {what}'}, and nothing says whose"
    return f"the {what} of {'client ' if holder.is_client else 'the '}{holder.name}, of {holder.identity}"


def _holder(fields: Mapping[str, str]) -> Holder | None:
    """Whom a key file names, if it does."""
    try:
        identity = Identity(fields["federation"], int(fields["generation"]))
        name = fields["holder"]
    except (KeyError, ValueError):
        return None
    return Holder(identity, name, is_client=name not in RESERVED)


def _certified(path: Path, own: x509.Certificate | None) -> Holder | None:
    """Whom the certificate of a private key speaks for: the server's, or one beside the key under the same name."""
    try:
        key = serialization.load_pem_private_key(_beginning(path, MAX_BYTES), None)
        beside = path.with_suffix(".crt")
        for certificate in [own, *([read_certificate(beside)] if beside.exists() else [])]:
            if certificate and certificate.public_key() == key.public_key():
                return holder_of(certificate, beside)
    except (KeysError, *UNREADABLE):
        pass
    return None
