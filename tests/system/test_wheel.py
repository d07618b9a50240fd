"""A wheel that is built from the tree has all of it, and runs without the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
OFFLINE = ("--no-deps", "--no-index")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wheel_has_every_module_and_runs_the_demo(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("hefl", "keys", "cli"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".mypy_cache")
        )
    subprocess.run([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hefl/")}
    written = {str(p.relative_to(source)) for p in (source / "hefl").rglob("*") if p.is_file()}
    written |= {f"hefl/{p.relative_to(source)}" for name in ("keys", "cli") for p in (source / name).rglob("*.py")}
    assert {name for name in written if name.endswith((".py", ".typed", ".css", ".js", ".html"))} <= packed
    subprocess.run([*PIP, "install", *OFFLINE, "--target", site, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    told = [sys.executable, "-c", "import hefl.cli; print(hefl.cli.__file__)"]
    where = subprocess.run(told, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(where.stdout.strip()).is_relative_to(site)
    demo = [sys.executable, "-m", "hefl.cli", "demo", "--rounds", "2", "--out", "out"]
    done = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "verified: true" in done.stdout
