from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from hefl.errors import CertificateError, ExistsError, HeflError, MismatchError, UsageError
from hefl.keys import authority, credentials, folders, tls

EXPECTED = {
    "authority": ["address.hefl", "ca.crt", "ca.key", "clients.hefl", "secret.hefl"],
    "server": ["ca.crt", "clients.hefl", "public.hefl", "server.crt", "server.key"],
    "clients/alice": ["address.hefl", "ca.crt", "client.crt", "client.key", "secret.hefl"],
    "clients/bob": ["address.hefl", "ca.crt", "client.crt", "client.key", "secret.hefl"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> authority.Federation:
    folder = tmp_path_factory.mktemp("keys") / "fed"
    return authority.create(
        folder, ["bob", "alice"], ["fl.example.org", "192.0.2.7:9000", "[2001:db8::7]:9001"], days=3
    )


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_each_party_gets_a_folder_with_all_that_it_needs_and_nothing_else(made: authority.Federation) -> None:
    files = [p for p in made.folder.rglob("*") if p.is_file()]
    found = {str(p.relative_to(made.folder)) for p in files}
    assert found == {f"{folder}/{name}" for folder, names in EXPECTED.items() for name in names}


def test_everything_is_its_owners_alone(made: authority.Federation) -> None:
    for path in (made.folder, *made.folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_no_secret_byte_of_the_clients_or_the_authority_is_in_the_servers_folder(made: authority.Federation) -> None:
    everything = b"".join(p.read_bytes() for p in (made.folder / "server").iterdir())
    secret = folders.read_client_folder(made.folder / "clients/alice").secret
    assert secret.group_key not in everything
    for folder, name in (("authority", "ca.key"), ("clients/alice", "client.key"), ("clients/bob", "client.key")):
        body = (made.folder / folder / name).read_bytes().splitlines()[1]
        assert body not in everything


def test_every_client_holds_the_same_key_and_its_own_name(made: authority.Federation) -> None:
    alice, bob = (folders.read_client_folder(made.folder / "clients" / n) for n in ("alice", "bob"))
    assert alice.secret == bob.secret
    assert (alice.name, bob.name) == ("alice", "bob")
    assert alice.url == "https://fl.example.org:8443"
    assert folders.read_server_folder(made.folder / "server").clients == ("alice", "bob")


def test_the_servers_certificate_names_its_hosts_and_may_only_serve(made: authority.Federation) -> None:
    found = certificate(made.folder / "server/server.crt")
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "2001:db8::7"]
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_clients_certificate_says_its_name_federation_and_generation_and_may_only_call(
    made: authority.Federation,
) -> None:
    found = certificate(made.folder / "clients/alice/client.crt")
    assert tls.holder_of(found, "it") == tls.Holder(made.identity, "alice", is_client=True)
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_certificates_last_as_long_as_was_said(made: authority.Federation) -> None:
    left = certificate(made.folder / "clients/bob/client.crt").not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=2, hours=23) < left <= timedelta(days=3)


def test_tls_speaks_1_3_only_and_asks_for_the_peers_certificate(made: authority.Federation) -> None:
    server = folders.read_server_folder(made.folder / "server").credentials.server_context()
    client = folders.read_client_folder(made.folder / "clients/alice").credentials.client_context()
    for context in (server, client):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
    assert client.check_hostname


def test_an_expired_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = authority.create(tmp_path / "fed", ["alice", "bob"], days=1)

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=2)

    monkeypatch.setattr(credentials, "datetime", Later)
    with pytest.raises(CertificateError, match="has expired"):
        folders.read_client_folder(made.folder / "clients/alice")


def test_another_federations_root_is_refused(made: authority.Federation, tmp_path: Path) -> None:
    other = authority.create(tmp_path / "fed", ["alice", "bob"])
    path = other.folder / "clients/alice/ca.crt"
    path.unlink()
    path.write_bytes((made.folder / "authority/ca.crt").read_bytes())
    path.chmod(0o600)
    with pytest.raises(MismatchError, match="did not sign it") as caught:
        folders.read_client_folder(path.parent)
    assert str(made.identity) in caught.value.message
    assert str(other.identity) in caught.value.message


@pytest.mark.parametrize(
    ("clients", "servers", "days"),
    [
        ([], ["a"], 1),
        (["alice", "alice"], ["a"], 1),
        (["Alice"], ["a"], 1),
        (["-alice"], ["a"], 1),
        (["alice\n"], ["a"], 1),
        (["a" * 33], ["a"], 1),
        (["../alice"], ["a"], 1),
        (["localhost"], ["localhost"], 1),
        (["server"], ["a"], 1),
        (["alice"], ["a/b"], 1),
        (["alice"], ["a:99999"], 1),
        (["alice"], ["a:x"], 1),
        (["alice"], ["2001:db8::7"], 1),
        (["alice"], ["user@a"], 1),
        (["alice"], ["A_B"], 1),
        (["alice"], [""], 1),
        (["alice"], ["a"], 0),
    ],
)
def test_names_that_are_none_are_refused_and_nothing_is_made(
    tmp_path: Path, clients: list[str], servers: list[str], days: int
) -> None:
    with pytest.raises(UsageError):
        authority.create(tmp_path / "fed", clients, servers, days=days)
    assert not list(tmp_path.iterdir())


def test_what_is_in_the_way_stays(made: authority.Federation, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in made.folder.rglob("*") if p.is_file()}
    with pytest.raises(ExistsError, match="keys already"):
        authority.create(made.folder, ["alice"])
    assert {p: p.read_bytes() for p in made.folder.rglob("*") if p.is_file()} == before
    (tmp_path / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(ExistsError, match="no federation"):
            authority.create(tmp_path, ["alice"], force=force)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_force_makes_a_new_federation_in_the_old_ones_place(tmp_path: Path) -> None:
    old = authority.create(tmp_path / "fed", ["alice", "bob"])
    new = authority.create(tmp_path / "fed", ["alice", "carol"], force=True)
    assert new.identity.federation != old.identity.federation
    assert sorted(p.name for p in (tmp_path / "fed/clients").iterdir()) == ["alice", "carol"]
    assert [p.name for p in tmp_path.iterdir()] == ["fed"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tls, "write_private", full)
    with pytest.raises((OSError, HeflError)):
        authority.create(tmp_path / "fed", ["alice", "bob"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", ["before the new keys stand", "after the old ones were set aside"])
def test_a_keygen_that_was_killed_leaves_no_key_behind_and_loses_no_federation(tmp_path: Path, at: str) -> None:
    before = authority.create(tmp_path / "fed", ("alice", "bob"))
    (tmp_path / ".fed.new").mkdir()
    (tmp_path / ".fed.new/secret.hefl").write_text("half written")
    if at.startswith("after"):
        (tmp_path / "fed").rename(tmp_path / ".fed.old")
    with pytest.raises(ExistsError, match="holds a federation's keys already"):
        authority.create(tmp_path / "fed", ("carol", "dave"))
    assert [p.name for p in tmp_path.iterdir()] == ["fed"]
    assert folders.read_server_folder(tmp_path / "fed/server").public.identity == before.identity
