"""How long does each command take to be ready, the first time and later? Writes results/startup.json.

The first start finds no compiled code; the later ones find what it left. Medians of five, but for the first.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import note, write

from hefl.keys import authority


def seconds(arguments: list[str], text: str, cache: Path) -> float:
    """Until a command prints a line with ``text``, or ends where that is empty."""
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "hefl.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HOME": str(cache)},
    ) as child:
        assert child.stdout
        for line in child.stdout:
            if text and text in line:
                break
        taken = time.perf_counter() - started
        child.kill()
    return taken


if __name__ == "__main__":
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority.create(folder / "fed", ["alice", "bob"], ["127.0.0.1:1"])
        state = ["--state", str(folder / "state")]
        commands = {
            "hefl --help": (["--help"], ""),
            "hefl keygen": (["keygen", str(folder / "new"), "--client", "alice", "--force"], ""),
            "hefl serve": (["serve", str(folder / "fed/server"), "--port", "0", *state], "https://"),
            "hefl client": (
                ["client", str(folder / "fed/clients/alice"), "--data", "iris:alice", *state],
                "does not answer",
            ),
        }
        for command, (arguments, text) in commands.items():
            note(f"start-up: {command}")
            cache = folder / command.replace(" ", "-")
            cache.mkdir(mode=0o700)
            first = seconds(arguments, text, cache)
            later = statistics.median(seconds(arguments, text, cache) for _ in range(5))
            rows.append({"table": "startup", "command": command, "first_s": first, "later_s": later})
    write("startup", rows)
