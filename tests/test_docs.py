"""What the README and the other documents say is what the code does."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import Command

import hefl
from hefl.cli.main import COMMANDS
from hefl.keys import file_format

ROOT = Path(__file__).parent.parent
README, GUIDE = ((ROOT / name).read_text() for name in ("README.md", "cli/README.md"))


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_session_of_three_hospitals_works_as_it_stands(tmp_path: Path) -> None:
    """Line by line, but for a port that nothing else on this machine uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    make, train, later = ([line[2:] for line in block.splitlines()] for block in blocks("console", GUIDE))

    def start(line: str) -> Command:
        program, *words = shlex.split(line)
        assert program == "hefl"
        words = [f"127.0.0.1:{port}" if word == "127.0.0.1" else word for word in words]
        return Command(*words, *(["--port", port] if words[0] == "serve" else []), cwd=tmp_path)

    def follow(lines: list[str]) -> None:
        for line in lines:
            command = start(line)
            assert command.wait() == 0, command.error

    follow(make)
    server, *clients = commands = [start(line) for line in train]
    try:
        assert [c.wait(200) for c in commands] == [0, 0, 0, 0], [c.error for c in commands]
    finally:
        for command in commands:
            command.stop()
    assert server.out == [f"https://127.0.0.1:{port}"]
    for client in clients:
        final = re.fullmatch(r"model 5 of 5: loss 0\.\d+, accuracy (0\.\d+)", client.out[-1])
        assert final
        assert float(final[1]) > 0.9
        assert any(re.match("hefl: the model is confirmed by [a-z]+, [a-z]+$", line) for line in client.err)
    model = np.load(tmp_path / "model.npz", allow_pickle=False)
    assert model.files
    follow([*later, "hefl inspect fed"])
    assert sorted(path.name for path in (tmp_path / "fed/clients").iterdir() if (path / "secret.hefl").exists()) == [
        "east",
        "north",
        "south",
    ]


def test_the_python_example_prints_what_it_says(tmp_path: Path) -> None:
    _, code = blocks("python", README)
    expected = re.findall(r"print\(.*#\s*(\[.*\])$", code, re.MULTILINE)
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == expected
    assert expected == ["[0.2 0.3]"]


def test_the_python_example_with_larger_values_works_with_what_its_comment_adds(tmp_path: Path) -> None:
    _, code = blocks("python", README)
    (addition,) = re.findall(r"# values over 1: all add (value_range=\d+)", code)

    def run(larger: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", larger], capture_output=True, text=True, cwd=tmp_path
        )

    larger = code.replace("[0.5, 0.6]", "[2.5, 3.5]")
    assert "is beyond +-1" in run(larger).stderr
    done = run(re.sub(r'(attempt, "(?:alice|bob)")\)', rf"\1, {addition})", larger))
    assert done.stdout.splitlines() == ["[0.7   1.025]"], done.stderr


def test_every_command_is_in_the_readme() -> None:
    for name in COMMANDS:
        assert f"hefl {name}" in README + GUIDE


def test_the_readme_is_short_and_its_session_is_the_guides() -> None:
    assert len(README.splitlines()) <= 100
    make, *session = blocks("console", README)
    assert make == "$ make demo\n"
    guide = [line for block in blocks("console", GUIDE) for line in block.splitlines()]
    assert {line for block in session for line in block.splitlines()} < set(guide)


def test_the_readmes_own_model_trains() -> None:
    """Both clients move by 0.1 a round from 0."""
    own, _ = blocks("python", README)
    names: dict[str, Any] = {}
    exec(own, names)  # noqa: S102
    done = hefl.simulate({"alice": names["ScanClient"](), "bob": names["ScanClient"]()}, rounds=3)
    np.testing.assert_allclose(done.arrays[0], np.full(3, 0.3), atol=1e-6)
    assert done.metrics[-1]["loss"] == pytest.approx(0.49, abs=1e-6)


def test_the_key_file_format_is_documented_field_by_field() -> None:
    text = (ROOT / "keys/README.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \|", text, re.MULTILINE)
    documented = {
        kind: tuple(name for name, kinds in rows if kinds == "all" or kind in kinds.split(", "))
        for kind in file_format.FIELDS
    }
    assert documented == dict(file_format.FIELDS)


def test_no_secret_is_in_the_repository() -> None:
    files = subprocess.run(["git", "ls-files", "-z"], capture_output=True, cwd=ROOT)
    names = files.stdout.decode().split("\0")[:-1] if files.returncode == 0 else []
    for name in names:
        path = ROOT / name
        assert path.suffix not in {".key", ".hefl", ".crt", ".pem"}
        if path.is_file():
            assert b"PRIVATE" + b" KEY-----" not in path.read_bytes(), name


def test_every_figure_in_the_documents_is_one_of_the_benchmarks() -> None:
    """The tables are what benchmarks/report.py makes of the kept results."""
    code = "import report; [print(t) for texts in report.sections().values() for t in texts.values()]"
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "benchmarks", check=True
    )
    documents = README + (ROOT / "benchmarks/README.md").read_text()
    lines = [line for line in made.stdout.splitlines() if line]
    assert len(lines) > 30
    for line in lines:
        assert line in documents
