"""What the page and Prometheus are told, folded from events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from builders import HEAD, RUN, announcement, nonce_of, record

from hefl.rounds.run import Phase, Run, Session
from hefl.rounds.schedule import Clock
from hefl.server.page.watch import KEPT_ROUNDS, Watch, awaited, deadline_s, describe, standing


def closed(number: int, **changes: Any) -> dict[str, Any]:
    event = {"event": "round", "round": number, "in": ["alice", "bob"], "missed": [], "bytes_up": 7, "seconds": {}}
    return event | changes


def announced(number: int) -> dict[str, Any]:
    return {"event": "announced", "round": number, "attempt": 1, "exchange": "training", "participants": []}


def run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "run": RUN,
        "rounds": 3,
        "min_clients": 2,
        "known": ("alice", "bob", "carol", "dave"),
        "head": HEAD,
    }
    return Run(**(fields | changes))


def clock(silent: Iterable[str] = (), phase_s: float = 0.0) -> Clock:
    return Clock(silent=frozenset(silent), phase_s=phase_s, enough_s=0.0, join_wait_s=2.0, round_timeout_s=60.0)


def test_the_seconds_of_a_rounds_phases_add_up_to_the_time_between_two_rounds() -> None:
    times = iter([100.0, 103.0, 110.0, 111.0, 115.0])
    watch = Watch(run(), clock=lambda: next(times))
    for number in (1, 2):
        watch.see(announced(number))
        watch.see(closed(number, seconds={"aggregate": 0.5}))
    assert watch.rows[1].seconds == {"gathering": 3.0, "collecting": 6.5, "summing": 0.5}
    assert watch.rows[2].seconds == {"gathering": 1.0, "collecting": 3.5, "summing": 0.5}


def test_a_row_gathers_what_is_known_of_its_round_whenever_it_comes() -> None:
    watch = Watch(run())
    watch.see(announced(1))
    watch.see(closed(1, missed=["carol"]))
    for name in ("alice", "bob"):
        watch.see({"event": "download", "round": 1, "client": name, "bytes": 50})
    watch.see({"event": "metrics", "round": 1, "client": "bob", "metrics": {"loss": None}})
    row = watch.rows[1]
    assert (row.members, row.missed, row.bytes_up, row.bytes_down) == (["alice", "bob"], ["carol"], 7, 100)
    assert (row.exchange, row.metrics, row.reporter) == ("training", {"loss": None}, "bob")


def test_of_rounds_before_a_restart_the_records_tell() -> None:
    of = announcement({"alice": 1, "bob": 1, "carol": 1}, round=4)
    watch = Watch(run(), [record(of, ["alice", "carol"])])
    row = watch.rows[4]
    assert (row.exchange, row.members, row.missed, row.seconds) == ("training", ["alice", "carol"], ["bob"], None)


def test_where_a_run_was_extended_no_model_is_of_the_closing_round_between() -> None:
    watch = Watch(run(), [record(announcement(round=4, exchange="closing"))])
    watch.see({"event": "metrics", "round": 4, "client": "bob", "metrics": {"loss": 1.0}})
    assert watch.rows[4].metrics is None


def test_whoever_comes_back_is_told_what_has_changed_since_and_no_more() -> None:
    watch = Watch(run())
    for number in (1, 2, 3):
        watch.see(closed(number))
    seen = watch.seq
    assert [row.round for row in watch.changed_since(-1)] == [1, 2, 3]
    assert watch.changed_since(seen) == []
    watch.see({"event": "download", "round": 2, "client": "bob", "bytes": 5})
    assert [row.round for row in watch.changed_since(seen)] == [2]


def test_the_memory_of_a_long_run_is_bounded() -> None:
    watch = Watch(run())
    for number in range(2 * KEPT_ROUNDS):
        watch.see(closed(number))
    assert list(watch.rows) == list(range(KEPT_ROUNDS, 2 * KEPT_ROUNDS))


@pytest.mark.parametrize(
    ("state", "silent", "expected"),
    [
        ({}, set(), ["absent", "here", "left", "here"]),
        ({}, {"dave"}, ["absent", "here", "left", "silent"]),
        ({"phase": Phase.COLLECTING, "announcement": announcement({"bob": 1, "dave": 1}), "committed": {"bob": "d"}},
         set(), ["absent", "sent", "left", "awaited"]),
        ({"phase": Phase.COLLECTING, "announcement": announcement({"bob": 1, "carol": 1})}, {"dave"},
         ["absent", "awaited", "left", "silent"]),
        ({"phase": Phase.FINISHING, "confirmations": {"bob": "c0" * 32}}, set(), ["absent", "done", "left", "awaited"]),
        ({"phase": Phase.ENDED, "confirmations": dict.fromkeys(("bob", "carol"), "c0" * 32)}, set(),
          ["absent", "done", "done", "here"]),
    ],
)  # fmt: skip
def test_every_client_stands_somewhere(state: dict[str, Any], silent: set[str], expected: list[str]) -> None:
    watch = Watch(run())
    watch.see({"event": "joined", "client": "carol"})
    watch.see({"event": "left", "client": "carol"})
    now = run(sessions={"bob": Session(1, nonce_of("bob")), "dave": Session(1, nonce_of("dave"))}, **state)
    assert list(standing(now, clock(silent), watch).values()) == expected
    assert set(awaited(now, clock(silent))) == {n for n, s in zip(now.known, expected, strict=True) if s == "awaited"}
    assert describe(now, clock(silent), watch)["phase"] == now.phase.value


def test_a_deadline_is_that_of_the_open_attempt() -> None:
    of = announcement(deadline_s=60.0)
    assert deadline_s(run(), clock()) is None
    assert deadline_s(run(phase=Phase.COLLECTING, announcement=of), clock(phase_s=20.0)) == 40.0
    assert deadline_s(run(phase=Phase.COLLECTING, announcement=of), clock(phase_s=61.0)) == 0.0
    assert deadline_s(run(phase=Phase.SUMMING, announcement=of), clock()) is None
