"""Warn of something about a model once while it lasts."""

from __future__ import annotations

import logging
from collections.abc import Iterable

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
