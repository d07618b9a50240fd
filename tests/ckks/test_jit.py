"""Where compiled code may be kept, and what is said about it."""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from federation import Command

from hefl.ckks import jit
from hefl.ckks.jit import is_private
from hefl.errors import KernelError

USE = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from hefl.ckks.selftest import check_kernels
from hefl.params import RINGS
check_kernels(RINGS[0])
check_kernels(RINGS[0])
from hefl.ckks import jit
print("folder", jit.cache_folder())
"""
PACKAGE = Path(jit.__file__).parents[2]


def _use(home: Path, **extra: str) -> str:
    environment = {"HOME": str(home), "PYTHONPATH": str(PACKAGE), "PATH": os.environ["PATH"], **extra}
    return subprocess.run(
        [sys.executable, "-c", USE], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_a_folder_of_ones_own_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o700)
    assert is_private(folder)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_not(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    assert not is_private(folder)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_nor_is_one_that_others_can_put_another_in_place_of(mode: int, tmp_path: Path) -> None:
    (tmp_path / "above" / "mine").mkdir(parents=True, mode=0o700)
    (tmp_path / "above").chmod(mode)
    assert not is_private(tmp_path / "above" / "mine")
    (tmp_path / "above").chmod(0o1777)
    assert is_private(tmp_path / "above" / "mine")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_nor_is_one_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "above" / "theirs").mkdir(parents=True, mode=0o700)
    os.chown(tmp_path / "above" / "theirs", 12345, 12345)
    assert not is_private(tmp_path / "above" / "theirs")
    (tmp_path / "above" / "theirs" / "mine").mkdir(mode=0o700)
    assert not is_private(tmp_path / "above" / "theirs" / "mine")


def test_links_do_not_hide_where_a_folder_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "link").symlink_to(shared)
    assert not is_private(tmp_path / "link")


def test_an_unsafe_cache_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "_home", lambda: tmp_path)
    monkeypatch.setattr(jit, "_PACKAGE", tmp_path / "package")
    (tmp_path / "package" / "__pycache__").mkdir(parents=True)
    (tmp_path / ".cache" / "hefl").mkdir(parents=True)
    folder = jit.cache_folder.__wrapped__()
    assert folder is not None
    assert folder.is_relative_to(tmp_path / ".cache")
    assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / ".cache").chmod(0o777)
    folder = jit.cache_folder.__wrapped__()
    assert folder is not None
    assert folder.is_relative_to(tmp_path / "package")
    (tmp_path / "package").chmod(0o777)
    assert jit.cache_folder.__wrapped__() is None


def test_the_users_cache_is_where_its_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = jit.cache_folder.__wrapped__()
    assert folder is not None
    assert folder.parent == tmp_path / "cache/hefl"
    monkeypatch.setattr(jit, "_PACKAGE", tmp_path / "package")
    for other in ("relative", "/proc/nothing"):
        monkeypatch.setenv("XDG_CACHE_HOME", other)
        folder = jit.cache_folder.__wrapped__()
        assert folder is not None
        assert folder.is_relative_to(tmp_path / "package")


def baked(folder: Path) -> Path:
    """Code in a folder, as it is left in an image."""
    (folder / "ckks").mkdir(parents=True)
    (folder / "ckks/kernel.nbi").write_bytes(b"index")
    (folder / "ckks/kernel.nbc").write_bytes(b"code")
    return folder


def test_code_in_a_folder_that_cannot_be_written_is_copied_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To where nobody else may write, also where the folder for temporary files is everybody's."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    done: list[tuple[Callable[..., object], Path, Path]] = []
    monkeypatch.setattr(atexit, "register", lambda *call: done.append(call))
    source = baked(tmp_path / "baked")
    copy = jit._copied(source)
    assert copy is not None
    assert [p.relative_to(copy) for p in sorted(copy.rglob("*"))] == [
        p.relative_to(source) for p in sorted(source.rglob("*"))
    ]
    assert (copy / "ckks/kernel.nbc").read_bytes() == b"code"
    (made,) = (tmp_path / "tmp").iterdir()
    assert made.stat().st_mode & 0o777 == 0o700
    made.rename(tmp_path / "tmp/away")
    made.mkdir()
    (copy / "ckks/new").write_bytes(b"")
    assert not list(made.iterdir())
    made.rmdir()
    (tmp_path / "tmp/away").rename(made)
    for remove, *paths in done:
        remove(*paths)
    assert not list((tmp_path / "tmp").iterdir())
    assert (source / "ckks/kernel.nbc").exists()


@pytest.mark.parametrize("spoilt", ["file", "folder", "above", "link"])
def test_code_that_others_could_have_written_is_not_copied(tmp_path: Path, spoilt: str) -> None:
    source = baked(tmp_path / "above/baked")
    if spoilt == "link":
        (source / "ckks/more").symlink_to("/etc/passwd")
    else:
        path = {"file": source / "ckks/kernel.nbc", "folder": source / "ckks", "above": tmp_path / "above"}[spoilt]
        path.chmod(0o777)
    assert jit._copied(source) is None
    assert jit._copied(tmp_path / "missing") is None


def test_where_no_folder_is_safe_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    jit._say_uncached.cache_clear()
    monkeypatch.setattr(jit, "_make_private", lambda folder: False)
    monkeypatch.setattr(jit, "_copied", lambda folder: None)
    with caplog.at_level(logging.WARNING, "hefl"):
        for _ in range(3):
            assert jit.cache_folder.__wrapped__() is None
    assert [r.message for r in caplog.records] == [
        "no folder is safe to keep compiled code in: it is compiled in memory, at every start"
    ]


@pytest.mark.slow
def test_a_first_start_says_why_it_takes_long_and_a_second_does_not_compile(tmp_path: Path) -> None:
    first, second = _use(tmp_path), _use(tmp_path)
    assert first.count("compiling the encryption for this machine") == 1
    assert "compiling" not in second
    assert f"folder {tmp_path}/.cache/hefl/kernels-" in second


@pytest.mark.slow
def test_numbas_own_settings_do_not_lead_to_another_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    said = _use(tmp_path, NUMBA_CACHE_DIR=str(elsewhere))
    assert f"folder {tmp_path}/.cache/hefl/" in said
    assert not list(elsewhere.iterdir())
    said = _use(tmp_path, NUMBA_CACHE_DIR=str(elsewhere), NUMBA_CACHE_LOCATOR_CLASSES="InTreeCacheLocator")
    assert said.count("it is compiled in memory") == 1


@pytest.mark.parametrize("arguments", [("plan", "--values", "1000", "--clients", "2"), ("bench", "--values", "1000")])
def test_who_forbids_numba_to_compile_hears_why_that_cannot_be(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    command = Command(*arguments, cwd=tmp_path, env={"NUMBA_DISABLE_JIT": "1"})
    assert command.wait() == KernelError.exit_code
    assert command.err[-2:] == [
        "hefl: the encryption is compiled code, and NUMBA_DISABLE_JIT forbids numba to compile",
        "hefl: hint: unset NUMBA_DISABLE_JIT; it may also stand as disable_jit in .numba_config.yaml",
    ]
    assert "Traceback" not in command.error
