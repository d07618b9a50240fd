"""A party's folder, read as a whole: every file in it must belong to the same party of the same federation."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from hefl.ckks.context import PublicContext, SecretContext, open_public
from hefl.errors import CertificateError, KeyFileError, SecretAtServerError
from hefl.keys import keyfile, tls


@dataclass(frozen=True, slots=True)
class ServerFolder:
    """What ``hefl serve`` needs.

    Attributes:
        path: The folder.
        public: The context, which holds no secret.
        clients: Names that may join.
    """

    path: Path
    public: PublicContext
    clients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClientFolder:
    """What ``hefl client`` needs.

    Attributes:
        path: The folder.
        name: The client's.
        secret: The context with the secret key.
        url: The server's.
    """

    path: Path
    name: str
    secret: SecretContext
    url: str


def read_server_folder(path: Path) -> ServerFolder:
    """Read ``DIR/server`` and refuse everything that does not belong there.

    Raises:
        SecretAtServerError: A secret context or key file is in it.
        KeysError: A file is missing, damaged, or of another federation, generation or party.
    """
    _check_folder(path, "server", "public.hefl")
    secret = next((p for p in sorted(path.iterdir()) if p.name == "secret.hefl" or p.name == "ca.key"), None)
    if secret:
        raise SecretAtServerError(
            f"{secret} is a secret file, and a server may not hold one",
            hint=_meant(path, "server", "public.hefl")
            or "a server's folder is DIR/server as 'hefl keygen' made it, and holds nothing else",
        )
    public_file, public = keyfile.read_public(path / "public.hefl")
    open_public(public)
    clients_file, clients = keyfile.read_clients(path / "clients.hefl")
    keyfile.check_same(public_file, clients_file.path, clients_file.identity, clients_file.holder)
    holder = tls.read_holder(path, "server")
    keyfile.check_same(public_file, path / "server.crt", holder.identity, holder.name)
    return ServerFolder(path, public, clients)


def read_client_folder(path: Path) -> ClientFolder:
    """Read ``DIR/clients/NAME`` and refuse everything that does not belong there.

    Raises:
        KeysError: A file is missing, damaged, or of another federation, generation or party.
    """
    _check_folder(path, "clients/NAME", "secret.hefl")
    secret_file, secret = keyfile.read_secret(path / "secret.hefl")
    address_file, urls = keyfile.read_address(path / "address.hefl")
    keyfile.check_same(secret_file, address_file.path, address_file.identity, address_file.holder)
    holder = tls.read_holder(path, "client")
    keyfile.check_same(secret_file, path / "client.crt", holder.identity, holder.name)
    if not holder.is_client:
        raise CertificateError(f"{path / 'client.crt'} is not a client's certificate")
    return ClientFolder(path, holder.name, secret, urls[0])


def _check_folder(path: Path, expected: str, first_file: str) -> None:
    """Refuse what is not such a folder at all, and say which one was probably meant."""
    if (path / first_file).is_symlink() or (path / first_file).exists() or (path / "secret.hefl").exists():
        return
    what = f"{path / first_file} is missing" if path.is_dir() else f"{path} is not a folder"
    hint = _meant(path, expected, first_file) or f"name DIR/{expected} as 'hefl keygen' made it"
    raise KeyFileError(what, hint=hint)


def _meant(path: Path, expected: str, first_file: str) -> str | None:
    """Folders of the wanted kind near a wrong one, as a question; None where there is none."""
    near = dict.fromkeys((path, path.parent, path.parent.parent))
    found = [p.parent for place in near for p in sorted(place.glob(f"{expected.replace('NAME', '*')}/{first_file}"))]
    alike = get_close_matches(path.name, [p.name for p in found], 1)
    meant = [p for p in found if p.name in alike] or found[:3]
    return f"did you mean {' or '.join(map(str, meant))}?" if meant else None
