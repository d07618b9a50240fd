"""Ctrl-C and SIGTERM, whenever they come."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from federation import Command, Federation
from terminal import Terminal

STOP_HERE = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise RuntimeError('it went on')\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


def last_line(terminal: Terminal) -> str:
    return next(line for line in reversed(terminal.lines) if line)


@pytest.mark.parametrize("module", ["click", "numpy", "aiohttp"])
def test_ctrl_c_while_a_command_loads_its_modules_is_no_error(keys: Federation, tmp_path: Path, module: str) -> None:
    """It comes while this module is imported: the first of all, or one of those that take long."""
    (tmp_path / f"{module}.py").write_text(STOP_HERE)
    line = ("serve", keys.folder / "server", "--port", "0", "--state", tmp_path / "state")
    command = Command(*line, env={"PYTHONPATH": str(tmp_path)})
    assert command.wait() == 130
    assert command.err == ["hefl: interrupted"]


def test_ctrl_c_where_an_exception_would_get_lost_ends_the_command(keys: Federation, tmp_path: Path) -> None:
    """Python ignores what a finaliser raises, but for printing it."""
    finaliser = "".join(f"        {line}\n" for line in STOP_HERE.splitlines())
    (tmp_path / "loads.py").write_text(f"class Lost:\n    def __del__(self):\n{finaliser}Lost()\nDrift = None\n")
    line = ("client", keys.folder / "clients/alice", "--trainer", "loads:Drift", "--state", tmp_path / "state")
    command = Command(*line, env={"PYTHONPATH": str(tmp_path)})
    assert command.wait() == 130
    assert command.err[1:] == ["hefl: interrupted"]


@pytest.mark.parametrize(("number", "code", "said"), [("SIGINT", 130, ["hefl: interrupted"]), ("SIGTERM", 0, [])])
def test_a_server_that_still_compiles_ends_as_one_that_serves(
    keys: Federation, tmp_path: Path, number: str, code: int, said: list[str]
) -> None:
    """The user has no cache yet, nor may one be made in the package."""
    line = ("serve", keys.folder / "server", "--port", "0", "--state", tmp_path / "state")
    command = Command(*line, env={"HOME": str(tmp_path / "home")})
    try:
        command.until("compiling the encryption")
        command.child.send_signal(getattr(signal, number))
        assert command.wait() == code
    finally:
        command.stop()
    assert command.err[1:] == said
    assert command.out == []
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"lock"}  # no run was begun


@pytest.mark.parametrize("while_doing", ["preparing the encryption", "waiting for"])
def test_ctrl_c_on_the_keyboard_leaves_the_terminal_as_it_was(
    keys: Federation, tmp_path: Path, while_doing: str
) -> None:
    with Terminal("serve", keys.folder / "server", "--port", "0", "--state", tmp_path / "state") as server:
        server.until(lambda lines: any(while_doing in line for line in lines))
        server.press("\x03")
        assert server.wait() == 130
    assert last_line(server) == "hefl: interrupted"
    assert not any("^C" in line or while_doing in line for line in server.lines if not line.startswith("hefl: waiting"))
    assert not server.cursor_is_hidden


def test_ctrl_c_at_a_passphrase_switches_the_echo_on_again(keys: Federation, tmp_path: Path) -> None:
    with Terminal("keygen", tmp_path / "new", "--client", "alice", "--passphrase") as command:
        command.until(lambda lines: "Passphrase:" in lines)
        before = command.echoes
        command.press("\x03")
        assert command.wait() == 130
        assert (before, command.echoes) == (False, True)
    assert [line for line in command.lines if line] == ["Passphrase:", "hefl: interrupted"]
    assert not list(tmp_path.iterdir())


def test_a_log_of_json_has_an_interrupt_as_an_object(keys: Federation, tmp_path: Path) -> None:
    (tmp_path / "aiohttp.py").write_text(STOP_HERE)
    line = ("serve", keys.folder / "server", "--port", "0", "--log-format", "json")
    command = Command(*line, env={"PYTHONPATH": str(tmp_path)})
    assert command.wait() == 130
    assert '"message": "interrupted"' in command.err[0]
