"""The command line as a person meets it: help, exit codes, hints, and JSON for scripts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from federation import HERE, Command

import hefl
from hefl import errors
from hefl.cli.main import COMMANDS
from hefl.keys import authority


def run(*arguments: str | Path, cwd: Path) -> Command:
    command = Command(*arguments, cwd=cwd)
    command.wait()
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_every_flag_has_a_help_text(tmp_path: Path, name: str) -> None:
    shown = run(name, "--help", cwd=tmp_path)
    assert shown.child.returncode == 0
    text = "\n".join(shown.out)
    assert text.startswith(f"Usage: hefl {name}")
    options = re.findall(r"^  (?:-h, )?(--[a-z-]+)(?: [^ ]+)*(  .*)?$", text, re.MULTILINE)
    assert {flag for flag, _ in options} >= {"--json", "--help"}
    # click puts the help of a long flag on a line of its own
    for match in re.finditer(r"^  (?:-h, )?--\S.*\n(?!    )", text, re.MULTILINE):
        assert re.search(r"\S {2,}\S", match[0].strip()), match[0]


def test_help_answers_without_loading_anything_heavy(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['hefl', '--help']; from hefl.cli.main import cli; cli(standalone_mode=False); "
    code += "print(sorted(m for m in ('numpy', 'tenseal', 'torch', 'sklearn', 'aiohttp', 'numba') if m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert f"  {name} " in out.stdout


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).out == [f"hefl {hefl.__version__}"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["keygen"], "keygen needs DIR"),
        (["keygen", "fed"], "keygen needs --client"),
        (["keygen", "fed", "--client", "Bob"], "a client's name is"),
        (["serve"], "serve needs DIR/server"),
        (["serve", "fed/server", "--rounds", "0"], "--rounds takes a whole number"),
        (["serve", "fed/server", "--min-clients", "1"], "--min-clients takes a whole number"),
        (["client", "fed/clients/alice"], "name either --data or --trainer"),
        (["client", "f", "--data", "iris:alice", "--trainer", "a:b"], "name either --data or --trainer"),
        (["client", "f", "--data", "iris:alice", "--save", "no/such/model.npz"], "does not exist"),
        (["demo", "--data", "mnist"], "--data takes one of"),
        (["serve", "fed/server", "--engine", "rot13"], "--engine takes one of"),
        (["serve", "fed/server", "--precision", "41"], "--precision takes a whole number"),
        (["demo", "--clients", "1"], "--clients takes a whole number"),
        (["train"], "there is no command 'train'"),
        (["--colour"], "has no option --colour"),
    ],
)
def test_a_command_that_is_called_wrongly_ends_with_2_and_a_hint(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    command = run(*arguments, cwd=tmp_path)
    assert command.child.returncode == 2
    assert text in command.error
    assert command.out == []
    assert all(line.startswith("hefl: ") for line in command.err)
    assert any(line.startswith("hefl: hint: ") for line in command.err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        ("trainers", 2, "package.module:factory"),
        ("no.such:thing", 2, "No module named 'no'"),
        ("trainers:Nobody", 2, "no attribute 'Nobody'"),
        ("trainers:no_trainer", 1, "no get_parameters, fit and evaluate"),
        ("iris:alice", 2, "No module named 'iris'"),
    ],
)
def test_a_trainer_that_cannot_be_had_is_named(tmp_path: Path, spec: str, code: int, text: str) -> None:
    assert run("keygen", tmp_path / "fed", "--client", "alice", "--client", "bob", cwd=tmp_path).child.returncode == 0
    command = run("client", tmp_path / "fed/clients/alice", "--trainer", spec, cwd=HERE)
    assert command.child.returncode == code
    assert text in command.error
    assert "Traceback" not in command.error


@pytest.mark.parametrize("data", ["iris:", "iris:3/2", "iris:0/2", "iris:carol", "iris:1/100", "mnist:alice"])
def test_data_that_does_not_exist_is_named(tmp_path: Path, data: str) -> None:
    assert run("keygen", tmp_path / "fed", "--client", "alice", "--client", "bob", cwd=tmp_path).child.returncode == 0
    command = run("client", tmp_path / "fed/clients/alice", "--data", data, cwd=tmp_path)
    assert command.child.returncode == 2, command.error
    assert command.err[0].startswith("hefl: loading ")
    assert len(command.err) <= 3


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--data", "digits:2/5", "--partition", "dirichlet"], "--partition takes iid, or dirichlet:ALPHA"),
        (["--data", "digits:2/5", "--partition", "dirichlet:-1"], "got 'dirichlet:-1'"),
        (["--data", "iris:61/61"], "leaves client alice (part 61 of 61) 1; every client needs at least 2"),
        (["--data", "iris:2/20", "--partition", "dirichlet:0.001"], "of 120 training examples leaves "),
        (["--data", "iris:alice", "--data-seed", "-1"], "--data-seed takes a whole number"),
        (["--trainer", "trainers:Drift", "--partition", "dirichlet:1"], "--trainer brings its own"),
    ],
)
def test_data_that_cannot_be_shared_so_is_a_usage_error(tmp_path: Path, flags: list[str], text: str) -> None:
    authority.create(tmp_path / "fed", ["alice", "bob"])
    command = run("client", tmp_path / "fed/clients/alice", *flags, cwd=tmp_path)
    assert command.child.returncode == 2, command.error
    assert text in command.error
    assert "Traceback" not in command.error


def test_a_folder_that_keygen_did_not_make_ends_with_3(tmp_path: Path) -> None:
    for place, arguments in (("server", ["serve"]), ("clients/NAME", ["client", "--data", "iris:bob"])):
        command = run(*arguments, "nowhere", cwd=tmp_path)
        assert command.child.returncode == 3
        assert command.err == [
            "hefl: nowhere is not a folder",
            f"hefl: hint: name DIR/{place} as 'hefl keygen' made it",
        ]


def test_keygen_says_where_each_folder_goes_or_prints_json(tmp_path: Path) -> None:
    text = run("keygen", "fed", "--client", "bob", "--client", "alice", cwd=tmp_path)
    assert [line.split("  to ")[0].strip() for line in text.out[1:]] == [
        "fed/server/",
        "fed/clients/alice/",
        "fed/clients/bob/",
        "fed/authority/",
    ]
    made = run(
        "keygen", "fed", "--client", "bob", "--force", "--server-name", "fl.example.org:9", "--json", cwd=tmp_path
    )
    event = json.loads(made.out[0])
    assert event["clients"] == ["bob"]
    assert event["servers"] == ["https://fl.example.org:9"]
    assert (event["generation"], len(event["federation"])) == (1, 32)


def test_exit_codes_are_those_of_the_contract() -> None:
    assert {
        errors.HeflError: 1,
        errors.UsageError: 2,
        errors.KeysError: 3,
        errors.ParametersError: 3,
        errors.ProtocolError: 4,
        errors.UnreachableError: 5,
    }.items() <= {c: c.exit_code for c in errors.HeflError.__subclasses__()}.items() | {(errors.HeflError, 1)}


def test_a_reader_that_goes_away_is_no_crash(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "hefl.cli", "keygen", "fed", "--client", "alice"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert child.stdout
    assert child.stderr
    child.stdout.close()
    error = child.stderr.read()
    child.stderr.close()
    child.wait(30)
    assert "Traceback" not in error
    assert "Exception" not in error
