"""The key authority: make a federation's keys and certificates, and change them.

DIR/authority/      to lock away: secret.hefl, clients.hefl, address.hefl, ca.crt, ca.key
DIR/server/         public.hefl, clients.hefl, server.crt, server.key, ca.crt
DIR/clients/NAME/   secret.hefl, address.hefl, client.crt, client.key, ca.crt

All that the other folders are made of is in ``authority/``: they may have been handed out and moved away.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hefl.ckks.context import SecretContext, generate_secret
from hefl.errors import ExistsError, UsageError
from hefl.files import locked, storing, sync_folder, sync_tree
from hefl.identity import Identity
from hefl.keys import keyfile
from hefl.keys.file_format import read
from hefl.keys.folders import AuthorityFolder, check_folder, read_authority_folder
from hefl.keys.keyfile import ClientNames
from hefl.keys.names import DEFAULT_SERVER_NAMES, check_clients, hosts, server_url
from hefl.keys.passphrase import Passphrase
from hefl.keys.tls import CertificateAuthority, Holder
from hefl.keys.transaction import changing, settle

DEFAULT_DAYS = 730


@dataclass(frozen=True, slots=True)
class Federation:
    """What the authority made.

    Attributes:
        folder: DIR.
        identity: Its federation and key generation.
        clients: Names, sorted.
        urls: The server's, the first being the one that clients call.
        revoked: Names that were clients once, sorted.
    """

    folder: Path
    identity: Identity
    clients: tuple[str, ...]
    urls: tuple[str, ...]
    revoked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is asked of a federation that exists.

    Attributes:
        add: New clients.
        revoke: Clients that go; the others get new keys.
        rotate: New keys for all: the next key generation.
        renew: New certificates for all, of the same key generation.
        server_names: New addresses of the server; none leaves them.
        days: Validity of new certificates.
    """

    add: tuple[str, ...] = ()
    revoke: tuple[str, ...] = ()
    rotate: bool = False
    renew: bool = False
    server_names: tuple[str, ...] = ()
    days: int = DEFAULT_DAYS

    @property
    def rotates(self) -> bool:
        """Whether all get new keys."""
        return self.rotate or bool(self.revoke)

    @property
    def concerns_all(self) -> bool:
        """Whether every party's folder changes."""
        return self.rotates or self.renew


def exists(folder: Path) -> bool:
    """Whether a folder holds a federation, perhaps a damaged one."""
    return any((folder / "authority" / name).is_file() for name in ("secret.hefl", "clients.hefl", "ca.crt"))


def is_sealed(folder: Path) -> bool:
    """Whether a passphrase protects the federation in a folder. Raises KeyFileError where its secret file is none."""
    return read(folder / "authority" / "secret.hefl", "secret", "sealed").kind == "sealed"


def create(
    folder: Path,
    clients: Sequence[str],
    server_names: Sequence[str] = DEFAULT_SERVER_NAMES,
    *,
    days: int = DEFAULT_DAYS,
    force: bool = False,
    passphrase: Passphrase | None = None,
) -> Federation:
    """Make a new federation's keys, whole or not at all.

    Args:
        folder: Must not exist, or be empty; with ``force`` it may hold an older federation, whose keys are removed.
        clients: Names of the clients, each once.
        server_names: HOST[:PORT] under which clients reach the server, the first being the one they call.
        days: Validity of the certificates.
        force: Replace an older federation.
        passphrase: Seals every secret file.

    Raises:
        UsageError: A name or a number is not in form.
        ExistsError: Something is in the folder.
    """
    urls = tuple(server_url(name) for name in server_names)
    names = check_clients(clients, urls)
    _check_days(days)
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    with storing(f"the federation's keys in {folder}"):
        _clear(folder, new, old)
        _check_new(folder, force=force)
        try:
            secret = generate_secret()
            root = CertificateAuthority.new(secret.identity, days)
            _Issue(secret, root, ClientNames(names, ()), urls, days, passphrase).everything(new)
            sync_tree(new)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            sync_folder(folder.parent)
        finally:
            _clear(folder, new, old)
    return Federation(folder, secret.identity, names, urls)


def _clear(folder: Path, new: Path, old: Path) -> None:
    """Remove what a keygen that was killed has left, and put back the federation that it was about to replace."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def change(folder: Path, wanted: Change, passphrase: Passphrase | None = None, *, seals: bool = False) -> Federation:
    """Add or revoke clients, rotate keys, renew certificates, whole or not at all.

    Only ``authority/`` is read. The root's key stays the same, so that a party of an earlier key generation still
    reaches the server and hears there what is wrong.

    Args:
        folder: DIR of a federation.
        wanted: What to do.
        passphrase: Opens a sealed federation, and seals what is made.
        seals: Trailer, with the next key generation, a federation that was not sealed.

    Raises:
        UsageError: This cannot be asked of this federation; nothing has changed.
        ExistsError: A client to add is there already.
        KeysError: ``authority/`` is not whole, or the passphrase does not open it.
        StateError: Another keygen works on the folder, or the disk is full.
    """
    _check_wanted(folder, wanted)
    authority = folder / "authority"
    check_folder(authority, "authority")
    with locked(authority, "keygen"):
        settle(folder)
        before = read_authority_folder(authority, passphrase, may_have_expired=wanted.concerns_all)
        if seals and not (before.is_sealed or wanted.rotates):
            raise UsageError(
                f"the keys in {folder} have no passphrase",
                hint="--rotate as well makes new keys, which have it; or leave the passphrase out",
            )
        urls = tuple(server_url(name) for name in wanted.server_names) or before.urls
        names = _names_after(folder, before.names, wanted, urls)
        secret, root = _keys_after(before, wanted)
        issue = _Issue(secret, root, names, urls, wanted.days, passphrase if before.is_sealed or seals else None)
        with changing(folder, wanted.revoke) as new:
            if wanted.concerns_all:
                issue.everything(new)
            else:
                issue.additions(new, wanted.add)
    return Federation(folder, secret.identity, names.clients, urls, names.revoked)


@dataclass(frozen=True, slots=True, repr=False)
class _Issue:
    """What goes into the parties' folders."""

    secret: SecretContext
    root: CertificateAuthority
    names: ClientNames
    urls: tuple[str, ...]
    days: int
    passphrase: Passphrase | None

    def everything(self, folder: Path) -> None:
        """Write every party's folder."""
        identity = self.secret.identity
        authority = _folder(folder, "authority")
        keyfile.write_secret(authority / "secret.hefl", self.secret, "authority", self.passphrase)
        keyfile.write_address(authority / "address.hefl", identity, "authority", self.urls)
        self.root.write(authority, self.passphrase)
        server = _folder(folder, "server")
        keyfile.write_public(server / "public.hefl", self.secret.public(), "server")
        holder = Holder(identity, "server", is_client=False)
        self.root.issue(server, "server", holder, self.days, hosts(self.urls), self.passphrase)
        self.additions(folder, self.names.clients)

    def additions(self, folder: Path, names: Sequence[str]) -> None:
        """Write these clients' folders, and the lists of all."""
        identity = self.secret.identity
        for party in ("authority", "server"):
            path = _folder(folder, party) / "clients.hefl"
            keyfile.write_clients(path, identity, party, self.names.clients, self.names.revoked)
        for name in names:
            client = _folder(folder, f"clients/{name}")
            keyfile.write_secret(client / "secret.hefl", self.secret, name, self.passphrase)
            keyfile.write_address(client / "address.hefl", identity, name, self.urls)
            holder = Holder(identity, name, is_client=True)
            self.root.issue(client, "client", holder, self.days, passphrase=self.passphrase)


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in (folder, *folder.parents):
        made.chmod(0o700)
        if made == parent:
            break
    return folder


def _keys_after(before: AuthorityFolder, wanted: Change) -> tuple[SecretContext, CertificateAuthority]:
    """The keys of the next generation, or those that are, under a root that outlives what it is to sign."""
    identity, root = before.identity, before.root
    if wanted.rotates:
        identity = Identity(identity.federation, identity.generation + 1)
        return generate_secret(identity), CertificateAuthority.new(identity, wanted.days, root.key)
    end = datetime.now(UTC) + timedelta(days=wanted.days)
    if wanted.renew and root.certificate.not_valid_after_utc < end:
        root = CertificateAuthority.new(identity, wanted.days, root.key)
    return before.secret, root


def _names_after(folder: Path, before: ClientNames, wanted: Change, urls: tuple[str, ...]) -> ClientNames:
    if there := sorted(set(wanted.add) & set(before.clients)):
        raise ExistsError(
            f"{folder} holds a federation's keys already, and {', '.join(there)} is one of its clients",
            hint="--client with another name adds one, --rotate makes new keys for all; "
            "--force removes this federation and makes another, which fits none of the old files",
        )
    for name in wanted.revoke:
        if name in before.revoked:
            raise UsageError(f"client {name} was revoked already", hint="--rotate makes new keys for all that remain")
        if name not in before.clients:
            raise UsageError(f"{folder} has no client {name!r}", hint=_who_may_go(before, wanted))
    remain = [name for name in before.clients if name not in wanted.revoke]
    if not remain and not wanted.add:
        raise UsageError("at least one client must remain", hint="--force makes a new federation in this one's place")
    clients = check_clients([*remain, *wanted.add], urls)
    return ClientNames(clients, tuple(sorted({*before.revoked, *wanted.revoke} - set(clients))))


def _who_may_go(before: ClientNames, wanted: Change) -> str:
    """Which names ``--revoke`` would take."""
    if len(before.clients) == 1 and not wanted.add:
        return f"its only client is {before.clients[0]}, and at least one must remain"
    return f"its clients: {', '.join(before.clients)}"


def _check_wanted(folder: Path, wanted: Change) -> None:
    _check_days(wanted.days)
    if both := sorted(set(wanted.add) & set(wanted.revoke)):
        raise UsageError(f"--client {both[0]} adds, and --revoke {both[0]} removes", hint="revoke first, and add later")
    if wanted.server_names and not wanted.concerns_all:
        raise UsageError(
            "the server's address stands in every folder of a federation that exists",
            hint="add --renew for new certificates and addresses, or --rotate for new keys as well",
        )
    if not wanted.add and not wanted.concerns_all:
        raise UsageError(
            f"{folder} holds a federation's keys already, and nothing is asked of it",
            hint="--client NAME adds a client; --rotate, --revoke NAME and --renew change all; "
            "--force makes a new federation",
        )


def _check_days(days: int) -> None:
    if not 1 <= days <= 36500:
        raise UsageError(f"--days must be from 1 to 36500, got {days}")


def _check_new(folder: Path, *, force: bool) -> None:
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
