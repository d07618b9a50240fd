"""After a sum that made no model, the same clients train from the same model for the very same sum, or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from builders import announcement, record
from run_support import KNOWN, announced, clock, digest, gathering

from hefl.client.one_set import OneSet, digest_of
from hefl.client.state import ClientState
from hefl.engines.engine import Terms
from hefl.errors import ConflictError, StaleError, TamperError
from hefl.params import MAX_USELESS_SUMS
from hefl.rounds.events import Abandoned, Announced, Closed, Committed, Declined, Joined, Left, Published, Useless
from hefl.rounds.run import Run, advance
from hefl.rounds.schedule import Abandon, Announce, Close, Finish, announcement_of, decide

WEIGHTS = {"alice": 10, "bob": 20}
MODEL = "ab" * 32


def after_useless(by: Iterable[str] = ("alice",), **changes: Any) -> Run:
    """All three are here; the last sum was of alice and bob, and some say that it made no model."""
    run = gathering(**{"next_round": 2, "rounds": 9, "model": record(announcement(WEIGHTS)), **changes})
    for name in by:
        run = advance(run, Useless(name, 1))
    return run


def open_again(run: Run) -> Run:
    decision = decide(run, clock())
    assert isinstance(decision, Announce)
    return advance(run, Announced(announcement_of(run, decision, values=3, terms=Terms("tenseal"), deadline_s=30.0)))


# --- the server's half ------------------------------------------------------------------------------------------------


def test_after_a_useless_sum_its_members_are_asked_again_with_the_weights_that_they_had() -> None:
    run = advance(after_useless(), Joined("bob", 9999, "0b" * 16))
    assert decide(run, clock()) == Announce("training", ("alice", "bob"), WEIGHTS)
    opened = open_again(run).announcement
    assert opened
    assert {p.name: p.num_examples for p in opened.participants} == WEIGHTS


@pytest.mark.parametrize("silent", [frozenset(), frozenset({"bob"})])
def test_the_server_waits_for_every_member_of_a_useless_sum_however_long(silent: frozenset[str]) -> None:
    run = after_useless()
    run = run if silent else advance(run, Left("bob"))
    assert decide(run, clock(silent=silent, phase_s=1e9, enough_s=1e9)) is None


def test_who_leaves_is_no_reason_for_a_smaller_sum() -> None:
    """One with everybody, and one without bob, would show bob's update to whoever has both."""
    run = open_again(after_useless())
    run = advance(run, Committed("alice", digest("alice"), 10, whole=True))
    late = clock(phase_s=1e9)
    run = dataclasses.replace(run, sessions={**run.sessions, **gathering(["carol"]).sessions})
    decision = decide(run, late)
    assert isinstance(decision, Abandon)
    assert "only a sum with bob may be made" in decision.reason
    assert decide(advance(run, Committed("bob", digest("bob"), 10)), late) == Close()


def test_one_update_that_may_only_be_in_a_whole_sum_is_enough_to_hold_it() -> None:
    """Also where the server knows of no useless sum: the clients' was in an earlier run."""
    run = gathering(next_round=1)
    run = advance(run, Announced(announced(run)))
    for name in ("alice", "bob"):
        run = advance(run, Committed(name, digest(name), 10, whole=name == "bob"))
    assert isinstance(decide(run, clock(phase_s=1e9)), Abandon)
    closed = advance(run, Closed())
    assert closed.announcement
    with pytest.raises(ConflictError, match="may only be summed whole, and there is nothing of carol"):
        advance(closed, Published(record(closed.announcement, ["alice", "bob"])))


def test_a_sum_of_others_is_never_published_though_it_was_announced_before_the_server_could_know() -> None:
    run = gathering(next_round=2, model=record(announcement(WEIGHTS)))
    run = advance(run, Announced(announced(run)))
    for name in KNOWN:
        run = advance(run, Committed(name, digest(name), 10))
    run = advance(run, Closed())
    said = advance(run, Useless("alice", 1))
    assert said.announcement
    assert said.misfit(said.announcement)
    with pytest.raises(ConflictError, match="only its members train again, with the same weights"):
        advance(said, Published(record(said.announcement)))
    advance(run, Published(record(said.announcement)))  # had nobody said so


@pytest.mark.parametrize(
    ("name", "number", "error"),
    [("carol", 1, ConflictError), ("alice", 0, StaleError), ("alice", 2, StaleError)],
)
def test_only_a_member_may_say_so_and_only_of_the_last_training(name: str, number: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        advance(after_useless(()), Useless(name, number))
    with pytest.raises(StaleError):
        advance(
            gathering(next_round=1, model=record(announcement({"alice": 1}, round=0, exchange="initial"))),
            Useless("alice", 0),
        )


def test_who_comes_again_binds_nobody_until_it_says_so_again() -> None:
    """A person may have allowed it another set."""
    run = after_useless(("alice", "bob"))
    run = advance(run, Joined("alice", 10, "0a" * 16))
    assert run.again == WEIGHTS
    run = advance(run, Joined("bob", 20, "0b" * 16))
    assert run.again is None
    assert decide(run, clock()) == Announce("training", KNOWN)


def test_after_so_many_useless_sums_no_further_is_announced() -> None:
    run = after_useless(("bob",))
    for number in range(2, MAX_USELESS_SUMS + 1):
        assert len(run.useless_rounds) == number - 1
        run = open_again(run)
        for name in WEIGHTS:
            run = advance(run, Committed(name, digest(name), 10, whole=True))
        run = advance(run, Closed())
        assert run.announcement
        run = advance(run, Published(record(run.announcement)))
        assert run.again is None
        run = advance(run, Useless("alice", number))
    assert run.useless_rounds == tuple(range(1, MAX_USELESS_SUMS + 1))
    assert decide(run, clock(phase_s=1e9)) is None


def test_a_sum_that_made_a_model_ends_the_count() -> None:
    run = open_again(after_useless())
    for name in WEIGHTS:
        run = advance(run, Committed(name, digest(name), 10, whole=True))
    run = advance(run, Closed())
    assert run.announcement
    run = advance(run, Published(record(run.announcement)))
    assert decide(run, clock()) == Announce("training" if run.next_round <= run.rounds else "closing", KNOWN)
    assert run.useless_rounds == (1,)
    run = advance(run, Announced(announced(run)))
    for name in KNOWN:
        run = advance(run, Committed(name, digest(name), 10))
    run = advance(run, Closed())
    assert run.announcement
    assert advance(run, Published(record(run.announcement))).useless == frozenset()


def test_the_metrics_of_a_model_that_was_in_a_useless_sum_are_told_by_the_same_or_not_at_all() -> None:
    run = after_useless(rounds=1)
    assert decide(run, clock()) == Announce("closing", ("alice", "bob"), WEIGHTS)
    run = advance(run, Left("bob"))
    assert decide(run, clock()) is None
    assert decide(run, clock(phase_s=60.0)) == Finish()


# --- the client's half ------------------------------------------------------------------------------------------------


def limit(**changes: Any) -> OneSet:
    return msgspec.structs.replace(OneSet.after(None, MODEL, record(announcement(WEIGHTS))), **changes)


@pytest.mark.parametrize(
    ("weights", "changes", "difference"),
    [
        (WEIGHTS, {}, None),
        ({"alice": 10, "bob": 21}, {}, "bob weighs 21 and not 20"),
        ({"alice": 10, "carol": 20}, {}, "bob is missing; carol was not in it"),
        ({"alice": 10, "bob": 20, "carol": 1}, {}, "carol was not in it"),
        (WEIGHTS, {"engine": "packed"}, "the engine, precision or weighting is another"),
        (WEIGHTS, {"weighting": "client"}, "the engine, precision or weighting is another"),
    ],
)
def test_a_client_names_what_is_not_the_same_sum_again(
    weights: dict[str, int], changes: dict[str, Any], difference: str | None
) -> None:
    of = announcement(weights, round=2, **changes)
    assert limit().difference(of) == difference
    if difference is None:
        limit().check(of)
        limit().check(record(of))
        return
    with pytest.raises(TamperError, match=f"round 2 starts from a model .* now {difference}") as caught:
        limit().check(of)
    assert (caught.value.check, caught.value.exit_code) == ("one-set", 4)
    assert f"--again {limit().code}" in str(caught.value.hint)


def test_the_members_of_a_sum_count_and_not_who_was_announced() -> None:
    of = announcement({**WEIGHTS, "carol": 5})
    assert OneSet.after(None, MODEL, record(of, WEIGHTS)).members == tuple(WEIGHTS.items())
    with pytest.raises(TamperError, match="bob is missing"):
        limit().check(record(announcement(WEIGHTS), ["alice"]))


def test_a_record_that_is_taken_again_after_a_restart_counts_once() -> None:
    first = record(announcement(WEIGHTS))
    assert OneSet.after(limit(), MODEL, first) == limit()
    other = OneSet.after(limit(), "cd" * 32, first)
    assert (other.model, len(other.sums)) == ("cd" * 32, 1)


def test_a_model_is_spent_after_three_useless_sums() -> None:
    spent, again = limit(), announcement(WEIGHTS, round=9)
    for number in range(2, MAX_USELESS_SUMS + 1):
        spent.check(again)
        spent = OneSet.after(spent, MODEL, record(announcement(WEIGHTS, round=number)))
    assert spent.is_spent
    with pytest.raises(TamperError, match="3 sums of alice, bob made no model") as caught:
        spent.check(again)
    assert caught.value.check == "one-set"


def test_a_person_may_lift_it_once_with_the_code_of_what_was_refused(tmp_path: Path) -> None:
    state = ClientState(tmp_path)
    assert not state.lift("00000000")
    state.limit(limit())
    code = limit().code
    assert not state.lift("00000000")
    assert state.lift(code)
    lifted = ClientState(tmp_path).one_set
    assert lifted
    lifted.check(announcement({"alice": 10, "carol": 3}))
    assert not state.lift(code)
    next_ = OneSet.after(lifted, MODEL, record(announcement(WEIGHTS, round=2)))
    assert (next_.lifted, len(next_.sums)) == (False, 1)
    assert next_.code != code
    assert OneSet.after(lifted, MODEL, record(announcement(WEIGHTS))).lifted  # taken again by a process started anew


def test_a_client_remembers_it_in_its_next_run(tmp_path: Path) -> None:
    from hefl.identity import Identity
    from hefl.protocol.history import Chain

    state = ClientState(tmp_path)
    state.begin(Chain.begin(Identity("ab" * 16, 1), "cd" * 16))
    state.limit(limit())
    state.begin(Chain.begin(Identity("ab" * 16, 1), "ef" * 16))
    assert ClientState(tmp_path).one_set == limit()


def test_a_model_is_known_by_what_the_trainer_gets() -> None:
    model = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(3)]
    assert digest_of(model) == digest_of([a.copy() for a in model])
    others = (
        [model[0].reshape(3, 2), model[1]],
        [model[0].astype(np.float64), model[1]],
        [model[0], np.array(4)],
        [model[0]],
    )
    assert len({digest_of(model), *map(digest_of, others)}) == 5


# --- what a few may not do by saying so -------------------------------------------------------------------------------


def of_three(by: Iterable[str], **changes: Any) -> Run:
    """The last sum was of all three, and some say that it made no model."""
    weights = {"alice": 10, "bob": 20, "carol": 30}
    run = gathering(**{"next_round": 2, "rounds": 9, "model": record(announcement(weights)), **changes})
    for name in by:
        run = advance(run, Useless(name, 1))
    return run


def test_one_of_three_that_says_so_alone_holds_nobody_up_for_who_is_missing() -> None:
    """It may lie; of a sum that made no model the others would say so too."""
    run = advance(of_three(["carol"]), Left("bob"))
    assert decide(run, clock()) == Announce("training", ("alice", "carol"))
    run = advance(advance(of_three(["carol", "alice"]), Left("bob")), Left("alice"))
    assert decide(run, clock(phase_s=1e9)) is None


def test_one_that_demands_a_whole_sum_costs_one_attempt_where_somebody_is_missing() -> None:
    run = gathering(next_round=1)
    for attempt in (1, 2):
        run = advance(run, Announced(announced(run)))
        for name in ("alice", "bob"):
            run = advance(run, Committed(name, digest(name), 10, whole=name == "bob"))
        decision = decide(run, clock(phase_s=1e9))
        if attempt == 1:
            assert isinstance(decision, Abandon)
            run = advance(run, Abandoned(decision.culprits))
    assert decision == Close()


def test_one_that_says_so_and_has_enough_ends_no_training() -> None:
    """Nor a majority that says so: the others have sent their updates."""
    for by, expected in ((["carol"], Close), (["bob", "carol"], Abandon)):
        run = of_three(by)
        for _ in range(2):
            run = open_again(run)
            for name in ("alice", "bob"):
                run = advance(run, Committed(name, digest(name), 10))
            run = advance(run, Declined("carol"))
            decision = decide(run, clock(phase_s=1e9))
            assert isinstance(decision, expected)
            if not isinstance(decision, Abandon):
                break
            run = advance(run, Abandoned(decision.culprits))


def test_an_attempt_that_came_too_early_does_not_count_as_tried() -> None:
    """Otherwise the closing metrics were lost after each useless last training."""
    run = of_three((), rounds=1)
    run = advance(run, Announced(announced(run)))
    run = advance(advance(run, Useless("alice", 1)), Abandoned(is_counted=False))
    assert decide(run, clock()) == Announce("closing", KNOWN, {"alice": 10, "bob": 20, "carol": 30})


def test_useless_sums_of_before_a_person_went_on_do_not_count_again() -> None:
    run = of_three(["alice", "bob"], useless_rounds=(7, 8))
    assert run.useless_rounds == (7, 8, 1)
    for name in KNOWN:
        run = advance(run, Joined(name, 10, f"{KNOWN.index(name):032x}"))
    run = advance(run, Announced(announced(run)))
    for name in KNOWN:
        run = advance(run, Committed(name, digest(name), 10))
    run = advance(run, Closed())
    assert run.announcement
    assert advance(run, Published(record(run.announcement))).useless_rounds == ()


def test_a_client_that_weighs_its_own_update_does_not_repeat_it_with_a_weight_that_it_forgot() -> None:
    with pytest.raises(TamperError, match="does not know by how much it weighed") as caught:
        raise limit().lost()
    assert caught.value.check == "one-set"
