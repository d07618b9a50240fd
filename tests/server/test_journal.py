"""The journal against the round table itself, and against damage."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import JOIN, record

from hefl.engines.engine import Terms
from hefl.errors import (
    ConflictError,
    DiskFullError,
    EngineError,
    MismatchError,
    ParametersError,
    StaleError,
    StateError,
)
from hefl.identity import Identity
from hefl.protocol.records import genesis
from hefl.rounds.events import (
    KINDS,
    Abandoned,
    AllowedChanged,
    Announced,
    Closed,
    Committed,
    Confirmed,
    Declined,
    Ended,
    Event,
    Extended,
    Finished,
    Joined,
    Left,
    Published,
    Reopened,
    Stopped,
    Useless,
)
from hefl.rounds.kept_settings import KeptSettings
from hefl.rounds.run import Phase, Run, advance
from hefl.rounds.schedule import Announce as ToAnnounce
from hefl.rounds.schedule import Clock, announcement_of, decide
from hefl.server import journal as module
from hefl.server.journal import FILE, Journal, read_moment, read_settings

IDENTITY, TERMS = Identity("ab" * 16, 1), Terms("packed", 24)
NAMES = ("alice", "bob")
CLOCK = Clock(silent=frozenset(), phase_s=0, enough_s=0, join_wait_s=0, round_timeout_s=1)


def opened(folder: Path, **changes: Any) -> Journal:
    """The journal in a folder; the caller closes it."""
    fields: dict[str, Any] = {
        "identity": IDENTITY,
        "terms": TERMS,
        "rounds": 1,
        "min_clients": 2,
        "known": NAMES,
        **changes,
    }
    return Journal(folder, fields.pop("identity"), fields.pop("terms"), **fields)


def next_event(run: Run) -> Event:
    """What comes next in a run that nothing disturbs."""
    absent = [name for name in NAMES if name not in run.sessions]
    if absent:
        return Joined(absent[0], 10, "0a" * 16)
    if run.announcement is None:
        decision = decide(run, CLOCK)
        if not isinstance(decision, ToAnnounce):
            return Finished()
        return Announced(announcement_of(run, decision, values=3, terms=TERMS, deadline_s=30.0))
    left = [name for name in run.announcement.names if name not in run.committed]
    if left:
        return Committed(left[0], left[0].encode().hex().ljust(64, "0"), 11)
    if run.phase is Phase.COLLECTING:
        return Closed()
    return Published(record(run.announcement))


def play(journal: Journal, count: int) -> Run:
    """So many events of an undisturbed run; returns what the table makes of them."""
    run = journal.now.run
    for _ in range(count):
        event = next_event(run)
        journal.append(event)
        run = advance(run, event)
    return run


def play_until(journal: Journal, phase: Phase) -> None:
    while journal.now.run.phase is not phase:
        play(journal, 1)


@pytest.mark.parametrize("count", range(14))
def test_a_journal_that_is_opened_again_has_the_run_that_its_events_made(tmp_path: Path, count: int) -> None:
    with closing(opened(tmp_path)) as journal:
        run = play(journal, count)
        assert journal.now.run == run
        assert not journal.resumed
    with closing(opened(tmp_path)) as again:
        assert (again.now.run, again.now.seq, again.resumed) == (run, count, True)
        assert again.now.announced_at > 0 or run.announcement is None
        play(again, 1)


def test_every_event_of_the_table_survives_being_stored(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as journal:
        play(journal, 3)
        first: list[Event] = [
            AllowedChanged(NAMES),
            Left("bob"),
            Abandoned(frozenset({"alice"})),
            Joined("bob", 3, "0b" * 16),
        ]
        for event in first:
            journal.append(event)
        play_until(journal, Phase.FINISHING)
        last: list[Event] = [Confirmed("alice", "c0" * 32), Ended(), Reopened(), Extended(7)]
        for event in last:
            journal.append(event)
        play_until(journal, Phase.COLLECTING)
        stopped: list[Event] = [Useless("alice", journal.now.run.model_round), Declined("alice"), Stopped()]
        for event in stopped:
            journal.append(event)
        run = journal.now.run
        kinds = {kind for (kind,) in sqlite3.connect(tmp_path / FILE).execute("SELECT kind FROM event")}
    assert kinds == set(KINDS)
    with closing(opened(tmp_path, rounds=7)) as again:
        assert again.now.run == run


@pytest.mark.parametrize("left", [("",), ("", "-wal"), ("", "-wal", "-shm")], ids=["closed", "copied", "killed"])
def test_a_look_at_a_run_leaves_nothing_beside_its_journal(tmp_path: Path, left: tuple[str, ...]) -> None:
    """SQLite makes files of its own where it may, and fails where it may not."""
    there = tmp_path / "there"
    there.mkdir()
    with closing(opened(tmp_path)) as journal:
        run = play(journal, 5)
        if left != ("",):
            for suffix in left:
                shutil.copy(tmp_path / f"{FILE}{suffix}", there)
    if left == ("",):
        shutil.copy(tmp_path / FILE, there)
    before = {path.name: path.read_bytes() for path in there.iterdir()}
    assert read_moment(there).run == run
    after = {path.name: path.read_bytes() for path in there.iterdir()}
    assert after.keys() == before.keys()
    assert after[FILE] == before[FILE]


def test_many_events_become_one_checkpoint_and_the_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_EVENTS", 5)
    with closing(opened(tmp_path, rounds=40)) as journal:
        run = play(journal, 150)
        rows = sqlite3.connect(tmp_path / FILE).execute("SELECT count(*) FROM event").fetchone()[0]
        assert rows < 12
    with closing(opened(tmp_path, rounds=40)) as again:
        assert (again.now.run, again.now.seq) == (run, 150)
        records = again.records(-1, 1000)
        assert [r.announcement.round for r in records] == list(range(run.next_round))


def test_records_come_in_pages_and_form_a_chain(tmp_path: Path) -> None:
    with closing(opened(tmp_path, rounds=4)) as journal:
        run = play(journal, 25)
        head = genesis(IDENTITY, run.run)
        for page in (journal.records(-1, 3), journal.records(2, 3)):
            for made in page:
                assert made.announcement.head == head
                head = made.head
        assert head == run.head
        assert [r.announcement.round for r in journal.last_records(2)] == [run.next_round - 1, run.next_round - 2]


def test_an_event_that_has_no_place_is_not_stored(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as journal:
        play(journal, 3)
        with pytest.raises(StaleError):
            journal.append(Ended())
        with pytest.raises(ConflictError):
            journal.append(Committed("mallory", "00" * 32, 1))
        assert journal.now.seq == 3
    with closing(opened(tmp_path)) as again:
        assert again.now.seq == 3


def test_what_the_first_client_said_of_its_model_stays(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as journal:
        assert journal.reference is None
        journal.refer(JOIN)
    with closing(opened(tmp_path)) as again:
        assert again.reference == JOIN


def test_what_a_server_was_started_with_stays_beside_what_the_first_client_said(tmp_path: Path) -> None:
    kept = KeptSettings(min_clients=3, join_wait_s=0.5, round_timeout_s=600.0, max_values=77)
    with closing(opened(tmp_path)) as journal:
        assert read_settings(tmp_path) is None
        journal.settle(kept)
        journal.refer(JOIN)
        play(journal, 4)
    assert read_settings(tmp_path) == (TERMS, kept)
    with closing(opened(tmp_path)) as again:
        assert (again.settings, again.reference) == (kept, JOIN)


def test_a_reader_sees_the_run_while_a_server_works_on_it_and_changes_nothing(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as journal:
        for _ in range(10):
            play(journal, 1)
            assert read_moment(tmp_path) == journal.now
    before = (tmp_path / FILE).read_bytes()
    assert read_moment(tmp_path).seq == 10
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"identity": Identity("cd" * 16, 1)}, MismatchError, "the keys are of"),
        ({"identity": Identity("ab" * 16, 2)}, MismatchError, "key generation 2"),
        ({"terms": Terms("tenseal")}, EngineError, "with engine 'packed', and not 'tenseal'"),
        ({"terms": Terms("packed", 16)}, EngineError, "with precision 24, and not 16"),
        ({"terms": Terms("packed", 24, "client")}, EngineError, "with weighting 'server', and not 'client'"),
        ({"rounds": 2}, ParametersError, "an unfinished run of 3 rounds, and not 2"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(
    tmp_path: Path, changes: dict[str, Any], error: type[StateError], text: str
) -> None:
    with closing(opened(tmp_path, rounds=3)) as journal:
        run = play(journal, 4)
    with pytest.raises(error, match=text) as caught:
        opened(tmp_path, **{"rounds": 3, **changes})
    assert caught.value.exit_code == 3
    assert "--state" in (caught.value.hint or "")
    with closing(opened(tmp_path, rounds=3)) as again:
        assert again.now.run == run


def test_a_run_of_which_nothing_was_announced_makes_way_for_other_settings(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as journal:
        run = play(journal, 2)
    with closing(opened(tmp_path, terms=Terms("tenseal"))) as other:
        assert (other.resumed, other.now.seq) == (False, 0)
        assert other.now.run.run != run.run


def test_a_start_that_was_cut_short_leaves_nothing_that_hinders_the_next(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    with closing(opened(tmp_path)) as journal:
        assert not journal.resumed
        play(journal, 3)


DAMAGE = {
    "a digit of an event": "UPDATE event SET body = replace(body, '10', '99') WHERE seq = 1",
    "a missing event": "DELETE FROM event WHERE seq = 2",
    "an event twice": "INSERT INTO event SELECT 99, at, kind, body, link FROM event WHERE seq = 1",
    "another time": "UPDATE event SET at = at + 1000 WHERE seq = 3",
    "no checkpoint": "DELETE FROM checkpoint",
    "another checkpoint": "UPDATE checkpoint SET run = replace(run, 'gathering', 'ended')",
    "no run": "DELETE FROM run",
    "another engine": "UPDATE run SET engine = 'tenseal'",
    "another least number of clients": "UPDATE run SET settings = '{\"min_clients\": 2}'",
    "another generation": "UPDATE run SET generation = generation + 1",
    "another reference": "UPDATE run SET reference = '{}'",
    "a missing record": "DELETE FROM record",
    "another record": "UPDATE record SET body = replace(body, 'alice', 'mallo')",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_journal_that_was_damaged_or_edited_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    with closing(opened(tmp_path)) as journal:
        play(journal, 9)
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        assert db.execute(DAMAGE[damage]).rowcount > 0
        db.commit()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(StateError, match="is damaged") as caught:
        opened(tmp_path)
    assert "whole copy" in (caught.value.hint or "")
    assert (tmp_path / FILE).read_bytes() == before


def test_a_run_without_its_journal_is_not_begun_anew_over_its_files(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as journal:
        play(journal, 3)
    for path in tmp_path.glob(f"{FILE}*"):
        path.unlink()
    (tmp_path / "aggregates").mkdir()
    (tmp_path / "aggregates" / ("ab" * 32)).write_bytes(b"x")
    for _ in range(2):
        with pytest.raises(StateError, match="aggregates or updates of a run"):
            opened(tmp_path)


def test_a_journal_of_another_schema_is_refused(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as journal:
        play(journal, 3)
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(StateError, match="schema version 7, and this hefl reads version 5"):
        opened(tmp_path)
    with pytest.raises(StateError, match="schema version 7"):
        read_moment(tmp_path)


def test_torn_pages_are_refused(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as journal:
        play(journal, 9)
    data = bytearray((tmp_path / FILE).read_bytes())
    data[4096 : 2 * 4096] = bytes(4096)
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(StateError, match="is damaged"):
        opened(tmp_path)


def test_a_full_disk_refuses_an_event_and_changes_nothing_until_there_is_room(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as journal:
        play(journal, 3)
        now = journal.now
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count = {pages}")
        for _ in range(2):
            with pytest.raises(DiskFullError, match="no space left on the disk") as caught:
                journal.refer(msgspec.structs.replace(JOIN, sealed_layout=bytes(1 << 16)))
            assert caught.value.http_status == 503
        assert (journal.now, journal.reference) == (now, None)
        journal._db.execute("PRAGMA max_page_count = 1000000")
        run = play(journal, 3)
    with closing(opened(tmp_path)) as again:
        assert again.now.run == run


@pytest.mark.parametrize("length", [1, 16, 100, 511])
def test_what_is_left_of_a_journal_is_refused_and_no_run_begins_anew(tmp_path: Path, length: int) -> None:
    opened(tmp_path).close()
    left = (tmp_path / FILE).read_bytes()[:length]
    (tmp_path / FILE).write_bytes(left)
    with pytest.raises(StateError, match="is damaged"):
        opened(tmp_path)
    assert (tmp_path / FILE).read_bytes() == left
