"""Packages import each other in one direction, and only some modules load the heavy libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUND = {"errors", "files", "identity", "loops", "params", "sockets", "timings", "version"}
"""Modules of hefl itself that everybody may import."""

UP_TO_ENGINES = {"ckks", "encoding", "engines", "models"}
UP_TO_PROTOCOL = {*UP_TO_ENGINES, "protocol"}
PARTIES = {*UP_TO_PROTOCOL, "client", "keys", "rounds", "server"}
MAY_IMPORT: dict[str, set[str]] = {
    "ckks": set(),
    "models": set(),
    "keys": {"ckks"},
    "encoding": {"ckks", "models"},
    "engines": UP_TO_ENGINES,
    "protocol": UP_TO_ENGINES,
    "rounds": UP_TO_PROTOCOL,
    "client": {*UP_TO_PROTOCOL, "keys"},
    "server": {*UP_TO_PROTOCOL, "keys", "rounds"},
    "average": UP_TO_PROTOCOL,
    "simulation": {*UP_TO_PROTOCOL, "client", "rounds"},
    "datasets": {"models"},
    "inspection": {*UP_TO_PROTOCOL, "keys", "rounds", "server"},
    "demo": {*PARTIES, "average", "datasets"},
    "cli": {*PARTIES, "average", "datasets", "demo", "inspection", "simulation"},
}
"""What each package, or module beside them, may import besides the ground and itself."""

ONLY_IN: dict[str, set[str]] = {
    "aiohttp": {"server", "client.http", "demo.lying_server"},
    "tenseal": {"ckks.context", "engines.tenseal", "demo.benchmark"},
    "torch": {"models.torch", "datasets"},
}


def modules() -> Iterator[tuple[str, Path]]:
    """Names below ``hefl``, and files."""
    for package, folder in (("", ROOT / "hefl"), ("keys", ROOT / "keys"), ("cli", ROOT / "cli")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if not package and parts[0] in ("keys", "cli"):
                continue  # links, with which hefl runs from a checkout
            name = ".".join(part for part in (package, *parts) if part and part != "__init__")
            if name:
                yield name, path


@cache
def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it, but for types."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        pending.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_a_module_imports_downwards_only(name: str, path: Path) -> None:
    package = name.split(".")[0]
    assert package in {*GROUND, *MAY_IMPORT}
    allowed = {package, *GROUND, *MAY_IMPORT.get(package, set())}
    assert {module.split(".")[1] for module in imports(path) if module.startswith("hefl.")} <= allowed


@pytest.mark.parametrize("library", ONLY_IN)
def test_only_some_modules_load_a_heavy_library(library: str) -> None:
    users = {name for name, path in modules() if any(m.split(".")[0] == library for m in imports(path))}
    assert {u for u in users if not any(u == m or u.startswith(f"{m}.") for m in ONLY_IN[library])} == set()


@pytest.mark.parametrize("module", ["hefl.rounds.schedule", "hefl.rounds.views", "hefl.client.learner"])
def test_what_decides_loads_neither_a_network_nor_a_disk(module: str) -> None:
    code = f"import sys, {module}; print(*({{'aiohttp', 'asyncio', 'sqlite3', 'ssl', 'torch'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_every_package_is_installed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    found = {"hefl", *(f"hefl.{name}" for name, path in modules() if path.name == "__init__.py")}
    assert set(listed) == found
