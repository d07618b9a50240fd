"""Server and clients as real processes, over real TLS sockets, against numpy."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from builders import redigested, saved
from federation import Federation

from hefl.client.kept_models import read_model
from hefl.errors import MismatchError, StateError, TamperError
from hefl.keys import authority, folders
from hefl.protocol import messages
from hefl.protocol.compact_records import decode_records
from hefl.protocol.records import Record, genesis

ROWS = {"alice": 9, "bob": 2, "carol": 700}
"""With which the clients validate: not those with which they train."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob", "carol")


def fedavg(rounds: int, clients: list[tuple[int, float]]) -> list[list[Any]]:
    """Drift trained in plain numpy, in double precision: models 0 to rounds."""
    total = sum(count for count, _ in clients)
    models: list[list[Any]] = [[np.full((3, 4), 0.5), np.zeros(4), np.array(7.0)]]
    for _ in range(rounds):
        weight, bias, steps = models[-1]
        models.append(
            [
                sum(n * (weight * 0.5 + step) for n, step in clients) / total,
                sum(n * (bias + step / 3) for n, step in clients) / total,
                steps + 1,
            ]
        )
    return models


@pytest.mark.parametrize("engine", ["packed", "tenseal", "plaintext"])
def test_three_clients_of_different_sizes_train_numpys_weighted_mean(
    keys: Federation, tmp_path: Path, engine: str
) -> None:
    who = {"alice": (10, 0.1), "bob": (25, -0.2), "carol": (7, 0.35)}
    flags = ["--engine", engine, *(["--insecure-plaintext"] if engine == "plaintext" else [])]
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3", *flags)
        clients = {
            name: keys.client(
                name,
                tmp_path / name,
                "--save",
                tmp_path / f"{name}.npz",
                *flags,
                EXAMPLES=str(count),
                STEP=str(step),
                ROWS=str(ROWS[name]),
            )
            for name, (count, step) in who.items()
        }
        assert [c.wait() for c in clients.values()] == [0, 0, 0], [c.error for c in (*clients.values(), server)]
        assert server.wait() == 0, server.error
    models = fedavg(3, list(who.values()))
    saved = {name: np.load(tmp_path / f"{name}.npz", allow_pickle=False) for name in who}
    for model in saved.values():
        assert model.files == ["layer.weight", "layer.bias", "steps"]
        assert [model[n].dtype.name for n in model.files] == ["float32", "float64", "int64"]
        for name, expected in zip(model.files, models[3], strict=True):
            np.testing.assert_allclose(model[name], expected, rtol=0, atol=1e-6)
        assert all((model[n] == saved["alice"][n]).all() for n in model.files)

    assert all(e["verified"] is (engine == "packed") for e in clients["bob"].events if e["event"] == "round")
    rounds = [e for e in clients["bob"].events if e["event"] == "round"]
    assert [e["round"] for e in rounds] == [0, 1, 2, 3, 4]
    accuracy = np.average([0.01, -0.02, 0.035], weights=list(ROWS.values()))
    for event, model in zip(rounds[1:], models, strict=True):
        assert event["metrics"]["loss"] == pytest.approx(model[0].mean(), abs=1e-6)
        assert event["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert [e["in"] for e in server.events if e["event"] == "round"] == [["alice"], *[["alice", "bob", "carol"]] * 4]
    assert server.events[-1] == {"event": "ended", "rounds": 3, "lacking": []}


@pytest.mark.slow
def test_a_finished_run_ends_at_once_and_is_not_overwritten(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1", "--join-wait", "0")
        clients = [keys.client(n, tmp_path / n) for n in ("alice", "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]
        before = sorted((p, p.read_bytes()) for p in (tmp_path / "server").rglob("*") if p.is_file())
        again = keys.run(
            "serve", keys.folder / "server", "--port", "0", "--state", tmp_path / "server", "--rounds", "1"
        )
        assert again.wait() == 0
        assert "has ended already" in again.error
    assert sorted((p, p.read_bytes()) for p in (tmp_path / "server").rglob("*") if p.is_file()) == before


def test_a_finished_run_goes_on_with_more_rounds_and_trains_what_a_longer_one_would_have(
    keys: Federation, tmp_path: Path
) -> None:
    who = {"alice": (10, 0.1), "bob": (25, -0.2)}
    numbers = []
    with keys:
        for rounds in ("2", "3", "5"):
            server = keys.serve(tmp_path / "server", "--rounds", rounds, "--join-wait", "0")
            clients = [
                keys.client(n, tmp_path / n, "--save", tmp_path / f"{n}.npz", "--force", EXAMPLES=str(e), STEP=str(s))
                for n, (e, s) in who.items()
            ]
            assert [c.wait() for c in (*clients, server)] == [0, 0, 0], [c.error for c in (*clients, server)]
            numbers.append([e["round"] for e in server.events if e["event"] == "round"])
            saved = [np.load(tmp_path / f"{n}.npz", allow_pickle=False) for n in who]
            for name, expected in zip(saved[0].files, fedavg(int(rounds), list(who.values()))[-1], strict=True):
                np.testing.assert_allclose(saved[0][name], expected, rtol=0, atol=1e-6)
                assert (saved[0][name] == saved[1][name]).all()
    # Round numbers only rise: each closing exchange has its own, and the trainings go on after it.
    assert numbers == [[0, 1, 2, 3], [4, 5], [6, 7, 8]]


def test_a_client_that_is_killed_is_done_without_after_the_deadline(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3", "--round-timeout", "2")
        others = [keys.client(n, tmp_path / n, "--save", tmp_path / f"{n}.npz") for n in ("alice", "bob")]
        carol = keys.client("carol", tmp_path / "carol", trainer="trainers:Slow", SLEEP="60")
        server.until("round 2, attempt 1: training of alice, bob, carol")
        carol.child.kill()
        assert [c.wait() for c in others] == [0, 0], [c.error for c in others]
        assert server.wait() == 0
    second = next(e for e in server.events if e["event"] == "round" and e["round"] == 2)
    assert second["in"] == ["alice", "bob"]
    assert second["missed"] == ["carol"]


def test_a_straggler_hears_that_it_missed_the_round_and_joins_the_next(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "40", "--round-timeout", "1")
        others = [keys.client(n, tmp_path / n) for n in ("alice", "bob")]
        carol = keys.client("carol", tmp_path / "carol", trainer="trainers:Slow", SLEEP="2")
        carol.until("round 2 was missed")
        assert [c.wait() for c in (*others, carol, server)] == [0, 0, 0, 0], carol.error
    ins = {e["round"]: e["in"] for e in server.events if e["event"] == "round"}
    assert ins[2] == ["alice", "bob"]
    assert ins[41] == ["alice", "bob", "carol"]


def test_too_few_updates_at_the_deadline_mean_a_new_attempt_and_it_is_said(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2", "--round-timeout", "2", "--join-wait", "0")
        alice = keys.client("alice", tmp_path / "alice")
        bob = keys.client("bob", tmp_path / "bob", trainer="trainers:Slow", SLEEP="3")
        assert [c.wait() for c in (alice, bob, server)] == [0, 0, 0], bob.error
    assert "round 2: the deadline passed with 1 of at least 2 updates in; trying again" in server.error
    attempts = [e["attempt"] for e in server.events if e["event"] == "announced" and e["round"] == 2]
    assert attempts == [1, 2]
    assert {e["round"]: e["in"] for e in server.events if e["event"] == "round"}[2] == ["alice", "bob"]


def test_a_number_of_examples_that_changes_weighs_from_the_next_round_on(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3", "--join-wait", "0")
        save = ("--save", tmp_path / "alice.npz")
        alice = keys.client("alice", tmp_path / "alice", *save, trainer="trainers:Growing", EXAMPLES="10", STEP="0.1")
        bob = keys.client("bob", tmp_path / "bob", EXAMPLES="25", STEP="-0.2")
        assert [c.wait() for c in (alice, bob, server)] == [0, 0, 0], alice.error
    bias = np.zeros(4)
    for weight in (10, 13, 16):
        bias = np.average([bias + 0.1 / 3, bias - 0.2 / 3], axis=0, weights=[weight, 25])
    model = np.load(tmp_path / "alice.npz", allow_pickle=False)
    np.testing.assert_allclose(model["layer.bias"], bias, rtol=0, atol=1e-6)


def test_a_client_without_its_state_gets_a_new_attempt_at_once(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2", "--round-timeout", "60")
        others = [keys.client(n, tmp_path / n) for n in ("alice", "bob")]
        carol = keys.client("carol", tmp_path / "carol", trainer="trainers:Slow", SLEEP="60")
        server.until("round 2, attempt 1")
        carol.child.send_signal(signal.SIGTERM)
        assert carol.wait() == 130
        server.until("carol left")
        assert [c.wait() for c in (*others, server)] == [0, 0, 0]


def test_a_killed_client_with_its_state_takes_part_in_the_open_attempt(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2", "--round-timeout", "60")
        others = [keys.client(n, tmp_path / n) for n in ("alice", "bob")]
        carol = keys.client("carol", tmp_path / "carol", trainer="trainers:Slow", SLEEP="60")
        server.until("round 2, attempt 1")
        carol.child.kill()
        carol.wait()
        back = keys.client("carol", tmp_path / "carol")
        assert [c.wait() for c in (*others, back, server)] == [0, 0, 0, 0], back.error
    rounds = {e["round"]: e["in"] for e in server.events if e["event"] == "round"}
    assert rounds[2] == ["alice", "bob", "carol"]
    assert [e["attempt"] for e in server.events if e["event"] == "announced" and e["round"] == 2] == [1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_a_server_cleanly(keys: Federation, tmp_path: Path, number: int, code: int) -> None:
    with keys:
        server = keys.serve(tmp_path / "server")
        server.child.send_signal(number)
        assert server.wait(20) == code
        assert "Traceback" not in server.error


def test_plain_http_works_on_loopback_when_both_sides_ask_for_it(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1", "--join-wait", "0", "--insecure-http")
        assert keys.url.startswith("http://127.0.0.1:")
        clients = [keys.client(n, tmp_path / n, "--insecure-http") for n in ("alice", "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0], clients[0].error


def test_clients_that_weigh_their_own_updates_tell_the_server_no_number_of_examples(
    keys: Federation, tmp_path: Path
) -> None:
    who = {"alice": (10, 0.1), "bob": (25, -0.2), "carol": (7, 0.35)}
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3", "--weighting", "client")
        refused = keys.client("carol", tmp_path / "other")
        assert refused.wait() == 3
        assert "uses weighting 'server', and this side weighting 'client'" in refused.error
        flags = {name: ("--weighting", "client", "--save", tmp_path / f"{name}.npz") for name in who}
        clients = [
            keys.client(name, tmp_path / name, *flags[name], EXAMPLES=str(count), STEP=str(step), ROWS=str(ROWS[name]))
            for name, (count, step) in who.items()
        ]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0, 0], [c.error for c in clients]
    assert [e["num_examples"] for e in server.events if e["event"] == "joined"] == [1, 1, 1]
    assert "25" not in re.sub(r"\S*[.:]\S*", "", server.error)
    model = np.load(tmp_path / "bob.npz", allow_pickle=False)
    for name, expected in zip(model.files, fedavg(3, list(who.values()))[3], strict=True):
        np.testing.assert_allclose(model[name], expected, rtol=0, atol=1e-6)
    accuracy = [e["metrics"]["accuracy"] for e in clients[0].events if e["event"] == "round" and e["round"]]
    assert accuracy == pytest.approx([np.average([0.01, -0.02, 0.035], weights=list(ROWS.values()))] * 4, abs=1e-6)


@pytest.mark.parametrize(("flags", "text"), [(("--precision", "16"), "precision 16"), ((), "precision 24")])
def test_parties_of_another_precision_do_not_mix(
    keys: Federation, tmp_path: Path, flags: tuple[str, ...], text: str
) -> None:
    with keys:
        keys.serve(tmp_path / "server", "--precision", "12")
        client = keys.client("alice", tmp_path / "alice", *flags)
        assert client.wait() == 3
        assert f"client alice uses {text}, and this side precision 12" in client.error


def test_any_client_can_fetch_the_records_of_all_rounds_and_they_form_one_chain(
    keys: Federation, tmp_path: Path
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "40", "--join-wait", "0")
        clients = [keys.client(n, tmp_path / n) for n in ("alice", "bob")]
        server.until("round 36, attempt 1")
        folder = folders.read_client_folder(keys.folder / "clients/carol")  # who has not joined
        url = urlsplit(keys.url)
        context = folder.credentials.client_context()
        connection = http.client.HTTPSConnection(str(url.hostname), url.port, context=context, timeout=20)

        def fetch(query: str) -> list[Record]:
            connection.request("GET", f"/v1/records{query}", headers=messages.headers(folder.secret, "00" * 16))
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            return list(decode_records(body))

        with closing(connection):
            pages = [fetch("")]
            while pages[-1]:
                pages.append(fetch(f"?after={pages[-1][-1].announcement.round}"))
            connection.request("GET", "/v1/records?after=x", headers=messages.headers(folder.secret, "00" * 16))
            assert connection.getresponse().status == 400
        for command in clients:
            command.child.terminate()
    records = [made for page in pages for made in page]
    assert len(pages[0]) == 32
    assert [made.announcement.round for made in records] == list(range(len(records)))
    head = genesis(folder.secret.identity, records[0].announcement.run)
    for made in records:
        assert made.announcement.head == head
        head = made.head


def test_disk_use_is_bounded_by_what_is_kept(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "6", "--join-wait", "0", "--keep", "2")
        clients = [keys.client(n, tmp_path / n, "--keep", "2") for n in ("alice", "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]
    assert len(list((tmp_path / "server/aggregates").iterdir())) == 2
    for folder in ("uploads", "updates"):
        assert not list((tmp_path / "server" / folder).iterdir())
    assert len(list((tmp_path / "alice/aggregates").iterdir())) == 6  # each with its record and its layout
    assert not list((tmp_path / "alice").glob("*.bin"))


def test_a_client_exports_the_models_that_it_keeps_without_a_server(keys: Federation, tmp_path: Path) -> None:
    who = {"alice": (10, 0.1), "bob": (25, -0.2)}
    folder = keys.folder / "clients/alice"
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3", "--join-wait", "0")
        clients = [
            keys.client(n, tmp_path / n, "--save", tmp_path / f"{n}.npz", EXAMPLES=str(e), STEP=str(s))
            for n, (e, s) in who.items()
        ]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]
        command = keys.run("export", folder, "--state", tmp_path / "alice", "--to", tmp_path / "last.npz", "--json")
        assert command.wait() == 0, command.error
        assert command.events == [
            {"event": "exported", "path": str(tmp_path / "last.npz"), "round": 3, "verified": True}
        ]
        kept = keys.run("export", folder, "--state", tmp_path / "alice", "--to", tmp_path / "last.npz")
        assert kept.wait() == 1
        assert "exists already" in kept.error
    saved, exported = (np.load(tmp_path / f"{n}.npz", allow_pickle=False) for n in ("alice", "last"))
    assert all((saved[n] == exported[n]).all() for n in saved.files)
    secret = folders.read_client_folder(folder).secret
    courses = fedavg(3, list(who.values()))
    for number in (1, 2, 3):
        kept_model = read_model(tmp_path / "alice", secret, number)
        for array, name, expected in zip(kept_model.arrays, saved.files, courses[number], strict=True):
            assert array.dtype == saved[name].dtype
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6)
    # The closing round made no model.
    for number in (4, 5):
        with pytest.raises(StateError, match=f"no model of round {number}: there are 0, 1, 2, 3"):
            read_model(tmp_path / "alice", secret, number)
    (aggregate,) = (tmp_path / "alice/aggregates").glob("*2.agg")
    data = bytearray(aggregate.read_bytes())
    data[2000] ^= 1
    aggregate.write_bytes(redigested(data))
    with pytest.raises(TamperError, match="not the one that its record describes"):
        read_model(tmp_path / "alice", secret, 2)
    for suffix in ("agg", "layout", "json"):
        (path,) = (tmp_path / "alice/aggregates").glob(f"*3.{suffix}")
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(StateError, match=rf"0000000003\.{suffix} is damaged") as caught:
            read_model(tmp_path / "alice", secret, 3)
        assert caught.value.hint == "name another round with --round: 0, 1, 2"
        path.write_bytes(whole)
    rotated = keys.copy(tmp_path / "rotated")
    authority.change(rotated.folder, authority.Change(rotate=True))
    newer = folders.read_client_folder(rotated.folder / "clients/alice").secret
    with pytest.raises(MismatchError, match=r"0000000003\.agg is of .* key generation 1, and the client's keys .* 2"):
        read_model(tmp_path / "alice", newer, 3)


def test_models_of_earlier_keys_are_exported_with_those_as_the_error_says(keys: Federation, tmp_path: Path) -> None:
    """Of the old folder, with certificates that have expired, say, only secret.hefl was put by."""
    rotated = keys.copy(tmp_path / "fed")
    alice = rotated.folder / "clients/alice"
    with rotated:
        server = rotated.serve(tmp_path / "server", "--rounds", "1", "--join-wait", "0")
        flags = ("--save", tmp_path / "saved.npz")
        clients = [rotated.client("alice", alice / "state", *flags), rotated.client("bob", tmp_path / "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]
        backup = tmp_path / "backup"
        backup.mkdir(mode=0o700)
        shutil.copy2(alice / "secret.hefl", backup)
        change = rotated.run("keygen", rotated.folder, "--revoke", "bob")
        assert change.wait() == 0
        assert any("'hefl export' for what it still wants" in line for line in change.out)
        refused = rotated.run("export", alice, "--to", tmp_path / "last.npz")
        assert refused.wait() == 3
        found = re.search(r"'hefl (export OLD/secret\.hefl --state .* --to FILE)'", refused.error)
        assert found
        way = found[1].replace("OLD", str(backup)).replace("FILE", str(tmp_path / "last.npz"))
        exported = rotated.run(*way.split())
        assert exported.wait() == 0, exported.error
        folder = rotated.run("export", backup, "--state", alice / "state", "--to", tmp_path / "again.npz")
        assert folder.wait() == 0, folder.error
    assert saved(tmp_path / "saved.npz") == saved(tmp_path / "last.npz") == saved(tmp_path / "again.npz")


def test_status_says_where_a_run_is_while_it_goes_on_and_afterwards(keys: Federation, tmp_path: Path) -> None:
    def status() -> dict[str, Any]:
        command = keys.run("status", tmp_path / "server/state", "--json")
        assert command.wait() == 0, command.error
        (event,) = command.events
        assert list(event) == ["run", "state", "round", "rounds", "in", "awaited", "deadline_s"]
        return event

    with keys:
        none = keys.run("status", tmp_path / "server")
        assert none.wait() == 1
        assert "holds no run" in none.error
        server = keys.serve(tmp_path / "server/state", "--rounds", "2", "--round-timeout", "50")
        first = status()
        assert (first["state"], first["round"], first["rounds"], first["in"]) == ("gathering", 0, 2, [])
        assert (first["awaited"], first["deadline_s"]) == (["alice", "bob", "carol"], None)
        others = [keys.client(n, tmp_path / n) for n in ("alice", "bob")]
        carol = keys.client("carol", tmp_path / "carol", trainer="trainers:Slow", SLEEP="60")
        server.until("round 2, attempt 1")
        server.until("round 2: update of alice is in")
        server.until("round 2: update of bob is in")
        amid = status()
        assert (amid["run"], amid["state"], amid["round"]) == (first["run"], "collecting", 2)
        assert (amid["in"], amid["awaited"]) == (["alice", "bob"], ["carol"])
        assert 0 < amid["deadline_s"] < 50
        words = keys.run("status", tmp_path / "server")  # its folder will do
        assert words.wait() == 0
        assert "in round 2, attempt 1: 2 of 3 updates are in" in words.out[0]
        assert words.out[1].startswith("waits for carol, for ")
        carol.child.terminate()
        assert [c.wait() for c in (*others, server)] == [0, 0, 0]
        last = status()
    assert (last["state"], last["round"], last["awaited"], last["deadline_s"]) == ("ended", 2, ["carol"], None)
