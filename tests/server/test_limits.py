"""How often one client may do something, and be the subject of a line in the log."""

from __future__ import annotations

import pytest

from hefl.errors import StaleError, TooManyError
from hefl.params import LINES_AT_ONCE, TURNS_AT_ONCE
from hefl.server.events import Refusals
from hefl.server.limits import Allowance, Turns


def test_each_party_has_its_own_allowance_which_comes_back_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("hefl.server.limits.time.monotonic", lambda: now)
    allowance = Allowance(3, 0.5)
    assert [allowance.take("alice") for _ in range(5)] == [True, True, True, False, False]
    assert allowance.take("bob")
    now += 2
    assert [allowance.take("alice") for _ in range(2)] == [True, False]
    now += 1000
    assert [allowance.take("alice") for _ in range(4)] == [True, True, True, False]


def test_one_client_cannot_have_the_journal_written_all_the_time() -> None:
    turns = Turns()
    for _ in range(int(TURNS_AT_ONCE)):
        turns.take("alice")
    with pytest.raises(TooManyError, match="client alice asks for more than"):
        turns.take("alice")
    turns.take("bob")


def test_a_flood_of_refusals_does_not_fill_the_log_and_every_one_is_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("hefl.server.limits.time.monotonic", lambda: now)
    events: list[object] = []
    refusals, many = Refusals(events.append), int(LINES_AT_ONCE)
    for _ in range(many + 25):
        refusals.tell("PUT", "/v1/run", "alice", StaleError("no such round"), 410)
    assert len(caplog.messages) == many
    assert caplog.messages[0] == "refused PUT /v1/run of alice: no such round"
    refusals.tell("GET", "/", None, StaleError("who are you"), 403)
    assert caplog.messages[-1] == "refused GET / of an unknown client: who are you"
    now += 5
    refusals.tell("PUT", "/v1/run", "alice", StaleError("no such round"), 410)
    assert caplog.messages[-1] == "refused PUT /v1/run of alice: no such round (and 25 more before that)"
    assert len(events) == many + 27
