from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from builders import HEAD, record
from hypothesis import given
from hypothesis import strategies as st
from run_support import KNOWN, NONCE, announced, clock, collecting, digest, gathering, in_phase, played

from hefl.errors import ConflictError, StaleError
from hefl.rounds.events import (
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
from hefl.rounds.run import TABLE, Phase, Run, Session, advance
from hefl.rounds.schedule import Announce, Close, Finish, decide

EVENT_TYPES = (
    Joined,
    Left,
    AllowedChanged,
    Announced,
    Committed,
    Declined,
    Useless,
    Closed,
    Abandoned,
    Stopped,
    Published,
    Finished,
    Confirmed,
    Ended,
    Extended,
)


def event_for(cls: type[Event], run: Run) -> Event:
    of = run.announcement or announced(run)
    events: tuple[Event, ...] = (
        Joined("alice", 5, "ff" * 16),
        Left("alice"),
        AllowedChanged(("alice", "bob", "dave")),
        Announced(of),
        Committed("alice", digest("alice"), 10),
        Declined("alice"),
        Useless("alice", run.model_round),
        Closed(),
        Abandoned(),
        Stopped(),
        Published(record(of, run.committed or None)),
        Finished(),
        Confirmed("alice", "c0" * 32),
        Ended(),
        Reopened(),
        Extended(9),
    )
    return next(event for event in events if type(event) is cls)


# --- transitions ------------------------------------------------------------------------------------------------------

ALLOWED = {
    ("GATHERING", "Joined", "GATHERING"),
    ("GATHERING", "Left", "GATHERING"),
    ("GATHERING", "AllowedChanged", "GATHERING"),
    ("GATHERING", "Announced", "COLLECTING"),
    ("GATHERING", "Finished", "FINISHING"),
    ("COLLECTING", "Joined", "COLLECTING"),
    ("COLLECTING", "Left", "COLLECTING"),
    ("COLLECTING", "AllowedChanged", "COLLECTING"),
    ("COLLECTING", "Committed", "COLLECTING"),
    ("COLLECTING", "Declined", "COLLECTING"),
    ("GATHERING", "Useless", "GATHERING"),
    ("COLLECTING", "Useless", "COLLECTING"),
    ("SUMMING", "Useless", "SUMMING"),
    ("COLLECTING", "Closed", "SUMMING"),
    ("COLLECTING", "Abandoned", "GATHERING"),
    ("COLLECTING", "Stopped", "GATHERING"),
    ("SUMMING", "Joined", "SUMMING"),
    ("SUMMING", "Left", "SUMMING"),
    ("SUMMING", "AllowedChanged", "SUMMING"),
    ("SUMMING", "Published", "GATHERING"),
    ("SUMMING", "Abandoned", "GATHERING"),
    ("FINISHING", "Joined", "FINISHING"),
    ("FINISHING", "Left", "FINISHING"),
    ("FINISHING", "AllowedChanged", "FINISHING"),
    ("FINISHING", "Confirmed", "FINISHING"),
    ("FINISHING", "Ended", "ENDED"),
    ("GATHERING", "Extended", "GATHERING"),
    ("COLLECTING", "Extended", "COLLECTING"),
    ("SUMMING", "Extended", "SUMMING"),
    ("FINISHING", "Extended", "GATHERING"),
    ("ENDED", "Reopened", "FINISHING"),
    ("ENDED", "Extended", "GATHERING"),
}


def test_the_table_has_the_transitions_of_a_round_and_no_others() -> None:
    assert {(a.name, event.__name__, b.name) for a, row in TABLE.items() for event, b in row.items()} == ALLOWED
    assert set(TABLE) == set(Phase)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("cls", EVENT_TYPES)
def test_an_event_moves_the_run_as_the_table_says_or_is_refused(phase: Phase, cls: type[Event]) -> None:
    run = in_phase(phase)
    assert run.phase is phase
    event = event_for(cls, run)
    to = next((b for a, name, b in ALLOWED if (a, name) == (phase.name, cls.__name__)), None)
    if to is None:
        with pytest.raises(StaleError, match=phase.value) as caught:
            advance(run, event)
        assert caught.value.http_status == 410
    else:
        assert advance(run, event).phase.name == to


@given(st.lists(st.sampled_from(EVENT_TYPES), max_size=12))
def test_no_sequence_of_events_changes_a_run_that_was_handed_in(classes: list[type[Event]]) -> None:
    run = gathering(next_round=1)
    for cls in classes:
        before = dataclasses.replace(run, sessions=dict(run.sessions), committed=dict(run.committed))
        try:
            after = advance(run, event_for(cls, run))
        except (StaleError, ConflictError):
            after = run
        assert run == before
        run = after


# --- what events leave behind -----------------------------------------------------------------------------------------


def test_a_client_that_joins_is_here_until_it_leaves() -> None:
    run = advance(gathering([]), Joined("bob", 7, NONCE["bob"]))
    assert run.sessions == {"bob": Session(7, NONCE["bob"])}
    assert run.awaited == ("alice", "carol")
    assert advance(run, Left("bob")).sessions == {}


def test_a_client_that_was_not_here_may_leave() -> None:
    assert advance(gathering(["alice"]), Left("bob")).sessions.keys() == {"alice"}


def test_an_update_is_taken_once_and_the_same_bytes_again() -> None:
    run = advance(collecting(), Committed("alice", digest("alice"), 10))
    assert run.awaited == ("bob", "carol")
    assert advance(run, Committed("alice", digest("alice"), 10)).committed == {"alice": digest("alice")}
    with pytest.raises(ConflictError, match="alice") as caught:
        advance(run, Committed("alice", digest("other"), 10))
    assert caught.value.http_status == 409


@pytest.mark.parametrize("name", ["carol", "mallory"])
def test_an_update_of_no_participant_is_refused(name: str) -> None:
    with pytest.raises(ConflictError, match=name):
        advance(collecting(names=["alice", "bob"]), Committed(name, digest(name), 10))


def test_a_new_number_of_examples_counts_from_the_next_attempt_on() -> None:
    run = advance(collecting(), Committed("alice", digest("alice"), 99))
    assert run.announcement is not None
    assert run.announcement.as_attempt().weights["alice"] == 10
    assert announced(run).as_attempt().weights["alice"] == 99


def test_an_update_of_a_client_that_has_left_counts() -> None:
    run = advance(advance(collecting(), Left("alice")), Committed("alice", digest("alice"), 10))
    assert run.committed == {"alice": digest("alice")}
    assert "alice" not in run.sessions


def test_the_awaited_are_participants_that_are_here_and_not_in() -> None:
    run = advance(collecting(["alice"]), Left("bob"))
    assert run.awaited == ("carol",)


def test_an_abandoned_attempt_leaves_the_round_and_counts() -> None:
    run = advance(collecting(["alice"]), Abandoned(frozenset({"bob"})))
    assert (run.next_round, run.attempt, run.head) == (1, 1, HEAD)
    assert (run.announcement, run.committed) == (None, {})
    assert run.failed_senders == {"bob"}
    again = announced(run)
    assert (again.round, again.attempt) == (1, 2)


def test_a_published_round_extends_the_history_and_starts_the_next() -> None:
    run = advance(collecting(list(KNOWN), failed_senders=frozenset({"zoe"})), Closed())
    assert run.announcement is not None
    made = record(run.announcement)
    after = advance(run, Published(made))
    assert (after.next_round, after.attempt, after.head) == (2, 0, made.head)
    assert (after.announcement, after.committed, after.failed_senders) == (None, {}, frozenset())
    assert (after.model, after.closing) == (made, None)


def test_closing_metrics_do_not_replace_the_model() -> None:
    model = record(announced(gathering(next_round=2)))
    run = advance(collecting(list(KNOWN), next_round=3, model=model), Closed())
    assert run.announcement is not None
    made = record(run.announcement)
    after = advance(run, Published(made))
    assert (after.model, after.closing) == (model, made)


@pytest.mark.parametrize(("next_round", "exchange"), [(0, "initial"), (1, "training"), (2, "training"), (3, "closing")])
def test_round_0_is_initial_and_the_one_after_the_last_closes(next_round: int, exchange: str) -> None:
    assert gathering(next_round=next_round).exchange == exchange


@pytest.mark.parametrize("change", [{"round": 2}, {"attempt": 2}, {"head": "11" * 32}, {"run": "11" * 16}])
def test_an_announcement_that_does_not_continue_the_run_is_refused(change: dict[str, Any]) -> None:
    run = gathering(next_round=1)
    with pytest.raises(ConflictError, match="does not come next"):
        advance(run, Announced(msgspec.structs.replace(announced(run), **change)))


def test_a_record_of_someone_who_committed_nothing_is_refused() -> None:
    run = advance(collecting(["alice", "bob"]), Closed())
    assert run.announcement
    with pytest.raises(ConflictError, match="not of the closed attempt"):
        advance(run, Published(record(run.announcement, ["alice", "carol"])))


# --- more rounds than before ------------------------------------------------------------------------------------------


def over(*, with_closing: bool = True) -> Run:
    """A run of two trainings that has ended."""
    run = gathering(next_round=3)
    if with_closing:
        run = played(run)
    return advance(advance(run, Finished()), Ended())


@pytest.mark.parametrize("with_closing", [True, False])
def test_a_finished_run_goes_on_with_as_many_trainings_as_were_added_and_closes_again(with_closing: bool) -> None:
    run = over(with_closing=with_closing)
    first = run.next_round
    assert first == (4 if with_closing else 3)
    run, made = advance(run, Extended(4)), []
    assert (run.sessions, run.closing is not None) == ({}, with_closing)
    for name in KNOWN:
        run = advance(run, Joined(name, 10, NONCE[name]))
    assert run.last_training == first + 1
    while (decision := decide(run, clock())) != Finish():
        assert isinstance(decision, Announce)
        made.append((run.next_round, decision.exchange))
        run = played(run)
    assert made == list(enumerate(["training", "training", "closing"], first))
    assert run.closed


def test_a_run_that_is_extended_while_it_closes_trains_on_after_that_round() -> None:
    run = advance(collecting(list(KNOWN), next_round=3), Extended(3))
    run = advance(run, Closed())
    assert run.announcement
    run = advance(run, Published(record(run.announcement)))
    assert (run.exchange, run.last_training, run.closed) == ("training", 4, False)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_run_is_never_made_shorter(rounds: int) -> None:
    with pytest.raises(ConflictError, match=f"of 2 rounds cannot be extended to {rounds}"):
        advance(over(), Extended(rounds))


# --- who may join -----------------------------------------------------------------------------------------------------


def test_who_is_taken_off_the_list_has_left_and_whoever_is_new_is_awaited() -> None:
    run = advance(gathering(next_round=1), AllowedChanged(("alice", "bob", "dave")))
    assert set(run.sessions) == {"alice", "bob"}
    assert run.awaited == ("dave",)


def test_a_participant_taken_off_the_list_is_not_waited_for_and_what_it_sent_stays() -> None:
    run = advance(collecting(["alice", "carol"]), AllowedChanged(("alice", "bob")))
    assert run.awaited == ("bob",)
    assert set(run.committed) == {"alice", "carol"}
    without = advance(collecting(["alice", "bob"]), AllowedChanged(("alice", "bob")))
    assert isinstance(decide(without, clock()), Close)
