"""The lock holds all that the development environment needs, in versions that pyproject.toml takes, with hashes."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENTRIES = [e for e in re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE).replace("\\\n", " ").splitlines() if e]
PINS = {name: Version(version) for name, version in (entry.split()[0].split("==") for entry in ENTRIES)}
TORCH = re.findall(r"\btorch==(\S+)", (ROOT / "Makefile").read_text())


def ranges(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for, with an extra and the extras that it names of this project's own."""
    asked = [Requirement(text) for text in PROJECT["optional-dependencies"][extra]]
    own = [name for requirement in asked if requirement.name == "hefl" for name in requirement.extras]
    return [r for r in asked if r.name != "hefl"] + [r for name in own for r in ranges(name)]


def needed() -> dict[str, list[Requirement]]:
    """Every requirement that this Python on this machine has to meet, by package: the project's, and theirs in turn."""
    found: dict[str, list[Requirement]] = {}
    todo = [Requirement(text) for text in PROJECT["dependencies"]] + ranges("dev")
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement in found.setdefault(name, []):
            continue
        found[name].append(requirement)
        for text in metadata.requires(name) or []:
            theirs = Requirement(text)
            extras = ["", *requirement.extras]
            if theirs.marker is None or any(theirs.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(theirs)
    return found


def test_each_package_stands_once_with_one_version_and_its_hashes() -> None:
    assert len(PINS) == len(ENTRIES)
    for entry in ENTRIES:
        assert re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+( ; [^#-]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", entry), entry


def test_all_that_this_environment_needs_is_in_the_lock_in_a_version_that_is_asked_for() -> None:
    """But for torch and what only a build of torch for a GPU needs."""
    asked = needed()
    assert {"aiohttp", "pytest", "ruff", "flwr", "sympy"} <= asked.keys()
    torch = Version(TORCH[0])
    for name, requirements in asked.items():
        if re.match("nvidia-|cuda-|triton", name):
            continue
        version = torch if name == "torch" else PINS[name]
        for requirement in requirements:
            assert version in requirement.specifier, f"{name} {version} is not {requirement}"


def test_torch_is_pinned_once_and_not_in_the_lock() -> None:
    assert len(TORCH) == 1
    assert "torch" not in PINS


def test_versions_with_known_holes_are_not_asked_for() -> None:
    floors = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    for name, flawed, mended in (("aiohttp", "3.14.2", "3.14.3"), ("cryptography", "48.0.0", "48.0.1")):
        assert flawed not in floors[name]
        assert mended in floors[name]


def test_the_lock_names_no_place_to_fetch_from_and_no_machine() -> None:
    assert not re.search(r"://|--(index|extra-index|find-links|trusted-host)|/", LOCK)
