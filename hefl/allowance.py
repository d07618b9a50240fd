"""How often each of several parties may do something."""

from __future__ import annotations

import time


class Allowance:
    """How often each of several parties may do something: so many times at once, and then so many a second."""

    def __init__(self, at_once: float, per_s: float) -> None:
        self._at_once, self._per_s = at_once, per_s
        self._left: dict[str, tuple[float, float]] = {}  # by name: how many, and when there were so many

    def take(self, name: str) -> bool:
        """Take one of a party's; False where it has none left."""
        now = time.monotonic()
        left, since = self._left.get(name, (self._at_once, now))
        left = min(self._at_once, left + (now - since) * self._per_s)
        self._left[name] = (left - 1, now) if left >= 1 else (left, now)
        return left >= 1
