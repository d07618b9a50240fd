"""Measure seconds by phase, the same way everywhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("train", "quantise", "encrypt", "upload", "aggregate", "download", "decrypt", "evaluate")


class Timings:
    """Adds up wall-clock seconds under names."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block and add it to ``name``, also when it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """The seconds so far, by phase; starts again from nothing."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken
