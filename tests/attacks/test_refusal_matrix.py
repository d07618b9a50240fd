"""Every file of every party, replaced by every kind of wrong one: the first command that reads it ends with 3.

The message names the file and the hint the mend. The commands run in this process, as ``hefl`` would; a handful run as
processes of their own below. Each is called so that it would end otherwise, and soon, if it took the file.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import Command

from hefl.cli import interrupts
from hefl.cli.main import main
from hefl.keys import authority
from hefl.keys.authority import Change
from hefl.keys.passphrase import Passphrase

WORDS = "correct horse"
FILES = {
    "server": ("public.hefl", "clients.hefl", "server.crt", "server.key", "ca.crt"),
    "clients/alice": ("secret.hefl", "address.hefl", "client.crt", "client.key", "ca.crt"),
    "authority": ("secret.hefl", "clients.hefl", "address.hefl", "ca.crt", "ca.key"),
}


class Worlds:
    """Federations made once: what belongs, and where wrong files come from."""

    def __init__(self, root: Path) -> None:
        self.root, self.words = root, root / "words"
        self.words.touch(0o600)
        self.words.write_text(WORDS + "\n")
        authority.create(root / "right", ["alice", "bob"])
        authority.create(root / "stranger", ["alice", "bob"])
        shutil.copytree(root / "right", root / "newer")
        authority.change(root / "newer", Change(rotate=True))
        authority.create(root / "sealed", ["alice", "bob"], passphrase=Passphrase(lambda _: WORDS))


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("worlds"))


@pytest.fixture
def fed(worlds: Worlds, tmp_path: Path) -> Path:
    shutil.copytree(worlds.root / "right", tmp_path / "fed")
    return tmp_path / "fed"


def arguments(fed: Path, party: str, *more: str | Path) -> list[str]:
    """The first command that reads a party's folder; with right files it ends with 2, 5 or 0, in this order."""
    commands: dict[str, list[str | Path]] = {
        "server": ["serve", fed / "server", "--host", "192.0.2.1", "--state", fed / "state"],
        "clients/alice": [
            *("client", fed / "clients/alice", "--trainer", "trainers:Drift", "--state", fed / "state"),
            *("--server", "https://127.0.0.1:1", "--connect-timeout", "0"),
        ],
        "authority": ["keygen", fed, "--client", "carol"],
    }
    return [str(word) for word in [*commands[party], *more]]


ENDS = {"server": 2, "clients/alice": 5, "authority": 0}

Hefl = Callable[[list[str]], tuple[int, list[str]]]


@pytest.fixture
def hefl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Hefl]:
    """Runs the command line in this process: exit code, and the lines on stderr."""

    def run(words: list[str]) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["hefl", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err.splitlines()

    with interrupts.kept():
        yield run


def check(answer: tuple[int, list[str]], file: Path) -> None:
    """Exit code 3, a message that names the file, and a hint."""
    code, lines = answer
    assert code == 3, lines
    assert str(file) in lines[0] or str(file) in lines[1]
    assert lines[-1].startswith("hefl: hint: ")
    assert all(line.startswith("hefl: ") for line in lines)


def flip(path: Path, at: int) -> None:
    """Change one byte to another that is no less text than it was."""
    data = bytearray(path.read_bytes())
    data[at] = ord("A") if data[at] != ord("A") else ord("B")
    path.write_bytes(data)


# --- wrong files ------------------------------------------------------------------------------------------------------


def another_partys(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    """The file of that name, or the one that is most like it, of another party of the same federation."""
    likes = {
        "server": {"public.hefl": "clients/alice/secret.hefl", "clients.hefl": "authority/clients.hefl"},
        "clients/alice": {n: f"clients/bob/{n}" for n in FILES["clients/alice"]},
        "authority": {"clients.hefl": "server/clients.hefl"},
    }
    stem = "clients/bob/client" if party == "server" else "server/server"
    like = likes[party].get(name, f"{stem}{path.suffix}" if "." in name else "")
    if party == "authority" and name in ("secret.hefl", "address.hefl"):
        like = f"clients/bob/{name}"
    if name == "ca.crt":
        like = "server/server.crt"  # every party has the same root: the nearest wrong one is no root
    return replace(path, worlds.root / "right" / like)


def another_federations(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    return replace(path, worlds.root / "stranger" / party / name)


def another_generations(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    return replace(path, worlds.root / "newer" / party / name)


def a_sealed_one(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    return replace(path, worlds.root / "sealed" / party / name)


def replace(path: Path, by: Path) -> bool:
    """Put another file in a file's place; whether that is another one at all."""
    if path.read_bytes() == by.read_bytes():
        return False
    path.write_bytes(by.read_bytes())
    return True


def truncated(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return True


def cut_by_one_byte(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    path.write_bytes(path.read_bytes()[:-1])
    return True


def longer(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    path.write_bytes(path.read_bytes() + b"\n")
    return True


def doubled(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    path.write_bytes(path.read_bytes() * 2)
    return True


def empty(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    path.write_bytes(b"")
    return True


def missing(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    path.unlink()
    return True


def a_link(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    shutil.move(path, path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))
    return True


def a_folder(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    path.unlink()
    path.mkdir()
    return True


def loose(path: Path, worlds: Worlds, party: str, name: str) -> bool:
    path.chmod(0o640)
    return True


WRONGS = (
    another_partys,
    another_federations,
    another_generations,
    a_sealed_one,
    truncated,
    cut_by_one_byte,
    longer,
    doubled,
    empty,
    missing,
    a_link,
    a_folder,
    loose,
)
SAME = {
    ("authority", "ca.key", another_generations),  # the root's key stays over generations
}


@pytest.mark.parametrize("party", FILES)
def test_with_the_right_files_the_commands_end_otherwise(fed: Path, hefl: Hefl, party: str) -> None:
    assert hefl(arguments(fed, party))[0] == ENDS[party]


@pytest.mark.parametrize("wrong", WRONGS)
@pytest.mark.parametrize(("party", "name"), [(party, name) for party, names in FILES.items() for name in names])
def test_a_wrong_file_is_refused_by_the_first_command_that_reads_it(
    fed: Path, worlds: Worlds, hefl: Hefl, party: str, name: str, wrong: Callable[[Path, Worlds, str, str], bool]
) -> None:
    path = fed / party / name
    differs = wrong(path, worlds, party, name)
    assert differs != ((party, name, wrong) in SAME)
    if differs:
        check(hefl(arguments(fed, party)), path)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize(("party", "name"), [(party, name) for party, names in FILES.items() for name in names])
def test_a_file_with_a_flipped_byte_is_refused_wherever_it_is(fed: Path, hefl: Hefl, party: str, name: str) -> None:
    path = fed / party / name
    right = path.read_bytes()
    pem = path.suffix != ".hefl"
    parts = 40 if pem else 7  # DER has more ways to be wrong, and is short
    spread = [len(right) * i // parts for i in range(parts)] + [len(right) - 2, len(right) - 1]
    fields = [m.start(1) for m in re.finditer(rb"^[a-z-]+: (?:.{3})?(.)", right, re.MULTILINE)]
    for at in sorted({*spread, *fields}):
        flip(path, at)
        check(hefl(arguments(fed, party)), path)
        path.write_bytes(right)


@pytest.mark.parametrize(
    ("party", "name"),
    [
        ("server", "server.key"),
        ("clients/alice", "secret.hefl"),
        ("clients/alice", "client.key"),
        ("authority", "ca.key"),
    ],
)
def test_a_sealed_file_with_a_flipped_byte_or_from_elsewhere_is_refused_with_the_right_passphrase(
    worlds: Worlds, tmp_path: Path, hefl: Hefl, party: str, name: str
) -> None:
    fed = tmp_path / "fed"
    shutil.copytree(worlds.root / "sealed", fed)
    path = fed / party / name
    right = path.read_bytes()
    for match in re.finditer(rb"^([a-z-]+): (.)", right, re.MULTILINE):
        flip(path, match.start(2))
        check(hefl(arguments(fed, party, "--passphrase-file", worlds.words)), path)
        path.write_bytes(right)
    elsewhere = {"server": "clients/bob/client.key", "authority": "server/server.key"}
    path.write_bytes((fed / elsewhere.get(party, f"clients/bob/{name}")).read_bytes())
    check(hefl(arguments(fed, party, "--passphrase-file", worlds.words)), path)


@pytest.mark.parametrize("party", FILES)
@pytest.mark.parametrize("mode", [0o750, 0o705, 0o770])
def test_a_folder_that_others_may_enter_is_refused_with_the_mend(fed: Path, hefl: Hefl, party: str, mode: int) -> None:
    (fed / party).chmod(mode)
    answer = hefl(arguments(fed, party))
    check(answer, fed / party)
    assert answer[1][-1] == f"hefl: hint: chmod 700 {fed / party}"


@pytest.mark.parametrize("party", FILES)
def test_a_folder_that_is_a_link_is_refused(fed: Path, hefl: Hefl, party: str, tmp_path: Path) -> None:
    (fed / party).rename(tmp_path / "real")
    (fed / party).symlink_to(tmp_path / "real")
    check(hefl(arguments(fed, party)), fed / party)


@pytest.mark.parametrize("party", FILES)
@pytest.mark.parametrize("wrong", [another_generations, truncated])
def test_the_same_as_processes(
    fed: Path, worlds: Worlds, party: str, wrong: Callable[[Path, Worlds, str, str], bool]
) -> None:
    path = fed / party / FILES[party][0]
    wrong(path, worlds, party, path.name)
    command = Command(*arguments(fed, party))
    try:
        check((command.wait(), command.err), path)
    finally:
        command.stop()
