"""Uploads as files: what a second connection, a full disk or the end of an attempt leaves of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hefl.errors import ConflictError, StaleError, UnreachableError
from hefl.server.spool import Spool

DIGEST, OTHER = "d1" * 32, "d2" * 32


def arrived(spool: Spool, data: bytes, *, digest: str = DIGEST, offset: int = 0) -> None:
    with spool.upload("alice", digest).receive(offset) as writing:
        writing.write(data)
        writing.sync()


def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


def test_an_upload_goes_on_where_it_stopped_or_before(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    arrived(spool, b"0123456")
    assert spool.held_bytes("alice", DIGEST) == 7
    arrived(spool, b"abc", offset=7)
    assert files(tmp_path) == [b"0123456abc"]
    arrived(spool, b"XY", offset=4)
    assert (files(tmp_path), spool.held_bytes("alice", DIGEST)) == ([b"0123XY"], 6)


def test_an_upload_with_a_gap_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    arrived(spool, b"0123")
    with pytest.raises(ConflictError, match="from byte 5 on, and 4 bytes are here"):
        spool.upload("alice", DIGEST).receive(5)
    assert files(tmp_path) == [b"0123"]


def test_a_client_has_one_upload_and_the_newer_stays(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    arrived(spool, b"0123")
    arrived(spool, b"ab", digest=OTHER)
    assert files(tmp_path) == [b"ab"]
    assert (spool.held_bytes("alice", DIGEST), spool.held_bytes("alice", OTHER)) == (0, 2)


def test_what_an_older_connection_still_brings_is_void(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with spool.upload("alice", DIGEST).receive(0) as older:
        older.write(b"01")
        with spool.upload("alice", DIGEST).receive(2) as newer:
            newer.write(b"23")
            with pytest.raises(StaleError, match="another connection"):
                older.write(b"xxxx")
            newer.write(b"45")
    assert files(tmp_path) == [b"012345"]


def test_nobody_changes_an_upload_while_it_is_checked_and_committed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    upload = spool.upload("alice", DIGEST)
    with upload.receive(0) as writing:
        writing.write(b"0123")
        with upload.whole():
            with pytest.raises(UnreachableError, match="being checked"):
                upload.receive(0)
            with pytest.raises(UnreachableError, match="being checked"):
                spool.upload("alice", "ef" * 32)
            with pytest.raises(StaleError):
                writing.write(b"4")
            with pytest.raises(UnreachableError, match="being checked"), upload.whole():
                pass
            with spool.keeping("alice"):
                assert spool.update(DIGEST).read_bytes() == b"0123"
    with pytest.raises(UnreachableError, match="committed meanwhile"):  # of who found it before that
        upload.receive(0)
    assert spool.held_bytes("alice", DIGEST) == 0
    assert files(tmp_path) == [b"0123"]


def test_an_update_that_could_not_be_committed_is_an_upload_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    arrived(spool, b"0123")
    with pytest.raises(OSError, match="full"), spool.keeping("alice"):
        raise OSError("full")
    assert not spool.update(DIGEST).exists()
    assert spool.held_bytes("alice", DIGEST) == 4
    arrived(spool, b"", offset=4)
    assert files(tmp_path) == [b"0123"]


def test_nothing_is_left_when_an_attempt_ends(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    arrived(spool, b"0123")
    with spool.keeping("alice"):
        pass
    with spool.upload("alice", OTHER).receive(0) as writing:
        writing.write(b"01")
        spool.end_attempt()
        with pytest.raises(StaleError, match="its attempt is over"):
            writing.write(b"23")
    assert files(tmp_path) == []


def test_a_start_removes_what_the_journal_does_not_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    arrived(spool, b"0123")
    for folder in ("updates", "aggregates"):
        (tmp_path / folder / OTHER).write_bytes(b"an orphan")
    Spool(tmp_path).check([], [], [])
    assert files(tmp_path) == []
