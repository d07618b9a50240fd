from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from helpers import HEAD, RUN, record
from hypothesis import given
from hypothesis import strategies as st

from hefl.engine import Terms
from hefl.errors import ConflictError, StaleError
from hefl.history import Announcement
from hefl.rounds import (
    TABLE,
    Abandon,
    Abandoned,
    Announce,
    Announced,
    Clock,
    Close,
    Closed,
    Committed,
    End,
    Ended,
    Enough,
    Event,
    Extended,
    Fetched,
    Finish,
    Finished,
    Joined,
    Known,
    Left,
    Phase,
    Published,
    Run,
    Session,
    Stop,
    Stopped,
    advance,
    announcement_of,
    decide,
)

KNOWN = ("alice", "bob", "carol")
NONCE = {name: f"{i:032x}" for i, name in enumerate(KNOWN, 1)}
EVENT_TYPES = (
    Joined,
    Left,
    Known,
    Announced,
    Committed,
    Enough,
    Closed,
    Abandoned,
    Stopped,
    Published,
    Finished,
    Fetched,
    Ended,
    Extended,
)


def clock(**changes: Any) -> Clock:
    """A moment at which nothing is due."""
    fields: dict[str, Any] = {
        "silent": frozenset(),
        "phase_s": 0.0,
        "enough_s": 0.0,
        "join_wait_s": 2.0,
        "round_timeout_s": 60.0,
    }
    return Clock(**{**fields, **changes})


def gathering(present: Iterable[str] = KNOWN, **changes: Any) -> Run:
    sessions = {name: Session(10 * i, NONCE[name]) for i, name in enumerate(KNOWN, 1) if name in present}
    fields: dict[str, Any] = {
        "run": RUN,
        "rounds": 2,
        "min_clients": 2,
        "known": KNOWN,
        "head": HEAD,
        "sessions": sessions,
    }
    return Run(**{**fields, **changes})


def announced(run: Run, names: Iterable[str] | None = None) -> Announcement:
    names = tuple(sorted(run.sessions if names is None else names))
    return announcement_of(run, Announce(run.exchange, names), values=3, terms=Terms("tenseal"), deadline_s=30.0)


def collecting(committed: Iterable[str] = (), next_round: int = 1, names: Iterable[str] = KNOWN, **changes: Any) -> Run:
    run = gathering(next_round=next_round, **changes)
    run = advance(run, Announced(announced(run, names)))
    for name in committed:
        run = advance(run, Committed(name, digest(name), 10))
    return run


def digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def in_phase(phase: Phase) -> Run:
    if phase is Phase.COLLECTING:
        return collecting(next_round=2)
    if phase is Phase.SUMMING:
        return advance(collecting(["alice", "bob"]), Closed())
    return gathering(phase=phase, next_round=1)


def event_for(cls: type[Event], run: Run) -> Event:
    of = run.announcement or announced(run)
    events: tuple[Event, ...] = (
        Joined("alice", 5, "ff" * 16),
        Left("alice"),
        Known(("alice", "bob", "dave")),
        Announced(of),
        Committed("alice", digest("alice"), 10),
        Enough("alice"),
        Closed(),
        Abandoned(),
        Stopped(),
        Published(record(of, run.committed or None)),
        Finished(),
        Fetched("alice", "c0" * 32),
        Ended(),
        Extended(9),
    )
    return next(event for event in events if type(event) is cls)


# --- transitions ------------------------------------------------------------------------------------------------------

ALLOWED = {
    ("GATHERING", "Joined", "GATHERING"),
    ("GATHERING", "Left", "GATHERING"),
    ("GATHERING", "Known", "GATHERING"),
    ("GATHERING", "Announced", "COLLECTING"),
    ("GATHERING", "Finished", "DRAINING"),
    ("COLLECTING", "Joined", "COLLECTING"),
    ("COLLECTING", "Left", "COLLECTING"),
    ("COLLECTING", "Known", "COLLECTING"),
    ("COLLECTING", "Committed", "COLLECTING"),
    ("COLLECTING", "Enough", "COLLECTING"),
    ("COLLECTING", "Closed", "SUMMING"),
    ("COLLECTING", "Abandoned", "GATHERING"),
    ("COLLECTING", "Stopped", "GATHERING"),
    ("SUMMING", "Joined", "SUMMING"),
    ("SUMMING", "Left", "SUMMING"),
    ("SUMMING", "Known", "SUMMING"),
    ("SUMMING", "Published", "GATHERING"),
    ("SUMMING", "Abandoned", "GATHERING"),
    ("DRAINING", "Joined", "DRAINING"),
    ("DRAINING", "Left", "DRAINING"),
    ("DRAINING", "Known", "DRAINING"),
    ("DRAINING", "Fetched", "DRAINING"),
    ("DRAINING", "Ended", "ENDED"),
    ("GATHERING", "Extended", "GATHERING"),
    ("COLLECTING", "Extended", "COLLECTING"),
    ("SUMMING", "Extended", "SUMMING"),
    ("DRAINING", "Extended", "GATHERING"),
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
    assert run.passed_over == {"bob"}
    again = announced(run)
    assert (again.round, again.attempt) == (1, 2)


def test_a_published_round_extends_the_history_and_starts_the_next() -> None:
    run = advance(collecting(list(KNOWN), passed_over=frozenset({"zoe"})), Closed())
    assert run.announcement is not None
    made = record(run.announcement)
    after = advance(run, Published(made))
    assert (after.next_round, after.attempt, after.head) == (2, 0, made.head)
    assert (after.announcement, after.committed, after.passed_over) == (None, {}, frozenset())
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


def test_an_announcement_says_what_the_run_knows_and_has_a_nonce_of_its_own() -> None:
    run = gathering(next_round=2, attempt=4)
    first, second = announced(run, ["alice", "carol"]), announced(run, ["alice", "carol"])
    assert (first.run, first.round, first.attempt, first.exchange, first.head) == (RUN, 2, 5, "training", HEAD)
    assert [(p.name, p.num_examples, p.join_nonce) for p in first.participants] == [
        ("alice", 10, NONCE["alice"]),
        ("carol", 30, NONCE["carol"]),
    ]
    assert first.nonce != second.nonce
    assert first.ctx != second.ctx
    assert msgspec.json.decode(msgspec.json.encode(first), type=Announcement) == first


# --- decisions: when to start -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("enough_s", [0.0, 1.9, 2.0, 100.0])
@pytest.mark.parametrize("present", [(), ("alice",), ("alice", "bob"), ("bob", "carol"), KNOWN])
def test_a_run_starts_with_all_clients_or_with_enough_after_the_wait(present: tuple[str, ...], enough_s: float) -> None:
    starts = len(present) == 3 or (len(present) >= 2 and enough_s >= 2.0)
    expected = Announce("initial", present[:1]) if starts else None
    assert decide(gathering(present), clock(enough_s=enough_s)) == expected


def test_a_run_waits_for_its_minimum_of_clients_however_long() -> None:
    run = gathering(["alice", "bob"], min_clients=3)
    assert decide(run, clock(enough_s=1e9, phase_s=1e9)) is None


def test_a_silent_client_does_not_count_as_here() -> None:
    run = gathering(["alice", "bob"])
    assert decide(run, clock(enough_s=10, silent=frozenset({"alice"}))) is None
    run = gathering(KNOWN)
    assert decide(run, clock(enough_s=10, silent=frozenset({"alice"}))) == Announce("initial", ("bob",))


def test_initial_arrays_come_from_the_first_by_name_whatever_the_order_of_joining() -> None:
    run = gathering([])
    for name in ("carol", "bob", "alice"):
        run = advance(run, Joined(name, 10, NONCE[name]))
    assert decide(run, clock()) == Announce("initial", ("alice",))


def test_initial_arrays_come_from_the_next_by_name_after_each_failure_and_then_from_the_first_again() -> None:
    run = gathering()
    senders: list[str] = []
    for _ in range(4):
        decision = decide(run, clock())
        assert isinstance(decision, Announce)
        senders.append(*decision.names)
        run = advance(run, Announced(announced(run, decision.names)))
        given_up = decide(run, clock(phase_s=30.0))
        assert isinstance(given_up, Abandon)
        run = advance(run, Abandoned(given_up.culprits))
    assert senders == ["alice", "bob", "carol", "alice"]


@pytest.mark.parametrize(("next_round", "exchange"), [(1, "training"), (2, "training"), (3, "closing")])
def test_later_rounds_start_at_once_with_all_who_are_here(next_round: int, exchange: Any) -> None:
    run = gathering(["carol", "alice"], next_round=next_round)
    assert decide(run, clock()) == Announce(exchange, ("alice", "carol"))
    assert decide(gathering(["carol"], next_round=next_round), clock()) is None


# --- decisions: when to end an attempt --------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [(), ("alice",), ("alice", "bob"), KNOWN])
@pytest.mark.parametrize("phase_s", [0.0, 29.9, 30.0, 100.0])
def test_an_attempt_closes_when_all_are_in_or_at_the_deadline_with_enough(
    committed: tuple[str, ...], phase_s: float
) -> None:
    decision = decide(collecting(committed), clock(phase_s=phase_s))
    if len(committed) == 3 or (len(committed) == 2 and phase_s >= 30):
        assert decision == Close()
    elif phase_s < 30:
        assert decision is None
    else:
        assert isinstance(decision, Abandon)
        assert decision.culprits == set(KNOWN) - set(committed)
        assert f"the deadline passed with {len(committed)} of at least 2" in decision.reason


def test_the_deadline_is_the_announced_one() -> None:
    assert decide(collecting(["alice", "bob"]), clock(phase_s=29.0, round_timeout_s=1.0)) is None


@pytest.mark.parametrize("min_clients", [1, 2])
def test_fewer_than_two_updates_are_never_summed(min_clients: int) -> None:
    run = collecting(["alice"], min_clients=min_clients)
    assert isinstance(decide(run, clock(phase_s=30.0)), Abandon)


def test_more_than_two_are_needed_where_the_run_says_so() -> None:
    run = collecting(["alice", "bob"], min_clients=3)
    decision = decide(run, clock(phase_s=30.0))
    assert isinstance(decision, Abandon)
    assert "2 of at least 3" in decision.reason


def test_one_update_is_enough_for_initial_arrays() -> None:
    assert decide(collecting(["alice"], next_round=0, names=["alice"]), clock()) == Close()
    decision = decide(collecting(next_round=0, names=["alice"]), clock(phase_s=30.0))
    assert isinstance(decision, Abandon)
    assert decision.culprits == {"alice"}


def test_an_attempt_does_not_wait_for_those_who_left() -> None:
    assert decide(advance(collecting(["alice", "bob"]), Left("carol")), clock()) == Close()
    decision = decide(advance(advance(collecting(["alice"]), Left("carol")), Left("bob")), clock())
    assert isinstance(decision, Abandon)
    assert decision.culprits == {"bob", "carol"}
    assert "clients left with 1 of at least 2" in decision.reason


def test_a_client_back_without_its_state_before_it_committed_means_a_new_attempt() -> None:
    run = advance(collecting(["alice"]), Joined("bob", 20, "ff" * 16))
    decision = decide(run, clock())
    assert isinstance(decision, Abandon)
    assert "bob" in decision.reason
    assert decision.culprits == frozenset()
    again = decide(advance(run, Abandoned(decision.culprits)), clock())
    assert again == Announce("training", KNOWN)


def test_a_client_back_without_its_state_after_it_committed_changes_nothing() -> None:
    run = advance(collecting(["alice"]), Joined("alice", 20, "ff" * 16))
    assert decide(run, clock()) is None
    assert run.committed == {"alice": digest("alice")}


def test_a_client_back_with_its_state_takes_part_in_the_open_attempt() -> None:
    run = advance(advance(collecting(["alice", "carol"]), Left("bob")), Joined("bob", 20, NONCE["bob"]))
    assert decide(run, clock()) is None
    assert run.awaited == ("bob",)
    assert decide(advance(run, Committed("bob", digest("bob"), 20)), clock()) == Close()


def test_a_client_that_joins_during_an_attempt_takes_part_in_the_next() -> None:
    run = gathering(["alice", "bob"], next_round=1)
    run = advance(run, Announced(announced(run)))
    run = advance(run, Joined("carol", 30, NONCE["carol"]))
    assert run.awaited == ("alice", "bob")
    for name in ("alice", "bob"):
        run = advance(run, Committed(name, digest(name), 10))
    assert decide(run, clock()) == Close()


def test_nothing_is_decided_while_the_aggregate_is_made() -> None:
    assert decide(in_phase(Phase.SUMMING), clock(phase_s=1e9, enough_s=1e9)) is None


# --- decisions: when clients have had enough --------------------------------------------------------------------------


def having_enough(*names: str, committed: Iterable[str] = ()) -> Run:
    run = collecting(committed, next_round=2, rounds=5)
    for name in names:
        run = advance(run, Enough(name))
    return run


def test_a_run_whose_participants_all_had_enough_goes_to_its_closing_exchange() -> None:
    run = having_enough("alice", "carol")
    assert (run.awaited, decide(run, clock())) == (("bob",), None)
    run = advance(run, Enough("bob"))
    assert decide(run, clock()) == Stop()
    run = advance(run, Stopped())
    assert (run.stopped, run.next_round, run.exchange) == (True, 2, "closing")
    assert decide(run, clock()) == Announce("closing", KNOWN)
    closing = announced(run)
    assert (closing.round, closing.attempt) == (2, 2)  # never the same pair twice
    run = advance(run, Announced(closing))
    assert (run.enough, run.committed) == (frozenset(), {})
    assert decide(advance(run, Abandoned()), clock()) == Finish()


def test_an_attempt_does_not_wait_for_an_update_of_those_who_had_enough() -> None:
    """Honest clients decide alike; whatever the others do, the run goes on or ends."""
    assert decide(having_enough("alice", committed=["bob", "carol"]), clock()) == Close()
    assert decide(having_enough("alice", "bob", committed=["carol"]), clock()) == Stop()


def test_one_client_alone_stops_no_run() -> None:
    run = having_enough("alice")
    assert decide(run, clock()) is None
    assert isinstance(decide(run, clock(phase_s=30.0)), Abandon)
    assert decide(having_enough("alice", "bob"), clock(phase_s=30.0)) == Stop()


def test_who_had_enough_is_not_lost_when_it_comes_back_without_its_state() -> None:
    run = advance(having_enough("alice", "bob"), Joined("bob", 20, "ff" * 16))
    assert decide(run, clock()) is None


def test_having_enough_has_no_place_in_a_round_that_is_not_trained_or_after_an_update() -> None:
    for run in (collecting(next_round=1), collecting(next_round=3), collecting(["alice"], next_round=2)):
        with pytest.raises(ConflictError, match="alice cannot have had enough"):
            advance(run, Enough("alice"))
    with pytest.raises(ConflictError, match="mallory takes no part"):
        advance(collecting(next_round=2), Enough("mallory"))
    with pytest.raises(ConflictError, match="alice has said that it will not train"):
        advance(having_enough("alice"), Committed("alice", digest("alice"), 10))


# --- decisions: when a run ends ---------------------------------------------------------------------------------------


def test_a_run_finishes_when_the_closing_metrics_are_out() -> None:
    closing = record(announced(gathering(next_round=3)))
    assert decide(gathering(next_round=4, closing=closing), clock()) == Finish()


def test_a_run_does_not_wait_for_closing_metrics_longer_than_a_round_may_take() -> None:
    run = gathering(["alice"], next_round=3)
    assert decide(run, clock(phase_s=59.9)) is None
    assert decide(run, clock(phase_s=60.0)) == Finish()


def test_a_training_round_does_not_finish_for_lack_of_clients() -> None:
    assert decide(gathering(["alice"], next_round=2), clock(phase_s=1e9)) is None


@pytest.mark.parametrize("gone", [(), ("alice",), ("alice", "bob"), KNOWN])
def test_the_server_stays_until_everyone_has_the_last_record_and_goes(gone: tuple[str, ...]) -> None:
    run = gathering(phase=Phase.DRAINING)
    for name in KNOWN:
        run = advance(run, Fetched(name, "c0" * 32))
    assert run.awaited == ()
    for name in gone:
        run = advance(run, Left(name))
    assert decide(run, clock(phase_s=59.9)) == (End() if len(gone) == 3 else None)
    assert decide(run, clock(phase_s=60.0)) == End()


def test_the_server_does_not_stay_for_those_who_are_gone() -> None:
    run = advance(gathering(phase=Phase.DRAINING), Fetched("alice", "c0" * 32))
    assert decide(advance(run, Left("alice")), clock(silent=frozenset({"bob", "carol"}))) == End()
    assert decide(run, clock(silent=frozenset(KNOWN))) == End()


def test_nothing_is_decided_after_the_end() -> None:
    assert decide(gathering(phase=Phase.ENDED), clock(phase_s=1e9, enough_s=1e9)) is None


def test_a_whole_run_goes_through_its_rounds_in_order() -> None:
    run, exchanges = gathering(), []
    while (decision := decide(run, clock())) != Finish():
        assert isinstance(decision, Announce)
        exchanges.append((run.next_round, decision.exchange, decision.names))
        run = advance(run, Announced(announced(run, decision.names)))
        for name in decision.names:
            assert decide(run, clock()) is None
            run = advance(run, Committed(name, digest(name), 10))
        assert decide(run, clock()) == Close()
        run = advance(run, Closed())
        assert run.announcement is not None
        run = advance(run, Published(record(run.announcement)))
    assert exchanges == [
        (0, "initial", ("alice",)),
        (1, "training", KNOWN),
        (2, "training", KNOWN),
        (3, "closing", KNOWN),
    ]
    assert run.model is not None
    assert run.model.announcement.round == 2


def test_a_run_ends_without_closing_metrics_where_one_attempt_at_them_failed() -> None:
    run = collecting(next_round=3)
    run = advance(run, Abandoned())
    assert decide(run, clock()) == Finish()


def test_a_whole_number_of_seconds_hashes_like_the_number_that_a_client_decodes() -> None:
    run = gathering(next_round=1)
    made = announcement_of(run, Announce("training", KNOWN), values=3, terms=Terms("tenseal"), deadline_s=60)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Announcement).ctx == made.ctx


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


def played(run: Run) -> Run:
    """The run after the round that comes next, which everybody answers."""
    run = advance(run, Announced(announced(run)))
    for name in KNOWN:
        run = advance(run, Committed(name, digest(name), 10))
    run = advance(run, Closed())
    assert run.announcement
    return advance(run, Published(record(run.announcement)))


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
    run = advance(gathering(next_round=1), Known(("alice", "bob", "dave")))
    assert set(run.sessions) == {"alice", "bob"}
    assert run.awaited == ("dave",)


def test_a_participant_taken_off_the_list_is_not_waited_for_and_what_it_sent_stays() -> None:
    run = advance(collecting(["alice", "carol"]), Known(("alice", "bob")))
    assert run.awaited == ("bob",)
    assert set(run.committed) == {"alice", "carol"}
    without = advance(collecting(["alice", "bob"]), Known(("alice", "bob")))
    assert isinstance(decide(without, clock()), Close)
