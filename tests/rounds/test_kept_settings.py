"""What a run keeps of how its server was started, by real servers that are started again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from federation import Federation

from hefl.engines.engine import Terms, Weighting
from hefl.rounds.kept_settings import KeptSettings, changes, terms_of
from hefl.server.journal import FILE


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob", "carol")


def started(keys: Federation, state: Path, *flags: str) -> str:
    """What a server says that begins to listen, and is killed then."""
    with keys:
        server = keys.serve(state, *flags)
        server.until("to join")
        server.stop()
        return server.error


def engine_of(state: Path) -> tuple[str, int, str]:
    with closing(sqlite3.connect(state / FILE)) as db:
        found: tuple[str, int, str] = db.execute("SELECT engine, precision_bits, weighting FROM run").fetchone()
        return found


def test_a_server_that_is_started_again_without_its_flags_goes_on_with_them(keys: Federation, tmp_path: Path) -> None:
    first = started(keys, tmp_path / "run", "--min-clients", "3", "--engine", "tenseal", "--rounds", "9")
    assert "(0 here, at least 3 needed)" in first
    again = started(keys, tmp_path / "run")
    assert "(0 here, at least 3 needed)" in again
    assert "from now on" not in again
    assert engine_of(tmp_path / "run") == ("tenseal", 0, "server")


def test_another_value_is_said_and_holds_from_then_on(keys: Federation, tmp_path: Path) -> None:
    started(keys, tmp_path / "run", "--min-clients", "3", "--round-timeout", "600")
    other = started(keys, tmp_path / "run", "--min-clients", "2", "--round-timeout", "600")
    assert "--min-clients is 2 from now on, and was 3" in other
    assert "--round-timeout" not in other
    assert "(0 here, at least 2 needed)" in other
    assert "(0 here, at least 2 needed)" in started(keys, tmp_path / "run")


@pytest.mark.parametrize(
    "flags", [("--min-clients", "4"), ("--engine", "plaintext", "--insecure-plaintext", "--host", "192.0.2.1")]
)
def test_a_start_that_was_refused_leaves_nothing_to_the_next(
    keys: Federation, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    with keys:
        assert keys.start_server(tmp_path / "run", *flags, port=0).wait() in (2, 3)
    assert "(0 here, at least 2 needed)" in started(keys, tmp_path / "run")
    assert engine_of(tmp_path / "run") == ("packed", 24, "server")


@pytest.mark.parametrize(
    ("run", "asked", "terms"),
    [
        (None, (None, None, None), Terms("packed", 24, "server")),
        (None, ("packed", 16, "client"), Terms("packed", 16, "client")),
        (Terms("packed", 16, "client"), (None, None, None), Terms("packed", 16, "client")),
        (Terms("packed", 16, "client"), (None, 30, None), Terms("packed", 30, "client")),
        (Terms("packed", 16, "client"), ("tenseal", None, None), Terms("tenseal", 24, "server")),
        (Terms("tenseal", 0, "server"), ("packed", None, None), Terms("packed", 24, "server")),
        (Terms("tenseal", 0, "server"), (None, None, None), Terms("tenseal", 0, "server")),
    ],
)
def test_what_is_not_asked_for_is_the_runs_own_where_its_engine_is(
    run: Terms | None, asked: tuple[str | None, int | None, Weighting | None], terms: Terms
) -> None:
    assert terms_of(run, *asked) == terms


def test_every_setting_that_changes_is_named_by_its_flag() -> None:
    before = KeptSettings()
    after = before.with_given(min_clients=5, join_wait_s=0.5, round_timeout_s=None, max_values=2_147_483_647)
    assert changes(before, after) == [
        "--min-clients is 5 from now on, and was 2",
        "--join-wait is 0.5 from now on, and was 2",
        "--max-values is 2147483647 from now on, and was 2147483648",
    ]
