"""The key authority: makes a federation's keys and certificates, one folder for each party.

DIR/authority/      to lock away: secret.hefl, clients.hefl, address.hefl, ca.crt, ca.key
DIR/server/         public.hefl, clients.hefl, server.crt, server.key, ca.crt
DIR/clients/NAME/   secret.hefl, address.hefl, client.crt, client.key, ca.crt
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hefl.ckks.context import Identity, generate_secret
from hefl.errors import ExistsError, UsageError
from hefl.files import sync_folder
from hefl.keys import keyfile
from hefl.keys.tls import CertificateAuthority, Holder
from hefl.params import MAX_CLIENTS, NAME_PATTERN

DEFAULT_PORT = 8443
DEFAULT_SERVER_NAMES = (f"127.0.0.1:{DEFAULT_PORT}", f"localhost:{DEFAULT_PORT}")
RESERVED = ("server", "authority")


@dataclass(frozen=True, slots=True)
class Federation:
    """What the authority made.

    Attributes:
        folder: DIR.
        identity: Its federation and key generation.
        clients: Names, sorted.
        urls: The server's, the first being the one that clients call.
    """

    folder: Path
    identity: Identity
    clients: tuple[str, ...]
    urls: tuple[str, ...]


def create(
    folder: Path,
    clients: Sequence[str],
    server_names: Sequence[str] = DEFAULT_SERVER_NAMES,
    *,
    days: int = 730,
    force: bool = False,
) -> Federation:
    """Make a new federation's keys, whole or not at all.

    Args:
        folder: Must not exist, or be empty; with ``force`` it may hold an older federation, whose keys are removed.
        clients: Names of the clients, each once.
        server_names: HOST[:PORT] under which clients reach the server, the first being the one they call.
        days: Validity of the certificates.
        force: Replace an older federation.

    Raises:
        UsageError: A name or a number is not in form.
        ExistsError: Something is in the folder.
    """
    names, urls = _check_clients(clients), tuple(_url(name) for name in server_names)
    hosts = tuple(dict.fromkeys(urlsplit(url).hostname or "" for url in urls))
    if clash := set(names) & {*hosts, *RESERVED}:
        raise UsageError(f"a client may not bear a server's name: {', '.join(sorted(clash))}")
    if not 1 <= days <= 36500:
        raise UsageError(f"--days must be from 1 to 36500, got {days}")
    _check_folder(folder, force=force)
    new = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    try:
        identity = _fill(new, names, urls, hosts, days)
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return Federation(folder, identity, names, urls)


def _fill(folder: Path, names: tuple[str, ...], urls: tuple[str, ...], hosts: tuple[str, ...], days: int) -> Identity:
    secret = generate_secret()
    identity = secret.identity
    root = CertificateAuthority.new(identity, days)

    authority = _folder(folder, "authority")
    keyfile.write_secret(authority / "secret.hefl", secret, "authority")
    keyfile.write_clients(authority / "clients.hefl", identity, "authority", names)
    keyfile.write_address(authority / "address.hefl", identity, "authority", urls)
    root.write(authority)

    server = _folder(folder, "server")
    keyfile.write_public(server / "public.hefl", secret.public(), "server")
    keyfile.write_clients(server / "clients.hefl", identity, "server", names)
    root.issue(server, "server", Holder(identity, "server", is_client=False), days, hosts)

    for name in names:
        client = _folder(folder, f"clients/{name}")
        keyfile.write_secret(client / "secret.hefl", secret, name)
        keyfile.write_address(client / "address.hefl", identity, name, urls)
        root.issue(client, "client", Holder(identity, name, is_client=True), days)
    return identity


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir(mode=0o700, parents=True)
    for made in (folder, *folder.parents):
        made.chmod(0o700)
        if made == parent:
            break
    return folder


def _check_clients(clients: Sequence[str]) -> tuple[str, ...]:
    names = tuple(sorted(clients))
    if not 1 <= len(names) <= MAX_CLIENTS:
        raise UsageError(f"from 1 to {MAX_CLIENTS} clients make a federation, got {len(names)}", hint="--client NAME")
    for name in names:
        if not re.fullmatch(NAME_PATTERN, name):
            raise UsageError(
                f"a client's name is 1 to 32 of a-z, 0-9 and -, not starting with -, got {name!r}",
            )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"client {twice} is named twice")
    return names


def _url(server_name: str) -> str:
    """HOST[:PORT] as an https URL; an IPv6 address stands in brackets."""
    try:
        parts = urlsplit(f"//{server_name}")
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    if not host or parts.netloc != server_name or "@" in server_name or not _is_host(host):
        raise UsageError(
            f"--server-name takes HOST[:PORT], got {server_name!r}", hint="an IPv6 address goes in brackets"
        )
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
        return len(host) <= 253 and re.fullmatch(rf"{label}(\.{label})*", host) is not None
    return True


def _check_folder(folder: Path, *, force: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        if not folder.parent.is_dir():
            raise UsageError(f"the folder {folder.parent} does not exist", hint="make it first")
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ExistsError(f"{folder} exists and is not a folder", hint="name another for the keys")
    if not any(folder.iterdir()):
        return
    if not (folder / "authority" / "secret.hefl").is_file():
        raise ExistsError(f"{folder} is not empty, and holds no federation of hefl's", hint="name another folder")
    if not force:
        raise ExistsError(
            f"{folder} holds a federation's keys already",
            hint="name another folder; --force removes those keys and makes new ones, which fit none of the old files",
        )
