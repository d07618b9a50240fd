"""What is said once while it lasts, not in each round."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

log = logging.getLogger("hefl")


class Remarks:
    """Warns of what was not so of the last model."""

    def __init__(self) -> None:
        self._last: frozenset[str] = frozenset()

    def make(self, model: int, remarks: Iterable[str]) -> None:
        """Log remarks on a model, but those that were made on the one before."""
        now = list(remarks)
        for remark in now:
            if remark not in self._last:
                log.warning("model %d: %s", model, remark)
        self._last = frozenset(now)


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
