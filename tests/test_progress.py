"""Bars: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from federation import HERE, Federation

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class OnTerminal:
    """A command whose stderr is a terminal, and whose stdout is one too or a pipe."""

    def __init__(self, *arguments: str | Path, piped: bool) -> None:
        self._ours, theirs = pty.openpty()
        self.child = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "hefl.cli", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else theirs,
            stderr=theirs,
            cwd=HERE,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(theirs)
        self.screen, self.out = "", ""
        self._readers = [threading.Thread(target=self._read_screen)]
        if piped:
            self._readers.append(threading.Thread(target=self._read_out))
        for reader in self._readers:
            reader.start()

    def _read_screen(self) -> None:
        data = b""
        while True:
            try:
                chunk = os.read(self._ours, 4096)
            except OSError:  # the other end is closed
                chunk = b""
            if not chunk:
                break
            data += chunk
            self.screen = data.decode(errors="replace")
        os.close(self._ours)

    def _read_out(self) -> None:
        assert self.child.stdout
        with self.child.stdout as stdout:
            self.out = stdout.read().decode()

    def wait(self) -> int:
        code = self.child.wait(60)
        for reader in self._readers:
            reader.join()
        return code

    def stop(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.wait()


def rows(screen: str) -> list[str]:
    """The lines that were written, without what moves a cursor or colours."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line) for line in screen.split("\n")]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


@pytest.mark.parametrize("piped", [True, False])
def test_a_client_on_a_terminal_shows_a_bar_and_its_data_stay_whole(
    keys: Federation, tmp_path: Path, piped: bool
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3")
        bob = keys.client("bob", tmp_path / "bob")
        folder, state = keys.folder / "clients/alice", tmp_path / "alice"
        line: list[str | Path] = [
            "client",
            folder,
            "--trainer",
            "trainers:Drift",
            "--server",
            keys.url,
            "--state",
            state,
        ]
        alice = OnTerminal(*line, piped=piped)
        try:
            assert (alice.wait(), bob.wait(), server.wait()) == (0, 0, 0), alice.screen
        finally:
            alice.stop()
    assert "━" in alice.screen
    assert "3/3" in alice.screen
    assert alice.screen.rindex(SHOW_CURSOR) > alice.screen.rindex(HIDE_CURSOR)
    where = alice.out if piped else "\n".join(rows(alice.screen))
    data = re.findall(r"((?:initial )?model(?: \d of 3)?): loss \d\.\d{4}, accuracy 0\.1000\n", where)
    assert data == ["initial model", *(f"model {n} of 3" for n in (1, 2, 3))]
    assert any(row.startswith("hefl: joined https://") for row in rows(alice.screen))
    if piped:
        assert "\x1b" not in alice.out
    # The server and bob ran with pipes and --json.
    for command in (server, bob):
        assert not re.search("[━\x1b]", "".join([*command.out, *command.err]))


def test_a_server_on_a_terminal_is_interrupted_cleanly(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = OnTerminal("serve", keys.folder / "server", "--port", "0", "--state", tmp_path / "s", piped=True)
        try:
            while "waiting for" not in server.screen:
                assert server.child.poll() is None, server.screen
            server.child.send_signal(signal.SIGINT)
            assert server.wait() == 130
        finally:
            server.stop()
    assert rows(server.screen.rstrip())[-1] == "hefl: interrupted", repr(server.screen)
    assert server.screen.rindex(SHOW_CURSOR) > server.screen.rindex(HIDE_CURSOR)
    assert "Traceback" not in server.screen
    assert server.out.startswith("https://127.0.0.1:")


def test_a_reader_of_json_gets_no_bar_on_a_terminal_either(keys: Federation, tmp_path: Path) -> None:
    with keys:
        line: list[str | Path] = ["client", keys.folder / "clients/alice", "--trainer", "trainers:Drift", "--json"]
        client = OnTerminal(
            *line, "--server", "https://127.0.0.1:1", "--connect-timeout", "0", "--state", tmp_path / "a", piped=True
        )
        try:
            assert client.wait() == 5
        finally:
            client.stop()
    assert "\x1b" not in client.screen
