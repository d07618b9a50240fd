"""What a client checks of a server before it does what it is asked, with real keys and a real learner."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import announcement, record, wide_noise
from federation import Federation
from trainers import Drift

from hefl.client.callbacks import RoundReport
from hefl.client.client import Client
from hefl.client.early_stopping import Patience, Progress
from hefl.client.global_model import GlobalModel
from hefl.client.learner import Learner
from hefl.client.outcome import say_how_it_ended
from hefl.client.state import ClientState
from hefl.encoding.codec import RoundKind
from hefl.engines import packed
from hefl.engines.load import load_engine
from hefl.errors import StaleError, TamperError, TrainerError, UnreachableError
from hefl.files import private_folder
from hefl.keys import authority, folders
from hefl.protocol.messages import View, Welcome
from hefl.protocol.records import Announcement, Participant, Record, genesis
from hefl.protocol.updates import Aggregation

RUN = "ab" * 16


@pytest.fixture
def client(tmp_path: Path) -> Client:
    authority.create(tmp_path / "fed", ["alice", "bob"])
    folder = folders.read_client_folder(tmp_path / "fed/clients/alice")
    learner = Learner("alice", Drift(), folder.secret, load_engine("packed"))
    made = Client(folder, learner, ClientState(tmp_path))
    made._welcome, made._rounds = Welcome(run=RUN), 3
    made._state.tell(10)
    return made


def asked(client: Client, num_examples: int, run: str = RUN) -> Announcement:
    return announcement(
        engine="packed",
        run=run,
        participants=(
            Participant(name="alice", num_examples=num_examples, join_nonce=client._state.join_nonce),
            Participant(name="bob", num_examples=60_000, join_nonce="00" * 16),
        ),
    )


def test_a_client_refuses_a_number_of_examples_that_it_never_told(client: Client) -> None:
    assert client._is_asked(asked(client, 10), 1)
    with pytest.raises(TamperError, match="announces 1 examples for alice") as caught:
        client._is_asked(asked(client, 1), 1)
    assert (caught.value.check, caught.value.exit_code) == ("own-weight", 4)


@pytest.mark.parametrize(
    ("model", "since", "text"),
    [
        (2, 2, "stopped after round 2 of 3: no better validation loss for 2 rounds"),
        (2, 1, "the run ended after round 2 of 3, and this client did not decide so"),
        (3, 0, None),
        (3, 2, None),
    ],
)
def test_a_client_says_whether_an_early_end_was_its_own_decision(
    client: Client, caplog: pytest.LogCaptureFixture, model: int, since: int, text: str | None
) -> None:
    client._learner._patience = Patience(2)
    client._learner.progress = Progress(1.0, since)
    client._learner.model = GlobalModel(model, [])
    last = record(msgspec.structs.replace(asked(client, 10), round=model))
    view = shown(model=last, closing=record(announcement(engine="packed", round=model + 1, exchange="closing")))
    with caplog.at_level("INFO", logger="hefl"):
        say_how_it_ended(view, client._learner, 3)
    assert [r.message for r in caplog.records][:1] == ([text] if text else [])


def shown(**changes: Any) -> View:
    view = View(version=1, rounds=3, phase="gathering", announcement=None, committed=False, model=None, closing=None)
    return msgspec.structs.replace(view, **changes)


def first_record(client: Client) -> Record:
    of = announcement(
        {"bob": 1}, engine="packed", run=RUN, head=client._follower.chain.head, round=0, exchange="initial"
    )
    return record(of)


def test_a_client_follows_what_continues_its_history_and_remembers_it(client: Client) -> None:
    client._follower.begin(RUN)
    first = first_record(client)
    asyncio.run(client._follower.follow(shown(model=first)))
    assert (client._follower.chain.round, client._follower.chain.head) == (0, first.head)
    assert ClientState(client._state.update.parent).chain == client._follower.chain
    asyncio.run(client._follower.follow(shown(model=first)))
    with pytest.raises(TamperError) as caught:
        asyncio.run(client._follower.follow(shown()))
    assert caught.value.check == "history"


def test_a_client_refuses_a_genuine_record_in_anothers_place(client: Client) -> None:
    client._follower.begin(RUN)
    with pytest.raises(TamperError, match="in another's place"):
        asyncio.run(client._follower.follow(shown(closing=first_record(client))))


def test_a_closing_record_counts_where_it_comes_after_the_model() -> None:
    """In a run that was extended, the one of before tells nothing of the model that came since."""
    first, later = (record(announcement(engine="packed", round=n)) for n in (3, 4))
    closing = record(announcement(engine="packed", round=4, exchange="closing"))
    older_closing = record(announcement(engine="packed", round=3, exchange="closing"))
    assert shown(model=first, closing=closing).records == (first, closing)
    assert shown(model=later, closing=older_closing).records == (later,)
    assert (shown(model=later).records, shown().records) == ((later,), ())


def test_a_client_does_not_leave_an_unfinished_run_for_another_unasked(client: Client) -> None:
    client._follower.begin(RUN)
    asyncio.run(client._follower.follow(shown(model=first_record(client))))
    with pytest.raises(TamperError, match="is in another run") as caught:
        client._follower.begin("cd" * 16)
    assert (caught.value.check, "--state" in str(caught.value.hint)) == ("run", True)
    client._state.follow(msgspec.structs.replace(client._follower.chain, ended=True))
    client._follower.begin("cd" * 16)
    assert client._follower.chain.round == -1


def test_a_client_takes_part_only_with_as_many_as_it_wants(client: Client) -> None:
    client._min_participants = 3
    with pytest.raises(TamperError, match="announced to 2 clients") as caught:
        client._is_asked(asked(client, 10), 1)
    assert caught.value.check == "enough-participants"


def test_a_callback_that_raises_ends_the_run_with_what_it_said_and_no_hang(tmp_path: Path) -> None:
    """One client in this process, the others and the server in theirs."""

    def failing(report: RoundReport) -> None:
        raise RuntimeError("the plotting window is gone")

    with Federation(tmp_path / "fed", "alice", "bob") as keys:
        keys.serve(tmp_path / "server", "--rounds", "2")
        keys.client("bob", tmp_path / "bob")
        folder = folders.read_client_folder(keys.folder / "clients/alice")
        learner = Learner("alice", Drift(), folder.secret, load_engine("packed"))
        (tmp_path / "alice").mkdir()
        client = Client(folder, learner, ClientState(tmp_path / "alice"), url=keys.url, on_round=failing)
        with pytest.raises(TrainerError, match="on_round failed: RuntimeError: the plotting window is gone"):
            asyncio.run(client.run())


def test_a_callback_is_told_each_round_in_order(tmp_path: Path) -> None:
    told: list[RoundReport] = []
    with Federation(tmp_path / "fed", "alice", "bob") as keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2")
        bob = keys.client("bob", tmp_path / "bob")
        folder = folders.read_client_folder(keys.folder / "clients/alice")
        learner = Learner("alice", Drift(), folder.secret, load_engine("packed"))
        (tmp_path / "alice").mkdir()
        asyncio.run(Client(folder, learner, ClientState(tmp_path / "alice"), url=keys.url, on_round=told.append).run())
        assert (bob.wait(), server.wait()) == (0, 0)
    assert [(r.round, r.rounds, r.verified) for r in told] == [(n, 2, True) for n in range(4)]
    assert [r.metrics for r in told] == [e["metrics"] for e in bob.events if e["event"] == "round"]


def test_a_server_may_choose_among_the_newest_two_weights_that_a_client_told_in_its_run(client: Client) -> None:
    client._follower.begin(RUN)
    for number in (11, 12, 13):
        client._state.tell(number)
    assert client._state.told == {10, 11, 12, 13}  # none is void while a round is open
    asyncio.run(client._follower.follow(shown(model=first_record(client))))
    assert client._state.told == {12, 13}
    with pytest.raises(TamperError, match="announces 11 examples") as caught:
        client._is_asked(asked(client, 11), 1)
    assert caught.value.check == "own-weight"
    assert client._is_asked(asked(client, 12), 1)
    client._state.follow(msgspec.structs.replace(client._follower.chain, ended=True))
    client._follower.begin("cd" * 16)
    assert client._state.told == {13}


def test_what_is_kept_of_a_run_goes_when_another_begins(client: Client) -> None:
    client._follower.begin(RUN)
    kept = client._state.aggregate.parent / "aggregates" / "0000000005.agg"
    kept.write_bytes(b"of the run before")
    client._follower.begin(RUN)
    assert kept.exists()
    client._follower.begin("cd" * 16)
    assert not kept.exists()


class Course:
    """A run of bob and carol, round by round, whose sums alice may take or miss; all have the same patience."""

    def __init__(self, folder: Path, head: str) -> None:
        fed = folder / "fed"
        self.folder, self.engine, self.head, self.number = folder, load_engine("packed"), head, 0
        self.public = folders.read_server_folder(fed / "server").public
        self.secret = folders.read_client_folder(fed / "clients/bob").secret
        self.learners = {name: self.learner(name) for name in ("bob", "carol")}

    def learner(self, name: str) -> Learner:
        return Learner(name, Drift(), self.secret, self.engine, patience=9)

    def client(self) -> Client:
        """Alice, as she starts, with what an earlier start has left."""
        keys = folders.read_client_folder(self.folder / "fed/clients/alice")
        return Client(keys, self.learner("alice"), ClientState(private_folder(self.folder / "alice")))

    def play(self, exchange: RoundKind, monkeypatch: pytest.MonkeyPatch, *, useless: bool = False) -> Record:
        """One round; its sum can be used, or not."""
        names = ("bob", "carol") if self.number else ("bob",)
        asked = announcement(
            engine="packed",
            run=RUN,
            head=self.head,
            round=self.number,
            exchange=exchange,
            values=self.learners["bob"].values(exchange),
            participants=tuple(Participant(name=n, num_examples=10, join_nonce="00" * 16) for n in names),
        )
        aggregation, path = Aggregation(self.public, self.engine, asked), self.folder / "update"
        for name in names:
            with monkeypatch.context() as patch:
                if useless and name == "bob":
                    patch.setattr(packed, "draw_noise", wide_noise)
                with path.open("wb") as file:
                    self.learners[name].write_update(file, asked)
            aggregation.add(aggregation.open(path, name), name)
        with (self.folder / "sum").open("wb") as file:
            made = aggregation.finish(file)
        for learner in self.learners.values():
            learner.accept(self.folder / "sum", made)
        self.head, self.number = made.head, self.number + 1
        return made

    def take(self, client: Client, record: Record) -> None:
        """Let alice have the last sum."""
        client._state.aggregate.write_bytes((self.folder / "sum").read_bytes())
        client._receiver.accept(record)

    def is_same(self, learner: Learner) -> bool:
        """Whether she has the others' model and thinks the same of it."""
        bob = self.learners["bob"]
        assert bob.model
        assert learner.model
        same = all((a == b).all() for a, b in zip(learner.model.arrays, bob.model.arrays, strict=True))
        return same and (learner.model.round, learner.progress) == (bob.model.round, bob.progress)


@pytest.fixture
def course(tmp_path: Path) -> Course:
    authority.create(tmp_path / "fed", ["alice", "bob", "carol"])
    identity = folders.read_client_folder(tmp_path / "fed/clients/alice").secret.identity
    course = Course(tmp_path, genesis(identity, RUN))
    course.client()._follower.begin(RUN)
    return course


@pytest.mark.parametrize("useless", [0, 1, 2])
def test_a_client_that_was_started_again_after_useless_rounds_has_what_the_others_have(
    course: Course, monkeypatch: pytest.MonkeyPatch, useless: int
) -> None:
    """Otherwise it could not train, and with two clients the run would never go on."""
    alice = course.client()
    course.take(alice, course.play("initial", monkeypatch))
    course.take(alice, course.play("training", monkeypatch))
    course.take(alice, last := course.play("training", monkeypatch))
    for _ in range(useless):
        course.take(alice, last := course.play("training", monkeypatch, useless=True))
    assert course.is_same(alice._learner)
    again = course.client()  # its last record is shown to it once more
    course.take(again, last)
    assert course.is_same(again._learner)
    course.take(course.client(), last := course.play("training", monkeypatch, useless=True))  # or one that came since
    course.take(later := course.client(), last)
    assert course.is_same(later._learner)


def test_a_client_that_missed_a_model_does_not_take_an_older_one_for_it(
    course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = course.client()
    course.take(alice, course.play("initial", monkeypatch))
    course.play("training", monkeypatch)
    for exchange in ("training", "closing"):
        last = course.play(exchange, monkeypatch, useless=exchange == "training")
        course.take(alice, last)
        assert alice._learner.model is None
        again = course.client()
        course.take(again, last)
        assert again._learner.model is None
    course.take(alice, course.play("training", monkeypatch))
    assert course.is_same(alice._learner)


@pytest.mark.parametrize("phase", ["gathering", None])
def test_a_client_whose_confirmation_comes_too_late_stays_where_the_run_goes_on(
    client: Client, monkeypatch: pytest.MonkeyPatch, phase: str | None
) -> None:
    """And ends, with its model, where the server is gone."""
    client._follower.begin(RUN)
    client._learner.model = GlobalModel(0, [])

    async def refused(*_: object) -> bytes:
        raise StaleError("no place for it")

    async def heard() -> View:
        if phase is None:
            raise UnreachableError("nobody answers")
        return shown(phase=phase)

    monkeypatch.setattr(client._connection, "call", refused)
    monkeypatch.setattr(client._poller, "next", heard)
    view = shown(model=first_record(client), phase="draining")
    assert asyncio.run(client._confirm(view)) is (phase is None)


def test_a_client_does_not_end_a_run_without_its_last_aggregate(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client._follower.begin(RUN)
    view = shown(model=first_record(client), phase="draining")
    asyncio.run(client._follower.follow(view))

    async def refused(view: View) -> None:
        """As where the server answers 410."""

    monkeypatch.setattr(client, "_take_records", refused)
    monkeypatch.setattr("hefl.client.client.FETCH_AGAIN_S", 0.0)
    with pytest.raises(TamperError, match="does not give the aggregate") as caught:
        asyncio.run(client._take_last(view))
    assert caught.value.check == "history"
    client._taken = 0
    asyncio.run(client._take_last(view))
