"""``hefl.toml`` and shell completion, by the real command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from federation import Command, Federation

from hefl.cli.main import COMMANDS
from hefl.cli.settings import EACH_TIME


def run(*arguments: str | Path, cwd: Path) -> Command:
    command = Command(*arguments, cwd=cwd)
    command.wait()
    return command


def plan(*arguments: str, cwd: Path) -> dict[str, object]:
    command = run("plan", "--json", *arguments, cwd=cwd)
    assert command.child.returncode == 0, command.error
    return command.events[0]


def test_a_file_in_the_current_folder_sets_what_the_command_line_does_not(tmp_path: Path) -> None:
    (tmp_path / "hefl.toml").write_text("[plan]\nvalues = 1000\nclients = 3\nprecision = 16\n")
    expected = plan("--values", "1000", "--clients", "3", "--precision", "16", cwd=tmp_path.parent)
    assert plan(cwd=tmp_path) == expected
    assert plan("--clients", "5", cwd=tmp_path) == {
        **plan("--values", "1000", "--clients", "5", "--precision", "16", cwd=tmp_path.parent)
    }
    assert run("plan", cwd=tmp_path).err == ["hefl: with the settings in hefl.toml, [plan]"]


def test_another_file_can_be_named_and_then_the_one_here_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "hefl.toml").write_text("nonsense")
    (tmp_path / "other.toml").write_text("[plan]\nvalues = 10\nclients = 2\njson = true\n")
    command = run("--config", "other.toml", "plan", cwd=tmp_path)
    assert command.child.returncode == 0, command.error
    assert command.events[0]["values"] == 10
    assert run("--config", "missing.toml", "plan", cwd=tmp_path).err[0] == "hefl: missing.toml does not exist"


def test_a_federation_runs_with_its_settings_in_files_whose_paths_start_from_their_folder(tmp_path: Path) -> None:
    with Federation(tmp_path / "fed", "alice", "bob") as keys:
        (tmp_path / "conf").mkdir()
        config = tmp_path / "conf/run.toml"
        config.write_text('[serve]\nport = 0\nrounds = 2\njson = true\nstate = "run"\njoin-wait = 0\n')
        server = keys.run("--config", config, "serve", keys.folder / "server")
        server.until("listening")
        config.with_name("client.toml").write_text(
            f'[client]\nserver = "{server.events[0]["url"]}"\ntrainer = "trainers:Drift"\nsave = "../model.npz"\n'
            "patience = 3\n"
        )
        flags = {"alice": (), "bob": ("--save", tmp_path / "bob.npz")}
        clients = [
            keys.run("--config", config.with_name("client.toml"), "client", keys.folder / "clients" / name, *more)
            for name, more in flags.items()
        ]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0], [c.error for c in (*clients, server)]
    assert (tmp_path / "conf/run/journal.sqlite").exists()
    assert server.events[-1] == {"event": "ended", "rounds": 2, "lacking": []}
    for name in ("model.npz", "bob.npz"):
        assert int(np.load(tmp_path / name, allow_pickle=False)["steps"]) == 9


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[sevre]\nport = 1", "'sevre' is not the table of a command", "did you mean [serve]?"),
        ("port = 1", "'port' stands in no table", "put it below the name of its command, such as [serve]"),
        ("serve = 1", "'serve' stands in no table", "put it below the name of its command, such as [serve]"),
        ("[xyz]\nport = 1", "'xyz' is not the table of a command", "tables are [keygen], ["),
        ("[serve]\nround = 1", "[serve] round is no setting of 'hefl serve'", "did you mean rounds?"),
        ("[serve]\nround_timeout = 1", "[serve] round_timeout is no setting of", "did you mean round-timeout?"),
        ("[serve]\nxyz = 1", "[serve] xyz is no setting of", "keys are the long flags of 'hefl serve --help'"),
        ("[client]\ntrace = 'x'", "[client] trace is no setting of", "did you mean trainer?"),
        ("[client]\nfolder = 'x'", "[client] folder is no setting of", "keys are the long flags"),
        ("[serve]\nhelp = true", "[serve] help is no setting of", "keys are the long flags"),
        ("[serve]\nrounds = '50'", "[serve] rounds takes a whole number, got '50'", "--rounds"),
        ("[serve]\nrounds = 50.0", "[serve] rounds takes a whole number, got 50.0", "--rounds"),
        ("[serve]\nrounds = true", "[serve] rounds takes a whole number, got true", "--rounds"),
        ("[serve]\nrounds = 0", "[serve] rounds takes a whole number from 1 to 1000000, got 0", "--rounds"),
        ("[serve]\njoin-wait = 'long'", "[serve] join-wait takes a number, got 'long'", "--join-wait"),
        ("[serve]\nengine = 'rot13'", "[serve] engine takes one of packed, tenseal, plaintext, got", "--engine"),
        ("[serve]\nengine = ['packed']", "[serve] engine takes text in quotes, got ['packed']", "--engine"),
        ("[serve]\njson = 1", "[serve] json takes true or false, got 1", "--json"),
        ("[serve]\nstate = 3", "[serve] state takes text in quotes, got 3", "--state"),
        ("[keygen]\nclient = 'alice'", "[keygen] client takes a list, each text in quotes", "--client"),
        ("[keygen]\nclient = ['alice', 2]", "[keygen] client takes a list, each text in quotes", "--client"),
        ("[serve]\nhost = 127.0.0.1", "is not TOML: ", "text in quotes"),
        ("[serve]\nport = 1\nport = 2", "is not TOML: cannot overwrite a value", "NAME = VALUE"),
        ("[serve]\nhost = '\xff'", "is not TOML: ", "NAME = VALUE"),
        *(
            (f"[client]\n{flag} = true", f"[client] {flag} is not taken from a file", f"give --{flag} on the command")
            for flag in sorted(EACH_TIME)
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_file_key_and_a_way_out(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    """Whatever command runs: a file is right or it is not."""
    (tmp_path / "hefl.toml").write_bytes(text.encode("latin-1"))
    command = run("plan", "--values", "1", "--clients", "2", cwd=tmp_path)
    assert command.child.returncode == 2
    assert command.err[0].startswith("hefl: hefl.toml")
    assert message in command.err[0]
    assert command.err[1].startswith("hefl: hint: ")
    assert hint in command.err[1]
    assert len(command.err) == 2
    assert command.out == []


def test_help_is_shown_whatever_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "hefl.toml").write_text("nonsense")
    shown = run("--help", cwd=tmp_path)
    assert shown.child.returncode == 0
    assert "--config FILE" in "\n".join(shown.out)


def test_several_values_are_a_list(tmp_path: Path) -> None:
    (tmp_path / "hefl.toml").write_text('[keygen]\nclient = ["alice", "bob"]\n')
    assert run("keygen", "fed", cwd=tmp_path).child.returncode == 0
    assert {p.name for p in (tmp_path / "fed/clients").iterdir()} == {"alice", "bob"}


# --- completion -------------------------------------------------------------------------------------------------------


def completions(shell: str, words: str, cwd: Path) -> list[str]:
    """What a shell is offered after these words; it loads nothing heavy for that."""
    code = (
        "import atexit, sys\n"
        "heavy = ('numpy', 'tenseal', 'torch', 'sklearn', 'aiohttp', 'numba', 'cryptography')\n"
        "atexit.register(lambda: print(*(m for m in heavy if m in sys.modules), file=sys.stderr))\n"
        "from hefl.cli.main import main; main()"
    )
    line = words.split(" ")
    env = {"_HEFL_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(line) - 1)}
    if shell == "fish":
        env["COMP_CWORD"] = line[-1]
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env={**os.environ, **env}, check=True
    )
    assert child.stderr.strip() == ""
    return child.stdout.split("\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_flags_and_choices_are_completed(tmp_path: Path, shell: str) -> None:
    (tmp_path / "hefl.toml").write_text("nonsense")
    for words, expected in (
        ("hefl ", set(COMMANDS)),
        ("hefl cl", {"client"}),
        ("hefl client --pat", {"--patience"}),
        ("hefl serve --engine ", {"packed", "tenseal", "plaintext"}),
        ("hefl --config x.toml serve --min", {"--min-clients"}),
    ):
        offered = "\n".join(completions(shell, words, tmp_path)).replace(",", "\n").replace("\t", "\n").split("\n")
        assert expected <= set(offered)
        assert "train" not in offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_after_the_line_that_the_help_names(tmp_path: Path) -> None:
    shown = "\n".join(run("--help", cwd=tmp_path).out)
    line = next(row.split("bash", 1)[1].strip() for row in shown.splitlines() if row.strip().startswith("bash  "))
    (tmp_path / "hefl").write_text(f'#!/bin/sh\nexec {sys.executable} -m hefl.cli "$@"\n')
    (tmp_path / "hefl").chmod(0o755)
    script = (
        f'{line}\nCOMP_WORDS=(hefl serve --round-t) COMP_CWORD=2\n_hefl_completion hefl\necho "${{COMPREPLY[@]}}"\n'
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    child = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60
    )
    assert child.stdout.split() == ["--round-timeout"], child.stderr
