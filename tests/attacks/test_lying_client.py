"""A client that lies, as a real process with valid keys, beside honest ones: what comes of each lie is what is said."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import saved
from federation import Command, Federation

import hefl
from hefl.client.state import ClientState
from hefl.demo.lying_client import CHECKS, OUTCOMES
from hefl.encoding.fixedpoint import FixedPointCodec
from hefl.engines import packed
from hefl.params import CLIENT_LIES, MAX_USELESS_SUMS
from hefl.protocol.messages import decode
from hefl.protocol.records import Record
from hefl.server.journal import FILE

HONEST = ("alice", "bob")
EXAMPLES = {"alice": "30000", "bob": "10"}
STEPS = {"alice": 1.0, "bob": 3.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", *HONEST, "mallory")


class Lying:
    """A run with two honest clients and mallory."""

    def __init__(self, keys: Federation, folder: Path, lie: str, rounds: int, *flags: str) -> None:
        self.folder = folder
        start = ("--rounds", str(rounds), "--min-clients", "2", "--join-wait", "20", "--round-timeout", "60")
        self.server = keys.serve(folder / "server", *start, *flags)
        self.honest = {name: self.client(keys, name) for name in HONEST}
        folder_of = keys.folder / "clients/mallory"
        arguments = (lie, "client", folder_of, "--trainer", "trainers:Drift", "--state", folder / "mallory")
        self.liar = keys.run(*arguments, "--json", "--server", keys.url, module="hefl.cli.lying_client")

    def client(self, keys: Federation, name: str, *flags: str) -> Command:
        env = {"EXAMPLES": EXAMPLES[name], "STEP": str(STEPS[name])}
        return keys.client(name, self.folder / name, "--save", self.folder / f"{name}.npz", *flags, **env)

    def codes(self) -> list[int]:
        return [client.wait() for client in self.honest.values()]

    def records(self) -> list[Record]:
        """All that the server published, from its journal."""
        with closing(sqlite3.connect(self.folder / "server" / FILE)) as db:
            return [decode(body, Record) for (body,) in db.execute("SELECT body FROM record ORDER BY round")]

    def model(self, name: str) -> Mapping[str, Any]:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)


def test_it_is_known_what_comes_of_each_lie_that_the_demo_tells() -> None:
    assert OUTCOMES.keys() == {*CLIENT_LIES, "drop-out", "newcomer"}


@contextmanager
def lying(keys: Federation, folder: Path, lie: str, rounds: int = 4, *flags: str) -> Iterator[Lying]:
    with keys:
        yield Lying(keys, folder, lie, rounds, *flags)


def sums_of(records: list[Record]) -> list[dict[str, int]]:
    return [{m.name: m.weight for m in r.members} for r in records if r.announcement.exchange == "training"]


def some_slow(names: list[str], quick: str) -> list[Any]:
    """One of them in every run of the tests, the others where those run that take long."""
    return [pytest.param(name, marks=[] if name == quick else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("lie", some_slow([lie for lie, check in CHECKS.items() if check == "one-set"], "re-weigh"))
def test_useless_sums_are_the_same_equation_each_time_and_all_stop_after_three(
    made: Federation, tmp_path: Path, lie: str
) -> None:
    """With other weights each time, n - 1 useless sums would be n - 1 equations for the others' updates."""
    with lying(made, tmp_path, lie, 6) as run:
        assert run.codes() == [4, 4], run.honest["alice"].error
        assert run.server.wait() == 1, run.server.error
        sums = sums_of(run.records())
        assert len(sums) == MAX_USELESS_SUMS
        assert all(s == sums[0] for s in sums)
        assert sums[0].keys() == {"alice", "bob", "mallory"}
        for client in run.honest.values():
            assert "hefl: check: one-set" in client.err
            assert "--again" in client.error
        assert "the sums of rounds 1, 2, 3 made no model" in run.server.error
        assert "alice, bob, mallory" in run.server.error
        assert not list(tmp_path.glob("*.npz"))


def test_a_client_that_spoils_a_sum_and_leaves_sees_no_smaller_one(made: Federation, tmp_path: Path) -> None:
    """The difference of the two would be its difference to the update of whoever dropped out."""
    with lying(made, tmp_path, "drop-out") as run:
        assert run.liar.wait() == 0, run.liar.error
        run.server.until("waiting for mallory: after the useless sum of round 1 only its members train again")
        assert [r.announcement.round for r in run.records()] == [0, 1]


@pytest.mark.slow
def test_a_person_may_go_on_without_whoever_left_after_a_useless_sum(made: Federation, tmp_path: Path) -> None:
    with lying(made, tmp_path, "drop-out", 2) as run:
        run.server.until("waiting for mallory: after the useless sum")
        codes = {}
        for name, client in run.honest.items():
            client.stop()
            limit = ClientState(tmp_path / name).one_set
            assert limit
            codes[name] = limit.code
        again = [run.client(made, name, "--again", codes[name]) for name in HONEST]
        assert [client.wait() for client in again] == [0, 0], again[0].error
        assert run.server.wait() == 0
        assert [s.keys() for s in sums_of(run.records())][1:] == [set(HONEST)]
        assert all("it was used" not in client.error for client in again)


def test_who_joins_with_very_many_examples_and_leaves_changes_nobodys_weight(made: Federation, tmp_path: Path) -> None:
    """Weights of 30,000 and 10 became 1 and 1."""
    with lying(made, tmp_path, "ghost", 1) as run:
        assert run.codes() == [0, 0], run.honest["alice"].error
        assert run.server.wait() == 0
        (record,) = (r for r in run.records() if r.announcement.exchange == "training")
        assert record.announcement.num_examples_of("mallory") == 2**24
        assert sums_of([record]) == [{"alice": 30000, "bob": 10}]
    start, share = 0.5, 30000 / 30010
    expected = start * 0.5 + (share * STEPS["alice"] + (1 - share) * STEPS["bob"])
    for name in HONEST:
        np.testing.assert_allclose(run.model(name)["layer.weight"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "lie", some_slow([lie for lie, outcome in OUTCOMES.items() if outcome == "refused"], "damaged-block")
)
def test_what_the_server_refuses_hurts_nobody_else(made: Federation, tmp_path: Path, lie: str) -> None:
    with lying(made, tmp_path, lie, 2, "--round-timeout", "8", "--join-wait", "6") as run:
        assert run.codes() == [0, 0], run.honest["alice"].error
        assert run.server.wait() == 0
        liar_was_in = [s for s in sums_of(run.records())[lie == "replay" :] if "mallory" in s]
        assert not liar_was_in
        assert any(e["event"] == "refused" and e["client"] == "mallory" for e in run.server.events), run.server.error


@pytest.mark.slow
def test_a_false_tag_stops_all_as_if_the_server_had_lied(made: Federation, tmp_path: Path) -> None:
    with lying(made, tmp_path, "false-tag") as run:
        assert run.codes() == [4, 4]
        assert all("hefl: check: tag" in client.err for client in run.honest.values())


@pytest.mark.slow
def test_a_false_tag_tells_its_sender_no_more_where_clients_skip_than_a_useless_sum(
    made: Federation, tmp_path: Path
) -> None:
    """It can read that sum, for it knows the tag that belongs there."""
    with made as keys:
        run = Lying.__new__(Lying)
        run.folder = tmp_path
        run.server = keys.serve(tmp_path / "server", "--rounds", "6", "--min-clients", "3")
        run.honest = {n: keys.client(n, tmp_path / n, "--on-tamper", "skip", EXAMPLES=EXAMPLES[n]) for n in HONEST}
        where = ("client", keys.folder / "clients/mallory", "--trainer", "trainers:Drift", "--state", tmp_path / "m")
        keys.run("false-tag", *where, "--on-tamper", "skip", "--server", keys.url, module="hefl.cli.lying_client")
        assert run.codes() == [4, 4], run.honest["alice"].error
        assert run.server.wait() == 1
        sums = sums_of(run.records())
        assert len(sums) == MAX_USELESS_SUMS
        assert all(s == sums[0] for s in sums)


@pytest.mark.parametrize(
    "lie",
    some_slow(
        [*(n for n, outcome in OUTCOMES.items() if outcome in ("seen", "unseen")), "always-cut"], "false-useless"
    ),
)
def test_a_lie_that_nobody_can_refuse_leaves_honest_clients_with_one_model(
    made: Federation, tmp_path: Path, lie: str
) -> None:
    with lying(made, tmp_path, lie, 3) as run:
        assert run.codes() == [0, 0], run.honest["alice"].error
        assert (run.server.wait(), run.liar.wait()) == (0, 0)
        assert len(sums_of(run.records())) == 3
        if lie == "false-useless":
            assert "round 1 made no model, says mallory; in it were alice, bob, mallory" in run.server.error
    models = [run.model(name) for name in HONEST]
    for tensor, value in models[0].items():
        np.testing.assert_array_equal(value, models[1][tensor])
        assert np.abs(value).max() > 0


@pytest.mark.parametrize("rounds", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_who_comes_late_does_not_believe_a_range_that_those_with_a_model_refuse(tmp_path: Path, rounds: int) -> None:
    """It took twice the values, and confirmed the same head; or it spoilt the next sums itself."""
    with Federation(tmp_path / "fed", *HONEST, "carol", "mallory") as keys:
        flags = ("--rounds", str(rounds), "--min-clients", "3", "--linger", "60")
        server = keys.serve(tmp_path / "server", *flags)
        clients = [keys.client(n, tmp_path / n, "--save", tmp_path / f"{n}.npz") for n in HONEST]
        where = ("client", keys.folder / "clients/mallory", "--trainer", "trainers:Drift", "--state", tmp_path / "m")
        keys.run("newcomer", *where, "--server", keys.url, module="hefl.cli.lying_client", env={"EXAMPLES": "20"})
        assert [client.wait() for client in clients] == [0, 0], clients[0].error
        assert "round 2 changes nothing" in clients[0].error
        late = keys.client("carol", tmp_path / "carol", "--save", tmp_path / "carol.npz")
        assert (late.wait(), server.wait()) == (0, 0), late.error
        if rounds == 2:  # later on it begins with a sum after that
            assert "round 2 changes nothing" in late.error
    assert saved(tmp_path / "carol.npz") == saved(tmp_path / "alice.npz")


def test_a_client_with_one_example_in_thirty_thousand_can_turn_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights do not bound influence, for nobody sees a single update: SECURITY.md says so."""
    secret = hefl.generate_secret()
    attempt = hefl.announce(secret.public(), {"honest": 30_010, "mallory": 1}, values=3)
    honest = np.array([0.5, -0.25, 0.125])
    updates = [hefl.encrypt(honest, secret, attempt, "honest")]
    encode = FixedPointCodec.encode_model

    def forged(codec: FixedPointCodec, *arguments: Any) -> Any:
        vector = encode(codec, *arguments)
        vector[:3] *= -2 * 30_010
        return vector

    monkeypatch.setattr(FixedPointCodec, "encode_model", forged)
    monkeypatch.setattr(packed, "_check_vector", lambda vector, plan: None)
    updates.append(hefl.encrypt(honest, secret, attempt, "mallory"))
    monkeypatch.undo()
    mean = hefl.decrypt(hefl.aggregate(updates, secret.public(), attempt), secret, attempt)
    np.testing.assert_allclose(mean, -honest, rtol=1e-4)
