"""What a client checks of a server before it does what it is asked, with real keys and a real learner."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from helpers import announcement, record
from trainers import Drift

from hefl.client import Client
from hefl.clientstate import ClientState
from hefl.engine import load_engine
from hefl.errors import ConflictError, TamperError
from hefl.history import Announcement, Participant
from hefl.keys import authority, party
from hefl.learner import Learner
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
