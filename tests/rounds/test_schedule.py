"""What a server decides, from where its run is and what time it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from builders import HEAD, RUN, record
from run_support import KNOWN, NONCE, announced, clock, collecting, digest, gathering, in_phase

from hefl.engines.engine import Terms
from hefl.errors import ConflictError
from hefl.protocol.records import Announcement
from hefl.rounds.events import (
    Abandoned,
    Announced,
    Closed,
    Committed,
    Confirmed,
    Declined,
    Joined,
    Left,
    Published,
    Stopped,
)
from hefl.rounds.run import Phase, Run, advance
from hefl.rounds.schedule import Abandon, Announce, Close, End, Finish, Stop, announcement_of, decide


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
    run = advance(run, Abandoned(decision.culprits))
    assert decide(run, clock()) == Announce("training", KNOWN)
    # Whoever does so again is left out of the round: otherwise it could hold the others up for ever.
    run = advance(run, Announced(announced(run)))
    for name in ("alice", "carol"):
        run = advance(run, Committed(name, digest(name), 10))
    run = advance(run, Joined("bob", 20, "ee" * 16))
    assert (run.awaited, decide(run, clock())) == ((), Close())


def test_a_client_back_without_its_state_costs_nobody_the_last_metrics() -> None:
    run = collecting(["alice", "carol"], next_round=3, rounds=2)
    run = advance(run, Joined("bob", 20, "ff" * 16))
    assert (run.exchange, decide(run, clock())) == ("closing", Close())


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


def having_enough(*enough: str, committed: Iterable[str] = (), names: Iterable[str] = KNOWN) -> Run:
    run = collecting(committed, next_round=2, rounds=5, names=names)
    for name in enough:
        run = advance(run, Declined(name))
    return run


def test_a_run_whose_participants_all_had_enough_goes_to_its_closing_exchange() -> None:
    run = having_enough("alice", "carol")
    assert (run.awaited, decide(run, clock())) == (("bob",), None)
    run = advance(run, Declined("bob"))
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
    assert isinstance(decide(having_enough("alice", committed=["bob"]), clock(phase_s=30.0)), Abandon)
    assert decide(having_enough("alice", "bob"), clock(phase_s=30.0)) == Stop()


def test_where_some_had_enough_and_others_not_the_next_attempt_waits_for_the_deadline() -> None:
    """It would be answered no better, and at once: clients would encrypt the same again as fast as they can."""
    run = having_enough("alice", committed=["bob"], names=("alice", "bob"))
    assert (run.awaited, decide(run, clock(phase_s=29.9))) == ((), None)
    decision = decide(run, clock(phase_s=30.0))
    assert isinstance(decision, Abandon)
    why = "alice had enough, and the others not: the deadline passed with 1 of at least 2 updates in"
    assert decision.reason == why
    # Where it is so again it would be for ever.
    run = advance(run, Abandoned(decision.culprits))
    run = advance(run, Announced(announced(run, ("alice", "bob"))))
    run = advance(advance(run, Declined("alice")), Committed("bob", digest("bob"), 10))
    assert decide(run, clock(phase_s=29.9)) is None
    assert decide(run, clock(phase_s=30.0)) == Stop()


def test_who_had_enough_is_not_lost_when_it_comes_back_without_its_state() -> None:
    run = advance(having_enough("alice", "bob"), Joined("bob", 20, "ff" * 16))
    assert decide(run, clock()) is None


def test_having_enough_has_no_place_in_a_round_that_is_not_trained_or_after_an_update() -> None:
    for run in (collecting(next_round=1), collecting(next_round=3), collecting(["alice"], next_round=2)):
        with pytest.raises(ConflictError, match="alice cannot have had enough"):
            advance(run, Declined("alice"))
    with pytest.raises(ConflictError, match="mallory takes no part"):
        advance(collecting(next_round=2), Declined("mallory"))
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
    run = gathering(phase=Phase.FINISHING)
    for name in KNOWN:
        run = advance(run, Confirmed(name, "c0" * 32))
    assert run.awaited == ()
    for name in gone:
        run = advance(run, Left(name))
    assert decide(run, clock(phase_s=59.9)) == (End() if len(gone) == 3 else None)
    assert decide(run, clock(phase_s=60.0)) == End()


def test_the_server_stays_no_longer_than_a_round_for_who_was_killed_before_it_had_the_last_record() -> None:
    run, gone = advance(gathering(phase=Phase.FINISHING), Confirmed("alice", "c0" * 32)), frozenset(KNOWN)
    assert run.unconfirmed == ("bob", "carol")
    assert decide(run, clock(silent=gone, phase_s=59.9)) is None
    assert decide(run, clock(silent=gone, phase_s=60.0)) == End()
    for name in ("bob", "carol"):
        run = advance(run, Left(name))
    assert decide(run, clock(silent=gone)) == End()  # alice may be as silent as she likes


def test_the_server_lingers_for_known_clients_that_do_not_have_the_result() -> None:
    run = gathering([], phase=Phase.FINISHING)
    assert decide(run, clock(linger_s=100.0, phase_s=99.9)) is None
    assert decide(run, clock(linger_s=100.0, phase_s=100.0)) == End()
    for name in KNOWN:
        assert decide(run, clock(linger_s=100.0)) is None
        run = advance(run, Confirmed(name, "c0" * 32))
    assert decide(run, clock(linger_s=100.0)) == End()
    late = advance(gathering([], phase=Phase.FINISHING), Joined("bob", 7, NONCE["bob"]))
    assert decide(late, clock(linger_s=100.0, phase_s=159.9)) is None  # who came just in time may finish


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
