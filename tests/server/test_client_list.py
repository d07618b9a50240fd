"""A running server follows its list of clients, without a restart."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from builders import rewritten
from federation import Federation

from hefl.keys import authority, folders
from hefl.keys.authority import Change
from hefl.server.client_list import Roll


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


@pytest.fixture
def keys(original: Federation, tmp_path: Path) -> Federation:
    return original.copy(tmp_path / "fed")


@pytest.fixture
def roll(keys: Federation) -> Roll:
    return Roll(folders.read_server_folder(keys.folder / "server"))


def test_a_new_list_is_read_when_it_is_there(keys: Federation, roll: Roll, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert roll.refresh().clients == ("alice", "bob")
    assert not caplog.messages
    authority.change(keys.folder, Change(add=("carol",)))
    assert roll.refresh().clients == ("alice", "bob", "carol")
    assert "carol may join now" in caplog.text
    rewritten(keys.folder / "server/clients.hefl", "clients: .*", "clients: alice carol")
    assert roll.refresh().clients == ("alice", "carol")
    assert "bob may not join any more" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "truncated", "byte", "link", "mode", "generation", "party"])
def test_a_list_that_cannot_be_used_is_logged_once_and_the_old_one_stays(
    keys: Federation, roll: Roll, caplog: pytest.LogCaptureFixture, damage: str, tmp_path: Path
) -> None:
    path = keys.folder / "server/clients.hefl"
    roll.refresh()
    match damage:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:-10])
        case "byte":
            path.write_bytes(path.read_bytes().replace(b"alice", b"alicf"))
        case "link":
            path.rename(tmp_path / "clients.hefl")
            path.symlink_to(tmp_path / "clients.hefl")
        case "mode":
            path.chmod(0o644)
        case "generation":
            authority.change(keys.folder, Change(rotate=True, add=("carol",)))
        case "party":
            shutil.copy(keys.folder / "authority/clients.hefl", path)
    for _ in range(3):
        assert roll.refresh().clients == ("alice", "bob")
    assert [r.levelname for r in caplog.records] == ["ERROR", "ERROR"]
    assert "clients.hefl" in caplog.text
    assert "stays as it was" in caplog.text
    assert "hint: " in caplog.text
    if damage == "generation":
        assert "restart the server" in caplog.text


def test_a_client_that_is_added_joins_and_one_that_is_taken_out_is_refused_while_the_server_runs(
    keys: Federation, tmp_path: Path
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "30", "--join-wait", "0")
        slow = {"trainer": "trainers:Slow", "SLEEP": "0.3"}
        alice, bob = (keys.client(n, tmp_path / n, **slow) for n in ("alice", "bob"))
        server.until('"event": "round"')
        authority.change(keys.folder, Change(add=("carol",)))
        server.until("carol may join now")
        carol = keys.client("carol", tmp_path / "carol", **slow)
        server.until("carol joined")
        rewritten(keys.folder / "server/clients.hefl", "clients: .*", "clients: alice carol")
        assert bob.wait() == 3
        assert "'bob' is not on the server's list" in bob.error
        assert "server/clients.hefl" in bob.error
        server.until("bob left")
        server.until('"in": ["alice", "carol"]')
        assert all(c.child.poll() is None for c in (server, alice, carol))


def test_a_client_that_was_taken_out_while_the_server_was_down_is_not_waited_for(
    keys: Federation, tmp_path: Path
) -> None:
    authority.change(keys.folder, Change(add=("carol",)))
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2")
        slow = {"trainer": "trainers:Slow", "SLEEP": "2"}
        clients = [keys.client(n, tmp_path / n, **slow) for n in ("alice", "bob", "carol")]
        server.until("round 1, attempt 1")
        server.child.kill()
        server.wait()
        rewritten(keys.folder / "server/clients.hefl", "clients: .*", "clients: alice carol")
        again = keys.serve(tmp_path / "server", "--rounds", "2", port=urlsplit(keys.url).port or 0)
        again.until("bob left: it is not on the server's list any more")
        assert [c.wait() for c in (*clients, again)] == [0, 3, 0, 0], again.error


def test_a_revoked_client_hears_that_it_was_and_the_others_go_on_with_new_keys(
    keys: Federation, tmp_path: Path
) -> None:
    old = keys.copy(tmp_path / "old")
    authority.change(keys.folder, Change(revoke=("bob",), add=("carol",)))
    with keys, old:
        server = keys.serve(tmp_path / "server", "--rounds", "1")
        old.url = keys.url
        bob = old.client("bob", tmp_path / "bob")
        assert bob.wait() == 3
        assert "client bob was revoked" in bob.error
        assert "hint: " in bob.error
        alice = old.client("alice", tmp_path / "alice")
        assert alice.wait() == 3
        assert "key generation 1" in alice.error
        assert "key generation 2" in alice.error
        others = [keys.client(n, tmp_path / f"new-{n}") for n in ("alice", "carol")]
        assert [c.wait() for c in (*others, server)] == [0, 0, 0], server.error


def test_over_plain_http_a_revoked_name_is_refused_too(keys: Federation, tmp_path: Path) -> None:
    old = keys.copy(tmp_path / "old")
    authority.change(keys.folder, Change(revoke=("bob",), add=("carol",)))
    with keys, old:
        keys.serve(tmp_path / "server", "--insecure-http")
        old.url = keys.url
        bob = old.client("bob", tmp_path / "bob", "--insecure-http")
        assert bob.wait() == 3
        assert "client bob was revoked" in bob.error
