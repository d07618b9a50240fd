"""Certificates that a party must not take: at the server from a caller, at the client from a server, and its own."""

from __future__ import annotations

import dataclasses
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from federation import Command, Federation

from hefl.identity import Identity
from hefl.keys import authority, credentials, folders, tls
from hefl.keys.authority import Change
from hefl.keys.credentials import Credentials
from hefl.keys.tls import CertificateAuthority, Holder
from hefl.params import EXPIRY_NOTICE_DAYS

DAY = timedelta(days=1)
BADS = (
    "expired",
    "not yet valid",
    "self-signed",
    "another authority's",
    "an impostor's",
    "of the other role",
    "older generation",
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Of generation 2, so that there is an older one."""
    made = Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")
    made.made = authority.change(made.folder, Change(rotate=True))
    return made


def root_of(keys: Federation) -> CertificateAuthority:
    return folders.read_authority_folder(keys.folder / "authority").root


@contextmanager
def made_at(moment: datetime) -> Iterator[None]:
    """Certificates are made as if it were another day."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return moment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "datetime", Then)
        yield


def issue(keys: Federation, folder: Path, stem: tls.Stem, bad: str) -> None:
    """Put a bad certificate, its key and the true root into a folder, where a good set was or nothing."""
    now, root = datetime.now(UTC), root_of(keys)
    identity = keys.made.identity
    mine = Holder(identity, "server" if stem == "server" else "alice", is_client=stem == "client")
    other = Holder(identity, "bob" if stem == "server" else "server", is_client=stem == "server")
    for name in (f"{stem}.crt", f"{stem}.key", "ca.crt"):
        (folder / name).unlink(missing_ok=True)
    begin, days, holder = now - DAY, 30, mine
    match bad:
        case "expired":
            begin, days = now - 10 * DAY, 1
        case "not yet valid":
            begin = now + 10 * DAY
        case "another authority's":
            root = CertificateAuthority.new(Identity("ab" * 16, 2), 30)
        case "an impostor's":  # who calls itself what the true root is called
            root = CertificateAuthority.new(identity, 30)
        case "of the other role":
            holder = other
        case "older generation":
            holder = Holder(Identity(identity.federation, identity.generation - 1), mine.name, mine.is_client)
    with made_at(begin):
        root.issue(folder, stem, holder, days, ("127.0.0.1",))
    if bad == "self-signed":
        sign_itself(folder, stem, mine)
    (folder / "ca.crt").write_bytes((keys.folder / "authority/ca.crt").read_bytes())


def sign_itself(folder: Path, stem: tls.Stem, holder: Holder) -> None:
    """Make a certificate its own issuer."""
    was = x509.load_pem_x509_certificate((folder / f"{stem}.crt").read_bytes())
    key = credentials.read_key(folder / f"{stem}.key", holder)
    kept = [e for e in was.extensions if not isinstance(e.value, x509.AuthorityKeyIdentifier)]
    begin, end = was.not_valid_before_utc, was.not_valid_after_utc
    builder = x509.CertificateBuilder(was.subject, was.subject, key.public_key(), was.serial_number, begin, end, kept)
    (folder / f"{stem}.crt").write_bytes(tls.to_pem(builder.sign(key, hashes.SHA256())))


def as_it_is(folder: Path, stem: tls.Stem) -> Credentials:
    """What is in a folder, unchecked, as a party that does not play by the rules would show it."""
    certificate, root = (x509.load_pem_x509_certificate((folder / n).read_bytes()) for n in (f"{stem}.crt", "ca.crt"))
    holder = tls.holder_of(certificate, folder)
    return Credentials(folder, stem, holder, certificate, credentials.read_key(folder / f"{stem}.key", holder), root)


def refused(command: Command, *texts: str) -> None:
    assert command.wait() == 3, command.error
    for text in texts:
        assert text in command.error
    assert command.err[-1].startswith("hefl: hint: ")
    assert "Traceback" not in command.error


# --- its own ----------------------------------------------------------------------------------------------------------

OWN = {
    "expired": ("has expired", "--renew"),
    "not yet valid": ("is not yet valid", "clock"),
    "self-signed": ("did not sign it", "copy the whole folder again"),
    "another authority's": ("did not sign it", "copy the whole folder again"),
    "an impostor's": ("did not sign it", "copy the whole folder again"),
    "of the other role": ("certificate", "own folder, whole"),
    "older generation": ("key generation 1", "copy the whole folder again"),
}


@pytest.mark.parametrize("bad", BADS)
@pytest.mark.parametrize("stem", ["server", "client"])
def test_a_party_refuses_its_own_bad_certificate_before_it_shows_it(
    keys: Federation, tmp_path: Path, stem: tls.Stem, bad: str
) -> None:
    mixed = keys.copy(tmp_path / "fed")
    folder = mixed.folder / ("server" if stem == "server" else "clients/alice")
    issue(keys, folder, stem, bad)
    with mixed:
        if stem == "server":
            command = mixed.run("serve", folder, "--port", "0")
        else:
            command = mixed.client("alice", tmp_path / "alice", "--server", "https://127.0.0.1:1")
        refused(command, f"{folder}/{stem}.crt", *OWN[bad])


@pytest.mark.parametrize("party_folder", ["server", "clients/alice"])
def test_an_expired_root_is_refused_by_name(keys: Federation, tmp_path: Path, party_folder: str) -> None:
    mixed = keys.copy(tmp_path / "fed")
    with made_at(datetime.now(UTC) - 10 * DAY):
        old = CertificateAuthority.new(keys.made.identity, 1, root_of(keys).key)
    (mixed.folder / party_folder / "ca.crt").write_bytes(tls.to_pem(old.certificate))
    with mixed:
        if party_folder == "server":
            command = mixed.run("serve", mixed.folder / party_folder, "--port", "0")
        else:
            command = mixed.client("alice", tmp_path / "alice", "--server", "https://127.0.0.1:1")
        refused(command, f"{party_folder}/ca.crt has expired", "--renew")


def test_an_authority_whose_root_has_expired_adds_nobody_and_renews(keys: Federation, tmp_path: Path) -> None:
    mixed = keys.copy(tmp_path / "fed")
    with made_at(datetime.now(UTC) - 10 * DAY):
        old = CertificateAuthority.new(keys.made.identity, 1, root_of(keys).key)
    (mixed.folder / "authority/ca.crt").write_bytes(tls.to_pem(old.certificate))
    with mixed:
        refused(mixed.run("keygen", mixed.folder, "--client", "carol"), "ca.crt has expired", "--renew")
        renewed = mixed.run("keygen", mixed.folder, "--client", "carol", "--renew")
        assert renewed.wait() == 0, renewed.error
    folders.read_client_folder(mixed.folder / "clients/carol")


# --- a server's, at a client ------------------------------------------------------------------------------------------

AT_CLIENT = {
    "expired": ("has expired", "--renew"),
    "not yet valid": ("is not yet valid", "clock"),
    "self-signed": ("did not sign it", "copy both folders"),
    "another authority's": ("did not sign it", "copy both folders"),
    "an impostor's": ("did not sign it", "copy both folders"),
    "of the other role": ("client bob", "is not a server's certificate"),
    "older generation": ("is of federation", "key generation 1, and this client of federation", "key generation 2"),
}


@contextmanager
def false_server(shown: Credentials, *, takes_all: bool = True, heard: list[bytes] | None = None) -> Iterator[str]:
    """Something that speaks TLS with a certificate, and closes each connection after a request; its URL.

    Nobody may tell it anything, unless what it has heard is asked for.
    """
    context, done = shown.server_context(), threading.Event()
    if takes_all:
        context.verify_mode = ssl.CERT_NONE
    told: list[bytes] = [] if heard is None else heard

    def serve(listener: socket.socket) -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                continue
            connection.settimeout(5)
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    told.append(secured.recv(100))
            except OSError:
                connection.close()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            thread.join()
    assert heard is not None or not any(told), "the client told the false server something"


@pytest.mark.parametrize("bad", BADS)
def test_a_client_refuses_a_servers_bad_certificate_before_it_says_anything(
    keys: Federation, tmp_path: Path, bad: str
) -> None:
    (tmp_path / "false").mkdir()
    issue(keys, tmp_path / "false", "server", bad)
    with false_server(as_it_is(tmp_path / "false", "server")) as url, keys:
        refused(
            keys.client("alice", tmp_path / "alice", "--server", url), url.removeprefix("https://"), *AT_CLIENT[bad]
        )


def test_a_server_under_a_name_that_its_certificate_does_not_bear_is_refused(keys: Federation, tmp_path: Path) -> None:
    elsewhere = keys.copy(tmp_path / "fed")
    authority.change(elsewhere.folder, Change(renew=True, server_names=("fl.example.org",)))
    with elsewhere:
        elsewhere.serve(tmp_path / "server")
        client = elsewhere.client("alice", tmp_path / "alice")
        refused(client, "does not name this address", "--renew --server-name")


# --- a caller's, at the server ----------------------------------------------------------------------------------------

AT_SERVER = {
    "expired": "certificate has expired",
    "not yet valid": "certificate is not yet valid",
    "self-signed": "self-signed certificate",
    "another authority's": "local issuer certificate",
    "an impostor's": "local issuer certificate",
    "of the other role": "purpose",
}


def test_the_server_lets_no_bad_certificate_in_and_its_log_says_why(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server")
        address = ("127.0.0.1", urlsplit(keys.url).port or 0)
        for bad, reason in AT_SERVER.items():
            folder = tmp_path / bad
            folder.mkdir()
            issue(keys, folder, "client", bad)
            context = as_it_is(folder, "client").client_context()
            before = len(server.err)
            with (
                socket.create_connection(address) as raw,
                context.wrap_socket(raw, server_hostname="127.0.0.1") as tried,
            ):
                try:
                    tried.sendall(b"GET /v1/run HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    answer = tried.recv(1)
                except OSError:
                    answer = b""
            assert answer == b"", bad
            deadline = time.monotonic() + 20
            while not any("refused a caller's certificate" in n and reason in n for n in server.err[before:]):
                assert time.monotonic() < deadline, (bad, server.err)
                time.sleep(0.02)
        assert server.child.poll() is None


def test_a_client_that_the_server_refuses_in_tls_ends_with_3_and_a_hint(keys: Federation, tmp_path: Path) -> None:
    """Its folder fits together; only the server's root is another, as after a --force of the authority."""
    true = as_it_is(keys.folder / "server", "server")
    other = CertificateAuthority.new(keys.made.identity, 30).certificate
    with false_server(dataclasses.replace(true, root=other), takes_all=False) as url, keys:
        client = keys.client("alice", tmp_path / "alice", "--server", url)
        refused(client, "refuses the certificate in", ": unknown ca", "is it of the server's federation")


def test_a_server_that_dies_whenever_it_is_asked_is_not_taken_for_one_that_refuses(
    keys: Federation, tmp_path: Path
) -> None:
    """It listens again before the client looks: only an alert of TLS shows a refusal."""
    true = as_it_is(keys.folder / "server", "server")
    heard: list[bytes] = []
    with false_server(true, heard=heard) as url, keys:
        client = keys.client("alice", tmp_path / "alice", "--server", url, "--connect-timeout", "1")
        assert client.wait() == 5, client.error
    assert "did not answer for" in client.error
    assert len([request for request in heard if request]) >= 3


# --- what expires soon ------------------------------------------------------------------------------------------------


def test_what_expires_soon_is_announced_on_both_sides_with_the_date_and_the_mend(
    keys: Federation, tmp_path: Path
) -> None:
    soon = keys.copy(tmp_path / "fed")
    authority.change(soon.folder, Change(renew=True, days=EXPIRY_NOTICE_DAYS - 1))
    date = f"{datetime.now(UTC) + (EXPIRY_NOTICE_DAYS - 1) * DAY:%Y-%m-%d}"
    with soon:
        server = soon.serve(tmp_path / "server", "--rounds", "1")
        clients = [soon.client(n, tmp_path / n) for n in ("alice", "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]
    for command, what in (
        (server, "server/server.crt"),
        (server, "the certificate of client alice"),
        (server, "the certificate of client bob"),
        (clients[0], "clients/alice/client.crt"),
    ):
        said = [line for line in command.err if f"{what} expires on {date}" in line]
        assert len(said) == 1, command.err
        assert "hefl keygen DIR --renew" in said[0]
    assert not any("ca.crt expires" in line for line in server.err)  # the root lives longer


def test_what_expires_later_is_not(keys: Federation, tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate((keys.folder / "server/server.crt").read_bytes())
    assert credentials.expiry_notice("it", certificate) is None
    with keys:
        server = keys.serve(tmp_path / "server")
        assert "expires" not in server.error
