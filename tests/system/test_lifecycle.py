"""The life of a federation after its first day: clients come and go, keys rotate, certificates are renewed."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from federation import Command

from hefl.ckks.context import PublicContext, SecretContext
from hefl.errors import ExistsError, HeflError, KeyFileError, StateError, UsageError
from hefl.files import locked
from hefl.identity import Identity
from hefl.keys import authority, folders, tls
from hefl.keys.authority import Change
from hefl.keys.keyfile import ClientNames
from hefl.keys.passphrase import Passphrase

WORDS = "correct horse"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> authority.Federation:
    return authority.create(tmp_path_factory.mktemp("keys") / "fed", ["alice", "bob"], ["127.0.0.1"], days=100)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sealed") / "fed"
    authority.create(made, ["alice", "bob"], passphrase=Passphrase(lambda _: WORDS))
    return made


@pytest.fixture
def fed(original: authority.Federation, tmp_path: Path) -> Path:
    shutil.copytree(original.folder, tmp_path / "fed")
    return tmp_path / "fed"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which says nothing."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


def whole(fed: Path, passphrase: Passphrase | None = None) -> folders.AuthorityFolder:
    """Read every folder as its party would, and check that all are of one time and of the authority's list."""
    found = folders.read_authority_folder(fed / "authority", passphrase)
    server = folders.read_server_folder(fed / "server", passphrase)
    assert (server.public.identity, server.names) == (found.identity, found.names)
    assert server.public.fingerprints == found.secret.fingerprints
    names = sorted(p.name for p in (fed / "clients").iterdir() if (p / "secret.hefl").exists())
    assert tuple(names) == found.names.clients
    for name in names:
        client = folders.read_client_folder(fed / "clients" / name, passphrase)
        assert (client.name, client.secret, client.url) == (name, found.secret, found.urls[0])
    assert {p.name for p in (fed / "authority").iterdir()} <= {
        "secret.hefl",
        "clients.hefl",
        "address.hefl",
        "ca.crt",
        "ca.key",
        "lock",
    }
    for path in fed.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    return found


# --- what changes and what does not -----------------------------------------------------------------------------------


def test_adding_a_client_touches_its_folder_and_the_lists_alone(fed: Path) -> None:
    before = contents(fed)
    made = authority.change(fed, Change(add=("carol",)))
    after = contents(fed)
    assert made.clients == whole(fed).names.clients == ("alice", "bob", "carol")
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    lists = {"authority/clients.hefl", "server/clients.hefl"}
    assert changed == lists | {f"clients/carol/{p.name}" for p in (fed / "clients/carol").iterdir()}


def test_rotation_gives_all_a_new_key_of_the_same_federation(fed: Path, original: authority.Federation) -> None:
    before, old = contents(fed), whole(fed)
    authority.change(fed, Change(rotate=True))
    new = whole(fed)
    assert new.identity == Identity(original.identity.federation, 2)
    assert new.secret.group_key != old.secret.group_key
    assert new.secret.ckks != old.secret.ckks
    after = contents(fed)
    assert {name for name in after if after[name] == before[name]} == {"authority/ca.key"}
    assert not any(b"generation: 1\n" in data for data in after.values())


def test_revoking_removes_the_client_rotates_and_remembers_the_name(fed: Path) -> None:
    authority.change(fed, Change(revoke=("bob",)))
    found = whole(fed)
    assert (found.names.clients, found.names.revoked, found.identity.generation) == (("alice",), ("bob",), 2)
    assert not (fed / "clients/bob").exists()
    authority.change(fed, Change(rotate=True))
    assert whole(fed).names.revoked == ("bob",)
    authority.change(fed, Change(add=("bob",)))
    assert whole(fed).names == ClientNames(("alice", "bob"), ())


def test_clients_can_come_and_go_at_once(fed: Path) -> None:
    authority.change(fed, Change(add=("carol", "dave"), revoke=("alice", "bob")))
    assert whole(fed).names == ClientNames(("carol", "dave"), ("alice", "bob"))


def test_renewal_gives_all_new_certificates_and_leaves_the_keys(fed: Path) -> None:
    old = whole(fed)
    authority.change(fed, Change(renew=True, days=200, server_names=("fl.example.org:9",), add=("carol",)))
    new = whole(fed)
    assert (new.identity, new.secret) == (old.identity, old.secret)
    assert new.urls == ("https://fl.example.org:9",)
    for folder, stem in (("server", "server"), ("clients/alice", "client"), ("clients/carol", "client")):
        certificate = x509.load_pem_x509_certificate((fed / folder / f"{stem}.crt").read_bytes())
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=199) < left <= timedelta(days=200)  # the root would have ended after 100


def test_a_shorter_renewal_keeps_the_root_and_no_certificate_outlives_it(fed: Path) -> None:
    before = (fed / "authority/ca.crt").read_bytes()
    authority.change(fed, Change(renew=True, days=50))
    assert (fed / "authority/ca.crt").read_bytes() == before
    authority.change(fed, Change(add=("carol",), days=1000))
    root = x509.load_pem_x509_certificate(before)
    added = x509.load_pem_x509_certificate((fed / "clients/carol/client.crt").read_bytes())
    assert added.not_valid_after_utc == root.not_valid_after_utc


@pytest.mark.parametrize("wanted", [Change(add=("carol",)), Change(rotate=True), Change(renew=True)])
def test_the_authoritys_folder_is_enough(fed: Path, wanted: Change) -> None:
    shutil.rmtree(fed / "server")
    shutil.rmtree(fed / "clients")
    authority.change(fed, wanted)
    for name in wanted.add or ("alice", "bob"):
        folders.read_client_folder(fed / "clients" / name)
    if wanted.concerns_all:
        whole(fed)
    else:
        assert [p.name for p in (fed / "server").iterdir()] == ["clients.hefl"]


def test_what_else_is_in_the_folders_stays(fed: Path) -> None:
    mine = ["server/state/run.json", "clients/alice/state/session.json", "clients/bob/state/session.json", "notes.txt"]
    for name in mine:
        (fed / name).parent.mkdir(parents=True, exist_ok=True)
        (fed / name).write_text("mine")
    authority.change(fed, Change(rotate=True, revoke=("bob",)))
    assert all((fed / name).read_text() == "mine" for name in mine)
    assert [p.name for p in (fed / "clients/bob").iterdir()] == ["state"]


# --- what is refused, and changes nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        (Change(), UsageError, "nothing is asked"),
        (Change(days=9), UsageError, "nothing is asked"),
        (Change(add=("alice",)), ExistsError, "keys already, and alice"),
        (Change(add=("alice", "carol")), ExistsError, "alice"),
        (Change(add=("carol", "carol")), UsageError, "named twice"),
        (Change(add=("Carol",)), UsageError, "a client's name"),
        (Change(add=("127",), server_names=("127",), renew=True), UsageError, "a server's name"),
        (Change(revoke=("carol",)), UsageError, "has no client 'carol'"),
        (Change(revoke=("alice", "bob")), UsageError, "at least one client"),
        (Change(revoke=("bob",), add=("bob",)), UsageError, "--revoke bob removes"),
        (Change(server_names=("a",)), UsageError, "in every folder"),
        (Change(server_names=("a",), add=("carol",)), UsageError, "in every folder"),
        (Change(server_names=("a/b",), renew=True), UsageError, "HOST"),
        (Change(renew=True, days=0), UsageError, "--days"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_hint_and_changes_nothing(
    fed: Path, wanted: Change, error: type[HeflError], message: str
) -> None:
    before = contents(fed)
    with pytest.raises(error, match=message):
        authority.change(fed, wanted)
    assert contents(fed) == before


def test_one_keygen_works_at_a_time(fed: Path) -> None:
    before = contents(fed)
    with locked(fed / "authority", "keygen"), pytest.raises(StateError, match="another keygen"):
        authority.change(fed, Change(rotate=True))
    assert contents(fed) == before


@pytest.mark.parametrize("place", ["server", "clients", "clients/carol"])
def test_keys_are_not_written_through_a_link(fed: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    if (fed / place).exists():
        shutil.rmtree(fed / place)
    (fed / place).symlink_to(tmp_path / "elsewhere")
    before = contents(fed / "authority")
    with pytest.raises(StateError, match="is a link"):
        authority.change(fed, Change(add=("carol",)))
    assert contents(fed / "authority") == before
    assert not list((tmp_path / "elsewhere").iterdir())


# --- whole or not at all ----------------------------------------------------------------------------------------------


def die_at(step: int, work: Callable[[], object]) -> bool:
    """Do the work in a process that dies, without a word, at its ``step``-th change of the disk; whether it did."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        left = step

        def mortal(call: Callable[..., object]) -> Callable[..., object]:
            def counted(*arguments: object, **named: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return call(*arguments, **named)

            return counted

        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            setattr(os, name, mortal(getattr(os, name)))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize(
    "wanted",
    [Change(add=("carol",)), Change(revoke=("bob",), add=("carol",))],
    ids=["add", "revoke"],
)
def test_a_keygen_that_dies_leaves_the_old_keys_or_the_new_ones_after_the_next(
    original: authority.Federation,
    secret: SecretContext,
    public: PublicContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: Change,
) -> None:
    def ready(identity: Identity) -> SecretContext:
        return SecretContext(identity, secret.ckks, secret.rings, secret.group_key)

    def stripped(self: SecretContext) -> PublicContext:
        return PublicContext(self.identity, public.ckks, self.rings, self.fingerprints)

    # SEAL keeps threads, which a forked process does not have; it writes no file.
    monkeypatch.setattr(authority, "generate_secret", ready)
    monkeypatch.setattr(SecretContext, "public", stripped)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # counted, and slow: no power fails here
    before, seen, step = contents(original.folder), set(), 0
    old, fed = whole(original.folder), tmp_path / "fed"
    while True:
        shutil.copytree(original.folder, fed)
        died = die_at(step, lambda: authority.change(fed, wanted))
        with pytest.raises(ExistsError):
            authority.change(fed, Change(add=("alice",)))  # the next command, which changes nothing itself
        now = whole(fed)
        is_new = contents(fed) != before
        if is_new:
            clients = sorted({*old.names.clients, *wanted.add} - set(wanted.revoke))
            assert (list(now.names.clients), now.names.revoked) == (clients, wanted.revoke)
            assert now.identity.generation == (2 if wanted.revoke else 1)
        assert is_new or died
        seen.add(is_new)
        shutil.rmtree(fed)
        if not died:
            break
        step += 3 if wanted.revoke else 1
    assert step > 20
    assert seen == {False, True}


def test_a_full_disk_changes_nothing(fed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = contents(fed)
    monkeypatch.setattr(tls, "write_private", full)
    with pytest.raises(StateError, match="no space left"):
        authority.change(fed, Change(renew=True))
    assert contents(fed) == before


# --- passphrases ------------------------------------------------------------------------------------------------------


def test_a_sealed_federation_has_no_secret_in_the_clear_and_stays_sealed(sealed: Path, tmp_path: Path) -> None:
    fed, words = tmp_path / "fed", Passphrase(lambda _: WORDS)
    shutil.copytree(sealed, fed)
    for wanted in (Change(), Change(add=("carol",)), Change(rotate=True)):
        if wanted != Change():
            authority.change(fed, wanted, words)
        whole(fed, words)
        for path in fed.rglob("*"):
            if path.name == "secret.hefl" or path.suffix == ".key":
                assert path.read_bytes().startswith(b"hefl/v1 sealed\n")
            if path.is_file():
                assert b"group-key" not in path.read_bytes()
                assert b"BEGIN PRIVATE" not in path.read_bytes()
    with pytest.raises(KeyFileError, match="does not open"):
        authority.change(fed, Change(rotate=True), Passphrase(lambda _: "another"))


def test_a_rotation_can_give_a_federation_its_passphrase_and_nothing_else_can(fed: Path) -> None:
    words = Passphrase(lambda _: WORDS)
    for wanted in (Change(add=("carol",)), Change(renew=True)):
        with pytest.raises(UsageError, match="have no passphrase"):
            authority.change(fed, wanted, words, seals=True)
    authority.change(fed, Change(rotate=True), words, seals=True)
    assert whole(fed, words).is_sealed


def test_no_private_key_reaches_the_disk_in_the_clear_on_its_way_into_tls(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    load = ssl.SSLContext.load_cert_chain

    def spied(self: ssl.SSLContext, certfile: Any, *arguments: Any, **named: Any) -> None:
        assert Path(certfile).stat().st_mode & 0o777 == 0o600
        written.append(Path(certfile).read_bytes())
        load(self, certfile, *arguments, **named)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spied)
    folder = folders.read_server_folder(sealed / "server", Passphrase(lambda _: WORDS))
    folder.credentials.server_context()
    assert len(written) == 1
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in written[0]
    assert b"BEGIN PRIVATE KEY" not in written[0]
    assert not list(tmp_path.iterdir())


def on_terminal(*arguments: str | Path, answers: list[str]) -> tuple[int, str]:
    """Run a command on a terminal of its own, answer its questions; its exit code, and all that the terminal showed."""
    ours, its = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "hefl.cli", *map(str, arguments)],
        stdin=its,
        stdout=its,
        stderr=its,
        preexec_fn=lambda: os.login_tty(its),
    )
    os.close(its)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
        if answers and shown.count(b": ") and shown.endswith((b"Passphrase: ", b"confirmation: ")):
            time.sleep(0.1)  # getpass throws away what was typed before it asked
            os.write(ours, answers.pop(0).encode() + b"\n")
    os.close(ours)
    return child.wait(60), shown.decode()


def test_a_person_is_asked_twice_for_a_new_passphrase_and_once_for_an_old_one_and_sees_neither(tmp_path: Path) -> None:
    fed = tmp_path / "fed"
    flags = ("--client", "alice", "--client", "bob", "--passphrase")
    code, shown = on_terminal("keygen", fed, *flags, answers=[WORDS, "typo", WORDS, WORDS])
    assert code == 0, shown
    assert (shown.count("Passphrase: "), WORDS in shown) == (2, False)
    code, shown = on_terminal("keygen", fed, "--client", "carol", answers=[WORDS])
    assert code == 0, shown
    assert (shown.count("Passphrase: "), shown.count("onfirm"), WORDS in shown) == (1, 0, False)
    whole(fed, Passphrase(lambda _: WORDS))
    code, shown = on_terminal("keygen", fed, "--renew", answers=["wrong"])
    assert code == 3
    assert "the passphrase does not open" in shown


@pytest.mark.slow
def test_sealed_keys_train_with_a_passphrase_file_and_are_refused_without(sealed: Path, tmp_path: Path) -> None:
    fed, words, wrong = tmp_path / "fed", tmp_path / "words", tmp_path / "wrong"
    shutil.copytree(sealed, fed)
    for file, text in ((words, WORDS), (wrong, "wrong")):
        file.touch(0o600)
        file.write_text(text + "\n")
    commands: list[Command] = []
    arguments: tuple[str | Path, ...]
    more: tuple[str | Path, ...]
    try:
        for arguments in (("serve", fed / "server"), ("client", fed / "clients/alice", "--trainer", "trainers:Drift")):
            for more, text in (((), "no terminal"), (("--passphrase-file", wrong), "the passphrase does not open")):
                refused = Command(*arguments, *more)
                commands.append(refused)
                assert refused.wait() == 3
                assert text in refused.error
                assert "hint: " in refused.error
        opened = ("--passphrase-file", words)
        server = Command("serve", fed / "server", "--port", "0", "--rounds", "1", "--json", *opened)
        commands.append(server)
        server.until("listening")
        url = server.events[0]["url"]
        clients = [
            Command("client", fed / "clients" / n, "--trainer", "trainers:Drift", "--server", url, *opened)
            for n in ("alice", "bob")
        ]
        commands += clients
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0], server.error
    finally:
        for command in commands:
            command.stop()


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_changed_and_what_has_to_travel_again(fed: Path) -> None:
    def keygen(*flags: str) -> Command:
        command = Command("keygen", fed, *flags)
        assert command.wait() == 0, command.error
        return command

    added = "\n".join(keygen("--client", "carol").out)
    assert "server/clients.hefl" in added
    assert "clients/carol/" in added
    assert "alice" not in added
    event = json.loads(keygen("--revoke", "bob", "--json").out[0])
    assert (event["event"], event["generation"], event["revoked"]) == ("rotated", 2, ["bob"])
    assert event["issued"] == event["clients"] == ["alice", "carol"]
    renewed = "\n".join(keygen("--renew").out)
    assert all(f"{fed}/{place}/" in renewed for place in ("server", "clients/alice", "clients/carol"))


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--rotate", "--force", "--client", "alice"], 2, "a federation that exists"),
        (["--passphrase", "--passphrase-file", "f", "--rotate"], 2, "name one of them"),
        (["--rotate", "--passphrase"], 2, "there is none"),
        (["--rotate", "--passphrase-file", "nowhere"], 3, "nowhere is missing"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_with_a_hint(
    fed: Path, flags: list[str], code: int, text: str
) -> None:
    before = contents(fed)
    command = Command("keygen", fed, *flags)
    assert command.wait() == code
    assert text in command.error
    assert "hint: " in command.error
    assert contents(fed) == before


def test_a_folder_without_a_federation_cannot_be_rotated(tmp_path: Path) -> None:
    command = Command("keygen", tmp_path / "fed", "--rotate")
    assert command.wait() == 2
    assert "--client NAME" in command.error
