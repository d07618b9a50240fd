"""Does anything grow in 500 rounds of Iris, with two clients? Writes results/soak.json.

Memory, open files, and files on the disk of the server and of each client, as they are every 25 rounds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import vitals
from results import note, write

from hefl.demo.processes import Children, run_federation
from hefl.keys import authority

ROUNDS, EVERY, SETTLED = 500, 25, 100
"""From round SETTLED on nothing should grow."""

CLIENTS = ("alice", "bob")


@dataclass(frozen=True, slots=True)
class Sample:
    """One process after one round.

    Attributes:
        memory_bytes: Resident.
        descriptors: Open files and sockets.
        files, disk_bytes: In its state folder.
        load: Load average of the machine over the last minute.
    """

    name: str
    round: int
    memory_bytes: int
    descriptors: int
    files: int
    disk_bytes: int
    load: float


def soak(folder: Path, rounds: int, every: int) -> Iterator[Sample]:
    """One run of so many rounds; samples as they are taken."""
    authority.create(folder / "keys", CLIENTS, ("127.0.0.1",))
    states = {name: folder / "states" / name for name in ("server", *CLIENTS)}
    serve = ["--rounds", str(rounds), "--state", str(states["server"])]
    clients = {name: ["--data", f"iris:{name}", "--state", str(states[name])] for name in CLIENTS}
    with Children(folder) as children:
        for name, event in run_federation(children, folder / "keys", serve, clients):
            due = event["event"] == "round" and 0 < event["round"] <= rounds and event["round"] % every == 0
            if due and name == "server":
                for who, state in states.items():
                    pid, there = children.pid(who), vitals.contents(state)
                    memory, opened = vitals.memory_bytes(pid), vitals.descriptors(pid)
                    load = os.getloadavg()[0]
                    yield Sample(who, event["round"], memory, opened, there.files, there.bytes, load)


def slope(samples: Sequence[Sample], field: str) -> float:
    """How much of something comes with each round: of the straight line that fits best."""
    return float(np.polyfit([s.round for s in samples], [getattr(s, field) for s in samples], 1)[0])


if __name__ == "__main__":
    note(f"soak: {ROUNDS} rounds of Iris")
    with tempfile.TemporaryDirectory(prefix="hefl-soak-") as temporary:
        rows = [asdict(sample) for sample in soak(Path(temporary), ROUNDS, EVERY)]
    write("soak", rows)
