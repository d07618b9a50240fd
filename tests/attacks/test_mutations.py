"""Without a check, the test of its attack fails: each check of what a server shows is taken out of a copy in turn."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hefl.errors import TAMPER_CHECKS

ROOT = Path(__file__).parents[2]
TESTS = {
    "tests/protocol/test_updates.py": {
        "names-distinct",
        "names-announced",
        "names-ordered",
        "weights-announced",
        "enough-members",
        "record",
    },
    "tests/demo/test_forgeries.py": {"tag"},
    "tests/protocol/test_history.py": {"run", "head", "history", "attempt-rises", "own-seed"},
    "tests/client/test_client.py": {"own-weight", "enough-participants"},
    "tests/client/test_one_set.py": {"one-set"},
}
"""Where the attacks that a check refuses are tested."""


def refusals(check: str) -> Iterator[tuple[Path, ast.Raise]]:
    """Every statement that refuses by this check, in hefl's source."""
    for path in (ROOT / "hefl").glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                named = [k.value for k in node.exc.keywords if k.arg == "check"]
                if any(isinstance(value, ast.Constant) and value.value == check for value in named):
                    yield path.relative_to(ROOT), node


def without(check: str, folder: Path) -> Path:
    """A copy of the project in which nothing refuses by this check."""
    for name in ("hefl", "keys", "cli", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    found = list(refusals(check))
    assert found
    for path, node in found:
        lines = (folder / path).read_text().splitlines()
        assert node.end_lineno
        lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + "pass"] + [""] * (
            node.end_lineno - node.lineno
        )
        (folder / path).write_text("\n".join(lines) + "\n")
    return folder


def run(folder: Path, module: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", module]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def test_every_check_is_in_the_source_and_has_an_attack() -> None:
    assert {check for checks in TESTS.values() for check in checks} == set(TAMPER_CHECKS)
    for check in TAMPER_CHECKS:
        assert list(refusals(check)), check


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("check", TAMPER_CHECKS)
def test_an_attack_passes_where_its_check_is_taken_out(tmp_path: Path, check: str) -> None:
    (module,) = (name for name, checks in TESTS.items() if check in checks)
    done = run(without(check, tmp_path), module)
    assert done.returncode == 1, done.stdout
    assert "Failed: DID NOT RAISE" in done.stdout or "AssertionError" in done.stdout or "!= " in done.stdout, (
        done.stdout
    )
