"""What a client checks of a server before it does what it is asked, with real keys and a real learner."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from federation import Federation
from helpers import announcement, record
from trainers import Drift

from hefl.client import Client
from hefl.clientstate import ClientState
from hefl.engine import load_engine
from hefl.errors import ConflictError, TamperError, TrainerError
from hefl.history import Announcement, Participant
from hefl.keys import authority, party
from hefl.learner import Learner, RoundReport
from hefl.patience import Patience, Progress
from hefl.protocol import View, Welcome

RUN = "ab" * 16


@pytest.fixture
def client(tmp_path: Path) -> Client:
    authority.create(tmp_path / "fed", ["alice", "bob"])
    folder = party.read_client_folder(tmp_path / "fed/clients/alice")
    learner = Learner("alice", Drift(), folder.secret, load_engine("packed"))
    made = Client(folder, learner, ClientState(tmp_path))
    made._welcome = Welcome(run=RUN, rounds=3)
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
    assert client._is_asked(asked(client, 10))
    with pytest.raises(TamperError, match="announces 1 examples for alice") as caught:
        client._is_asked(asked(client, 1))
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
    last = record(msgspec.structs.replace(asked(client, 10), round=model))
    view = View(version=1, phase="draining", announcement=None, committed=False, model=last, closing=None)
    with caplog.at_level("INFO", logger="hefl"):
        client._say_how_it_ended(view)
    assert [r.message for r in caplog.records][:1] == ([text] if text else [])


def test_a_client_refuses_an_announcement_of_another_run(client: Client) -> None:
    with pytest.raises(ConflictError, match="another run"):
        client._is_asked(asked(client, 10, run="cd" * 16))


@pytest.mark.parametrize("where", ["model", "closing"])
def test_a_client_refuses_a_genuine_record_of_another_run_or_in_anothers_place(client: Client, where: str) -> None:
    old, mine = asked(client, 10, run="cd" * 16), asked(client, 10)
    wrong = msgspec.structs.replace(mine, exchange="closing" if where == "model" else "training", round=4)
    for shown, text in ((old, "another run"), (wrong, "in another's place")):
        if text == "another run" and where == "closing":
            shown = msgspec.structs.replace(shown, exchange="closing")
        view = View(version=1, phase="gathering", announcement=None, committed=False, model=None, closing=None)
        view = msgspec.structs.replace(view, **{where: record(shown)})
        with pytest.raises(ConflictError, match=text):
            asyncio.run(client._take_records(view))


def test_a_callback_that_raises_ends_the_run_with_what_it_said_and_no_hang(tmp_path: Path) -> None:
    """One client in this process, the others and the server in theirs."""

    def failing(report: RoundReport) -> None:
        raise RuntimeError("the plotting window is gone")

    with Federation(tmp_path / "fed", "alice", "bob") as keys:
        keys.serve(tmp_path / "server", "--rounds", "2")
        keys.client("bob", tmp_path / "bob")
        folder = party.read_client_folder(keys.folder / "clients/alice")
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
        folder = party.read_client_folder(keys.folder / "clients/alice")
        learner = Learner("alice", Drift(), folder.secret, load_engine("packed"))
        (tmp_path / "alice").mkdir()
        asyncio.run(Client(folder, learner, ClientState(tmp_path / "alice"), url=keys.url, on_round=told.append).run())
        assert (bob.wait(), server.wait()) == (0, 0)
    assert [(r.round, r.rounds, r.verified) for r in told] == [(n, 2, True) for n in range(4)]
    assert [r.metrics for r in told] == [e["metrics"] for e in bob.events if e["event"] == "round"]
