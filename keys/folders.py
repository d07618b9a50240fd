"""Read a party's folder as a whole: all files belong to one party of one federation."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from hefl.ckks.context import PublicContext, SecretContext, open_public
from hefl.errors import KeyFileError
from hefl.files import is_given
from hefl.identity import Identity
from hefl.keys import keyfile
from hefl.keys.credentials import Credentials, check_validity, read_credentials, read_key, read_root
from hefl.keys.file_format import check_same, read
from hefl.keys.keyfile import ClientNames
from hefl.keys.passphrase import Passphrase
from hefl.keys.strays import check_no_secret
from hefl.keys.tls import CertificateAuthority, holder_of

FOLDERS: Mapping[str, tuple[str, ...]] = {
    "server": ("public.hefl", "clients.hefl", "server.crt", "server.key", "ca.crt"),
    "client": ("secret.hefl", "address.hefl", "client.crt", "client.key", "ca.crt"),
    "authority": ("secret.hefl", "clients.hefl", "address.hefl", "ca.crt", "ca.key"),
}
"""What each party's folder holds."""


@dataclass(frozen=True, slots=True)
class ServerFolder:
    """What ``hefl serve`` needs.

    Attributes:
        path: The folder.
        public: The context, which holds no secret.
        names: Who may join, and who was revoked.
        credentials: For TLS.
    """

    path: Path
    public: PublicContext
    names: ClientNames
    credentials: Credentials

    @property
    def clients(self) -> tuple[str, ...]:
        """Names that may join."""
        return self.names.clients


@dataclass(frozen=True, slots=True)
class ClientFolder:
    """What ``hefl client`` needs.

    Attributes:
        path: The folder.
        name: The client's.
        secret: The context with the secret key.
        url: The server's.
        credentials: For TLS.
    """

    path: Path
    name: str
    secret: SecretContext
    url: str
    credentials: Credentials


@dataclass(frozen=True, slots=True)
class AuthorityFolder:
    """What ``hefl keygen`` needs to change a federation: all that the other folders are made of.

    Attributes:
        path: The folder.
        secret: The context with the secret key.
        names: The clients, and who was revoked.
        urls: The server's, the first being the one that clients call.
        root: Signs the certificates.
        is_sealed: A passphrase protects it.
    """

    path: Path
    secret: SecretContext
    names: ClientNames
    urls: tuple[str, ...]
    root: CertificateAuthority
    is_sealed: bool

    @property
    def identity(self) -> Identity:
        """Federation and key generation."""
        return self.secret.identity


def read_server_folder(
    path: Path, passphrase: Passphrase | None = None, *, uploads: Path | None = None
) -> ServerFolder:
    """Read ``DIR/server`` and refuse everything that does not belong there.

    Args:
        path: The folder.
        passphrase: Opens it where it is sealed.
        uploads: As strays_in.

    Raises:
        SecretAtServerError: A secret context is in it, or a secret file, as strays_in finds them.
        KeysError: A file is missing, damaged, unreadable, or of another federation, generation or party.
    """
    check_folder(path, "server")
    is_whole = (path / "public.hefl").exists()
    check_no_secret(path, uploads, None if is_whole else _meant(path, "server", "public.hefl"))
    public_file, public = keyfile.read_public(path / "public.hefl")
    open_public(public)
    clients_file, names = keyfile.read_clients(path / "clients.hefl")
    check_same(public_file, clients_file.path, clients_file.identity, clients_file.holder)
    credentials = read_credentials(path, "server", passphrase)
    holder = credentials.holder
    check_same(public_file, path / "server.crt", holder.identity, holder.name)
    return ServerFolder(path, public, names, credentials)


def read_client_folder(path: Path, passphrase: Passphrase | None = None) -> ClientFolder:
    """Read ``DIR/clients/NAME`` and refuse everything that does not belong there.

    Raises:
        KeysError: A file is missing, damaged, or of another federation, generation or party.
    """
    check_folder(path, "clients/NAME")
    secret_file, secret = keyfile.read_secret(path / "secret.hefl", passphrase)
    address_file, urls = keyfile.read_address(path / "address.hefl")
    check_same(secret_file, address_file.path, address_file.identity, address_file.holder)
    credentials = read_credentials(path, "client", passphrase)
    holder = credentials.holder
    check_same(secret_file, path / "client.crt", holder.identity, holder.name)
    return ClientFolder(path, holder.name, secret, urls[0], credentials)


def read_client_secret(path: Path, passphrase: Passphrase | None = None) -> SecretContext:
    """Read the secret keys of ``DIR/clients/NAME``, or of a ``secret.hefl`` that is all that is left of such a folder.

    Certificates may have expired, or be gone: this is for what needs no server.

    Raises:
        KeysError: The file is missing or damaged, or may be read by others.
    """
    if not path.is_file():
        check_folder(path, "clients/NAME")
        path = path / "secret.hefl"
    return keyfile.read_secret(path, passphrase)[1]


def read_authority_folder(
    path: Path, passphrase: Passphrase | None = None, *, may_have_expired: bool = False
) -> AuthorityFolder:
    """Read ``DIR/authority`` and refuse files that do not belong together.

    Args:
        path: The folder.
        passphrase: Opens it where it is sealed.
        may_have_expired: For whoever is about to renew its certificate.

    Raises:
        KeysError: A file is missing, damaged, or of another federation, generation or party.
    """
    check_folder(path, "authority")
    is_sealed = read(path / "secret.hefl", "secret", "sealed").kind == "sealed"
    clients_file, names = keyfile.read_clients(path / "clients.hefl")
    address_file, urls = keyfile.read_address(path / "address.hefl")
    check_same(clients_file, address_file.path, address_file.identity, address_file.holder)
    ca_path, key_path = path / "ca.crt", path / "ca.key"
    certificate = read_root(ca_path)
    holder = holder_of(certificate, ca_path)
    check_same(clients_file, ca_path, holder.identity, holder.name)
    if not may_have_expired:
        check_validity(str(ca_path), certificate)
    secret_file, secret = keyfile.read_secret(path / "secret.hefl", passphrase)
    check_same(clients_file, secret_file.path, secret_file.identity, secret_file.holder)
    key = read_key(key_path, holder, passphrase)
    if key.public_key() != certificate.public_key():
        raise KeyFileError(f"{key_path} is not the key of {ca_path}", hint="take both from the same backup")
    return AuthorityFolder(path, secret, names, urls, CertificateAuthority(certificate, key), is_sealed)


FIRST_FILES = {"server": "public.hefl", "clients/NAME": "secret.hefl", "authority": "clients.hefl"}
"""By which a party's folder is known."""


def check_folder(path: Path, expected: str) -> None:
    """Refuse what is not such a folder at all, and say which one was probably meant; and what check_private refuses."""
    first = path / FIRST_FILES[expected]
    if path.is_dir():
        check_private(path)
    if first.is_symlink() or first.exists() or (path / "secret.hefl").exists():
        return
    what = f"{first} is missing" if path.is_dir() else f"{path} is not a folder"
    hint = _meant(path, expected, first.name) or f"name DIR/{expected} as 'hefl keygen' made it"
    raise KeyFileError(what, hint=hint)


def check_private(path: Path) -> None:
    """Refuse a party's folder that is a link, or that others may enter, unless root gave it. Raises KeyFileError."""
    if path.is_symlink():
        raise KeyFileError(f"{path} is a link", hint=f"links are not followed: name {path.resolve()} itself")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077 and not is_given(path):
        raise KeyFileError(
            f"{path} may be entered by others (mode {mode:04o}); only its owner may", hint=f"chmod 700 {path}"
        )


def _meant(path: Path, expected: str, first_file: str) -> str | None:
    """Folders of the wanted kind near a wrong one, as a question; None where there is none."""
    near = dict.fromkeys((path, path.parent, path.parent.parent))
    found = [p.parent for place in near for p in sorted(place.glob(f"{expected.replace('NAME', '*')}/{first_file}"))]
    alike = get_close_matches(path.name, [p.name for p in found], 1)
    meant = [p for p in found if p.name in alike] or found[:3]
    return f"did you mean {' or '.join(map(str, meant))}?" if meant else None
