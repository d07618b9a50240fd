"""What a command says to a person breaks between words where a terminal's row ends, and stays whole elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from federation import Command
from terminal import Terminal

from hefl.keys import authority

COLUMNS = 44


@pytest.mark.parametrize(
    "words",
    [
        ["keygen", "fed", "--revoke", "west"],
        ["keygen", "fed", "--client", "east"],
        ["inspect", "fed"],
        ["plan"],
        ["serve", "fed/server", "--min-clients", "9"],
        ["client", "fed/clients/west", "--server", "west"],
    ],
    ids=" ".join,
)
def test_no_word_is_torn_apart(tmp_path: Path, words: list[str]) -> None:
    authority.create(tmp_path / "fed", ["north", "south", "west"])
    for where in ("screen", "pipe"):
        shutil.copytree(tmp_path / "fed", tmp_path / where / "fed")
    with Terminal(*words, columns=COLUMNS, cwd=tmp_path / "screen") as shown:
        shown.wait()
    piped = Command(*words, cwd=tmp_path / "pipe")
    piped.wait()
    said = [*piped.out, *piped.err]
    assert max(map(len, said)) > COLUMNS
    assert sorted(" ".join(shown.lines).split()) == sorted(" ".join(said).split())


def test_what_a_machine_reads_stays_whole(tmp_path: Path) -> None:
    with Terminal("plan", "--json", columns=COLUMNS, cwd=tmp_path) as shown:
        shown.wait()
    line = next(line for line in shown.written.decode().splitlines() if '"bytes_up"' in line)
    assert json.loads(line[line.index("{") :])["limbs"] == 4
