"""A server that lies, as a real process with real clients: each lie is noticed in its round, by its check."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from federation import Command, Federation

from hefl.demo.forgeries import SUM_LIES
from hefl.params import LIES

NAMES = ("alice", "bob", "carol")

SHOWN = {
    "fork": ("carol", 2, "head"),
    "rewind": ("alice", 2, "history"),
    "false-head": ("alice", 1, "head"),
    "false-weight": ("alice", 1, "own-weight"),
    "isolate": ("alice", 1, "enough-participants"),
}
"""Who notices which lie of what is shown, before which round's upload, and by which check."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", *NAMES)


def serve(keys: Federation, lie: str, state: Path, *flags: str) -> Command:
    """``hefl serve`` with a server that lies."""
    where = (keys.folder / "server", "--port", "0", "--state", state, "--json")
    server = keys.run(lie, "serve", *where, *flags, module="hefl.cli.lying_server")
    server.until("listening")
    keys.url = server.events[0]["url"]
    return server


def uploads(client: Command) -> int:
    return sum("sent" in line and "kB" in line for line in client.err)


def test_the_lies_that_can_be_named_are_all_there_are() -> None:
    assert (*SUM_LIES, *SHOWN) == tuple(LIES)


def test_each_lie_that_can_be_named_is_explained_in_a_line_of_a_narrow_terminal() -> None:
    shown = Command("demo", "--help", env={"COLUMNS": "80"})
    assert shown.wait() == 0
    assert all(f"    {lie:<16} {what}" in shown.out for lie, what in LIES.items())
    assert max(map(len, shown.out)) <= 80


@pytest.mark.parametrize("lie", SHOWN)
def test_what_single_clients_are_shown_falsely_is_noticed_before_they_upload(
    made: Federation, tmp_path: Path, lie: str
) -> None:
    who, number, check = SHOWN[lie]
    with made as keys:
        serve(keys, lie, tmp_path / "server", "--rounds", "4", "--min-clients", "3", "--round-timeout", "8")
        clients = {name: keys.client(name, tmp_path / name) for name in NAMES}
        assert clients[who].wait() == 4, clients[who].error
        assert f"hefl: check: {check}" in clients[who].err
        # alice begins the run with the initial arrays; nobody uploads once for the round of the lie
        assert uploads(clients[who]) == number - 1 + (who == "alice")


@pytest.mark.parametrize("lie", ["add-to-lane", "replay-update"])
def test_a_false_sum_stops_every_client_with_exit_code_4_and_the_name_of_the_check(
    made: Federation, tmp_path: Path, lie: str
) -> None:
    with made as keys:
        server = serve(keys, lie, tmp_path / "server", "--rounds", "4", "--min-clients", "3")
        clients = [keys.client(name, tmp_path / name, "--save", tmp_path / f"{name}.npz") for name in NAMES]
        for client in clients:
            assert client.wait() == 4, client.error
            assert "hefl: check: tag" in client.err
        assert not list(tmp_path.glob("*.npz"))
    # Its bytes are those that the server sent: no lie is asked for again.
    fetched = [(e["client"], e["round"]) for e in server.events if e["event"] == "download"]
    assert len(fetched) == len(set(fetched)) > 0


def test_clients_that_skip_a_false_sum_keep_the_last_good_model_and_go_on(made: Federation, tmp_path: Path) -> None:
    with made as keys:
        server = serve(keys, "add-to-margin", tmp_path / "server", "--rounds", "2")
        clients = [keys.client(name, tmp_path / name, "--on-tamper", "skip") for name in NAMES]
        assert [c.wait() for c in clients] == [0, 0, 0], clients[0].error
        assert server.wait() == 0
        for client in clients:
            assert sum("did not pass the check 'tag'" in line for line in client.err) == 2
            losses = [e["metrics"]["loss"] for e in client.events if e["event"] == "round" and e["round"] > 0]
            assert losses[0] is None  # of the rounds whose sums are lies
            assert losses[-1] == pytest.approx(0.5)  # of the initial model, which stayed
            # Nobody has the model of the last round, and so nobody confirms it.
            (told,) = (e for e in client.events if e["event"] == "confirmed")
            assert (told["by"], len(told["missing"])) == ([], 2)


def test_the_demo_ends_with_exit_code_4_and_the_name_of_the_check(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "hefl.cli", "demo", "--tamper", "scale-client", "--rounds", "3"]
    demo = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), timeout=100)
    assert demo.returncode == 4, demo.stderr
    assert "hefl: check: tag" in demo.stderr.splitlines()
    assert not list(tmp_path.iterdir())


def test_a_fork_takes_three_clients(tmp_path: Path) -> None:
    command = Command("demo", "--tamper", "fork", cwd=tmp_path)
    assert command.wait() == 2
    assert "--clients 3" in command.error


def test_lies_need_an_engine_that_verifies(tmp_path: Path) -> None:
    command = Command("demo", "--tamper", "fork", "--clients", "3", "--engine", "tenseal", cwd=tmp_path)
    assert command.wait() == 3
