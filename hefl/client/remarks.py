"""Warn about averages, rounded weights, and a start model that is not used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from hefl.models.layout import Arrays
from hefl.protocol.records import Record

log = logging.getLogger("hefl")


def on_averages(present: Mapping[str, float]) -> list[str]:
    """What to say of metrics that some clients have no finite number for; see codec.Averages."""
    remarks = []
    for name, share in present.items():
        if share == 0:
            remarks.append(f"no client has a finite number for metric {name!r}")
        elif share < 1:
            lacking = f"{max(1 - share, 0.001):.1%} of the weight"
            remarks.append(f"metric {name!r} leaves out clients with {lacking}: they have no finite number for it")
    return remarks


def on_rounding(off: float) -> list[str]:
    """What to say of a share of a sum that is ``off`` of itself, because weights are rounded."""
    if not off:
        return []
    than = "more" if off > 0 else "less"
    return [
        f"weights are rounded: this client's share of the sum is {abs(off):.2%} {than} than its share of the examples"
    ]


def say_whether_used(file: Path, record: Record, arrays: Arrays, initial: Arrays) -> None:
    """Say, at the first record, whether a run starts from the file that a client was told to start from."""
    number = record.announcement.round
    if number > 0:
        log.warning("--init %s is not used: the run began before, and is in round %d", file, number + 1)
    elif all(a.tobytes() == b.tobytes() for a, b in zip(arrays, initial, strict=True)):
        log.info("the run starts from the model in %s", file)
    else:
        log.warning("--init %s is not used: the run starts from %s's model", file, record.members[0].name)
        log.warning("hint: give the same --init to every client; the first by name is asked first")
