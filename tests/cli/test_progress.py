"""What is displayed while a command works: what a terminal's screen shows, and nothing anywhere else."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from federation import HERE, Federation
from terminal import Terminal

SPINNER = "[\u2800-\u28ff]"
BAR = re.compile(r" +rounds [━╸╺ ]+ \d/3 0:\d\d:\d\d")
DATA = re.compile(r"https://127\.0\.0\.1:\d+|((initial model|model \d of 3): loss \d\.\d{4}, accuracy 0\.1000)?")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


@pytest.fixture
def keys(made: Federation, tmp_path: Path) -> Federation:
    """In the folder in which commands run: what they say of it is short."""
    return made.copy(tmp_path / "fed")


def on_terminal(keys: Federation, *arguments: str, piped: bool = False, columns: int = 80, **env: str) -> Terminal:
    where = {"PYTHONPATH": str(HERE), **env}
    return Terminal(*arguments, piped=piped, columns=columns, cwd=keys.folder.parent, env=where)


def asks(prompt: str, lines: list[str]) -> bool:
    """A prompt is the lowest thing on a terminal."""
    return next((line for line in reversed(lines) if line), "") == prompt


def client(keys: Federation, *more: str, trainer: str = "trainers:Drift") -> list[str]:
    return ["client", "fed/clients/alice", "--trainer", trainer, "--server", keys.url, *more]


def test_each_line_of_a_run_stands_by_itself_above_one_bar(keys: Federation, tmp_path: Path) -> None:
    """A server and a client, each with a terminal for stdout and stderr, of two widths; the other client has pipes."""
    serve = ("serve", "fed/server", "--port", "0", "--page-port", "0", "--rounds", "3")
    with on_terminal(keys, *serve, columns=80) as server, keys:
        server.until(lambda lines: any("waiting for alice, bob" in line for line in lines))
        keys.url = server.lines[0]
        bob = keys.client("bob", tmp_path / "bob")
        with on_terminal(keys, *client(keys), columns=200) as alice:
            assert (alice.wait(), bob.wait(), server.wait()) == (0, 0, 0), alice.lines
    for terminal in (server, alice):
        assert [line for line in terminal.lines if not (line.startswith("hefl: ") or DATA.fullmatch(line))] == []
        assert any(BAR.fullmatch(last) for last in terminal.last_lines)
        assert not any("━" in line for line in terminal.lines)
        assert not terminal.cursor_is_hidden
    assert any(re.fullmatch(r"hefl: the run can be watched at http://127\.0\.0\.1:\d+", line) for line in server.lines)
    assert [line.partition(":")[0] for line in alice.lines if "loss" in line] == [
        "initial model",
        *(f"model {n} of 3" for n in (1, 2, 3)),
    ]
    assert not re.search("[━\x1b]", "".join([*bob.out, *bob.err]))


def test_data_in_a_pipe_stay_whole_beside_a_bar_on_the_terminal(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3")
        bob = keys.client("bob", tmp_path / "bob")
        with on_terminal(keys, *client(keys), piped=True) as alice:
            assert (alice.wait(), bob.wait(), server.wait()) == (0, 0, 0), alice.lines
    assert re.fullmatch(r"initial model: .*\n(model \d of 3: loss \d\.\d{4}, accuracy 0\.1000\n){3}", alice.out)
    assert any(BAR.fullmatch(last) for last in alice.last_lines)
    assert all(line.startswith("hefl: ") for line in alice.lines if line)
    assert not re.search("[━\x1b]", "".join([*server.out, *server.err]))


def test_a_reader_of_json_gets_no_display_on_a_terminal_either(keys: Federation) -> None:
    keys.url = "https://127.0.0.1:1"
    with on_terminal(keys, *client(keys, "--json", "--connect-timeout", "0"), piped=True) as alice:
        assert alice.wait() == 5
    assert b"\x1b" not in alice.written


def test_a_client_says_at_once_what_it_loads_and_what_a_trainer_prints_stays_above(keys: Federation) -> None:
    """The trainer's module waits in the middle of its import until it may go on."""
    wait = "import pathlib, time\nprint('half-way')\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"
    (keys.folder.parent / "loads.py").write_text(f"{wait}from trainers import Drift\n")
    keys.url = "https://127.0.0.1:1"
    with on_terminal(keys, *client(keys, "--connect-timeout", "0", trainer="loads:Drift")) as alice:
        alice.until(lambda lines: "half-way" in lines and re.match(SPINNER, alice.last_lines[-1]) is not None)
        shown = [line for line in alice.screen if line]
        assert shown[:-1] == ["hefl: loading loads:Drift", "half-way"]
        assert re.fullmatch(rf"{SPINNER} loading loads:Drift 0:00:\d\d", shown[-1])
        (keys.folder.parent / "go").touch()
        assert alice.wait() == 5
    assert alice.lines[1] == "half-way"
    assert alice.lines[2].startswith("hefl: https://127.0.0.1:1 does not answer")
    assert not any("\u2800" <= line[:1] <= "\u28ff" for line in alice.lines)


@pytest.mark.parametrize(
    ("arguments", "code", "step"),
    [
        (["keygen", "new", "--client", "alice"], 0, "making keys in new"),
        (["inspect", "fed/server"], 0, "looking at fed/server"),
        (["plan", "--values", "1000", "--clients", "2"], 0, "choosing a ring"),
        (["export", "fed/clients/alice", "--to", "model.npz"], 1, "reading the keys in fed/clients/alice"),
        (["serve", "fed/server", "--min-clients", "3"], 2, "reading the keys in fed/server"),
        (["demo", "--engine", "plaintext"], 3, "sharing iris among 2 clients"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_that_loads_shows_what_it_does_and_leaves_nothing_of_that(
    keys: Federation, arguments: list[str], code: int, step: str
) -> None:
    with on_terminal(keys, *arguments) as command:
        assert command.wait() == code, command.lines
    assert re.fullmatch(rf"{SPINNER} {step} 0:00:\d\d", command.last_lines[0])
    assert not any(step in line for line in command.lines)
    assert command.lines[0]
    assert not command.cursor_is_hidden


def test_a_path_that_is_too_long_does_not_push_the_seconds_off_the_screen(keys: Federation) -> None:
    folder = "a/very/long/path/" * 8
    shutil.copytree(keys.folder / "clients/alice", keys.folder.parent / folder)
    with on_terminal(keys, "export", folder, "--to", "model.npz") as command:
        assert command.wait() == 1
    assert re.fullmatch(rf"{SPINNER} reading the keys in a/very/.*… 0:00:\d\d", command.last_lines[0])


def test_a_passphrase_is_asked_for_where_no_display_is(keys: Federation) -> None:
    with on_terminal(keys, "keygen", "new", "--client", "alice", "--passphrase") as command:
        for prompt in ("Passphrase:", "Repeat for confirmation:"):
            command.until(partial(asks, prompt))
            command.press("words\n")
        assert command.wait() == 0, command.lines
    assert command.lines[:2] == ["Passphrase:", "Repeat for confirmation:"]
    assert re.fullmatch("federation [0-9a-f]{8}, key generation 1 is in new:", command.lines[2])
    # it takes a while to make a key of the words
    assert any(re.fullmatch(rf"{SPINNER} making keys in new 0:00:\d\d", last) for last in command.last_lines[2:])
