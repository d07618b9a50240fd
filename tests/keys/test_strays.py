"""Secrets that lie about in a server's folder are found by what they are, whatever they are called."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from federation import Federation

from hefl.errors import KeyFileError, SecretAtServerError
from hefl.keys import authority, folders, strays
from hefl.keys.passphrase import Passphrase

ALICE = "clients/alice"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "fed"
    authority.create(folder, ["alice", "bob"])
    return folder


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed") / "fed"
    authority.create(folder, ["alice"], passphrase=Passphrase(lambda _: "words"))
    return folder


@pytest.fixture
def fed(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "fed")


Lay = Callable[[Path, Path], object]
"""Lays something into the server's folder of a federation; the second one's secrets are sealed."""


def put(name: str, *sources: str) -> Lay:
    """What files of the federation hold, or (sealed:) of the sealed one, one after the other."""

    def lay(fed: Path, sealed: Path) -> None:
        target = fed / "server" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        roots = ((sealed if source.startswith("sealed:") else fed, source) for source in sources)
        target.write_bytes(b"".join((root / source.removeprefix("sealed:")).read_bytes() for root, source in roots))

    return lay


def write(name: str, change: Callable[[bytes], bytes]) -> Lay:
    """Alice's secret keys, changed."""
    return lambda fed, sealed: (fed / "server" / name).write_bytes(change((fed / ALICE / "secret.hefl").read_bytes()))


def linked(name: str, target: str) -> Lay:
    return lambda fed, sealed: (fed / "server" / name).symlink_to(fed / target)


def beside_its_certificate(fed: Path, sealed: Path) -> None:
    for end in ("crt", "key"):
        shutil.copy(fed / ALICE / f"client.{end}", fed / "server" / f"a.{end}")


KEYS_OF_ALICE = "the secret keys of client alice, of federation "
SECRET = f"{ALICE}/secret.hefl"
STRAYS: dict[str, tuple[Lay, str, str]] = {
    "under another name": (put("old.hefl", SECRET), "old.hefl", KEYS_OF_ALICE),
    "a backup": (put("secret.hefl.bak", SECRET), "secret.hefl.bak", KEYS_OF_ALICE),
    "in a subfolder": (put("a/b/x", SECRET), "a/b/x", KEYS_OF_ALICE),
    "in the run's state": (put("state/updates/1", SECRET), "state/updates/1", KEYS_OF_ALICE),
    "in an old run's state": (put("old-state/uploads/alice", SECRET), "old-state/uploads/alice", KEYS_OF_ALICE),
    "among uploads": (put("state/uploads/secret.hefl", SECRET), "state/uploads/secret.hefl", KEYS_OF_ALICE),
    "below other text": (write("x", lambda d: b"Dear Bob,\n\n" + d), "x", KEYS_OF_ALICE),
    "the authority's": (put("x", "authority/secret.hefl"), "x", "the secret keys of the authority, of federation "),
    "in the public one's place": (put("public.hefl", SECRET), "public.hefl", KEYS_OF_ALICE),
    "in the TLS key's place": (put("server.key", SECRET), "server.key", KEYS_OF_ALICE),
    "with DOS line ends": (write("x", lambda d: d.replace(b"\n", b"\r\n")), "x", KEYS_OF_ALICE),
    "behind a byte order mark": (write("x", lambda d: b"\xef\xbb\xbf" + d), "x", KEYS_OF_ALICE),
    "of another version": (write("x", lambda d: b"hefl/v9" + d[7:]), "x", KEYS_OF_ALICE),
    "cut short": (write("x", lambda d: d[:14]), "x", "secret keys, and nothing says whose"),
    "by its name": (write("secret.hefl", lambda d: d[100:]), "secret.hefl", "called like one"),
    "sealed": (put("x", f"sealed:{SECRET}"), "x", KEYS_OF_ALICE),
    "sealed, and it says so": (put("x", f"sealed:{SECRET}"), "x", "sealed with a passphrase"),
    "a sealed TLS key": (put("x", f"sealed:{ALICE}/client.key"), "x", "the private TLS key of client alice, of"),
    "another server's": (put("x", "sealed:server/server.key"), "x", "the private TLS key of the server, of federation"),
    "a TLS key": (put("x", f"{ALICE}/client.key"), "x", "a private key, and nothing says whose"),
    "a TLS key beside its certificate": (beside_its_certificate, "a.key", "the private TLS key of client alice, of"),
    "a TLS key below a certificate": (put("x", f"{ALICE}/client.crt", f"{ALICE}/client.key"), "x", "a private key"),
    "the root's": (put("x", "authority/ca.key"), "x", "a private key"),
    "of another kind": (write("id", lambda d: b"-----BEGIN OPENSSH PRIVATE" + b" KEY-----\n"), "id", "a private key"),
    "behind a link": (linked("x", SECRET), "x", KEYS_OF_ALICE),
    "behind a link to a folder": (linked("x", ALICE), "x/secret.hefl", KEYS_OF_ALICE),
    "behind a link to the folder above": (linked("x", "."), "secret.hefl", "the secret keys of"),
}


@pytest.mark.parametrize("what", STRAYS)
def test_a_secret_in_a_servers_folder_is_found_by_what_it_is(fed: Path, sealed: Path, what: str) -> None:
    lay, name, kind = STRAYS[what]
    lay(fed, sealed)
    with pytest.raises(SecretAtServerError) as caught:
        folders.read_server_folder(fed / "server", uploads=fed / "server/state/uploads")
    assert f"{name} is a secret file, and a server may not hold one" in caught.value.message
    assert kind in caught.value.message
    assert "move it off this machine" in (caught.value.hint or "")


def test_all_are_told_of_and_the_worst_first(fed: Path) -> None:
    shutil.copytree(fed / ALICE, fed / "server/alice")
    shutil.copytree(fed / "authority", fed / "server/authority")
    with pytest.raises(SecretAtServerError) as caught:
        folders.read_server_folder(fed / "server")
    assert "server/alice/secret.hefl is a secret file" in caught.value.message
    assert "it is not the only one: 4 are here" in caught.value.message
    assert f"hefl inspect {fed}/server" in (caught.value.hint or "")


def test_what_a_server_has_is_no_stray(fed: Path, sealed: Path) -> None:
    """Its own key's copies, lists, certificates, a run's files, links to nothing, and what is no plain file."""
    server = fed / "server"
    (server / "state").mkdir()
    (server / "state/0.agg").write_bytes(os.urandom(1 << 16))
    shutil.copy(server / "server.key", server / "server.key.bak")
    shutil.copy(fed / ALICE / "address.hefl", server / "address.hefl")
    shutil.copy(fed / ALICE / "client.crt", server / "client.crt")
    (server / "nothing").symlink_to(fed / "nowhere")
    (server / "round").symlink_to(server / "round")
    (server / "here").symlink_to(server)
    os.mkfifo(server / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(server / "socket"))
        assert folders.read_server_folder(server).clients == ("alice", "bob")
    own = Passphrase(lambda _: "words")
    shutil.copytree(sealed / "server", fed / "other")
    shutil.copy(fed / "other/server.key", fed / "other/key.bak")
    assert folders.read_server_folder(fed / "other", own).clients == ("alice",)


def test_a_file_that_cannot_be_looked_at_is_named_and_not_passed_over(fed: Path) -> None:
    """A process's own memory can be opened by its user, and its first bytes cannot be read: not even by root."""
    (fed / "server/notes").symlink_to("/proc/self/mem")
    with pytest.raises(KeyFileError, match=r"server/notes cannot be read, .*: input/output error") as caught:
        folders.read_server_folder(fed / "server")
    assert not isinstance(caught.value, SecretAtServerError)
    assert "move it away" in (caught.value.hint or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_entered_is_named(fed: Path) -> None:
    (fed / "server/closed").mkdir(mode=0)
    with pytest.raises(KeyFileError, match=r"server/closed cannot be read, .*: permission denied"):
        folders.read_server_folder(fed / "server")
    (fed / "server/closed").chmod(0o700)


def test_more_files_than_can_be_looked_at_are_refused(fed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strays, "MAX_FILES", 5)
    assert folders.read_server_folder(fed / "server").clients == ("alice", "bob")
    (fed / "server/one-more").touch()
    with pytest.raises(KeyFileError, match="holds more than 5 files") as caught:
        folders.read_server_folder(fed / "server")
    assert "--state" in (caught.value.hint or "")


def test_of_a_large_file_only_the_beginning_is_read(fed: Path) -> None:
    """A file of a terabyte that has no blocks on the disk."""
    (fed / "server/state").mkdir()
    with (fed / "server/state/large").open("wb") as file:
        file.truncate(1 << 40)
    assert folders.read_server_folder(fed / "server").clients == ("alice", "bob")


def test_the_command_refuses_before_it_asks_for_a_passphrase_and_leaves_nothing(made: Path, tmp_path: Path) -> None:
    keys = Federation(tmp_path / "fed", "alice", "bob")
    shutil.copy(keys.folder / ALICE / "secret.hefl", keys.folder / "server/old.hefl")
    with keys:
        server = keys.start_server(tmp_path / "state", port=0)
        assert server.wait() == 3
    assert server.err == [
        f"hefl: {keys.folder}/server/old.hefl is a secret file, and a server may not hold one: it holds the secret "
        f"keys of client alice, of {keys.made.identity}",
        "hefl: hint: move it off this machine; if others may have read it here, 'hefl keygen DIR --rotate' at the "
        "authority makes new keys",
    ]
    assert not (tmp_path / "state").exists()


def test_no_client_keeps_a_server_from_starting_by_what_it_has_uploaded(tmp_path: Path) -> None:
    """An upload that broke off is what its client made it, and goes; an update that came is binary."""
    keys = Federation(tmp_path / "fed", "alice", "bob")
    state = keys.folder / "server/state"
    with keys:
        server = keys.serve(state)
        server.stop()
        shutil.copy(keys.folder / ALICE / "secret.hefl", state / "uploads/alice")
        keys.serve(state)
    assert not (state / "uploads/alice").exists()
