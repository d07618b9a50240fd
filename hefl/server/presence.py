"""Track which clients a server hears of; a silent one counts as gone."""

from __future__ import annotations

import time
from collections.abc import Iterable

from hefl.params import SILENT_S


class Presence:
    """When each client was last heard of.

    Args:
        names: Who was here before a restart: taken to be here still, and waited for, until it is silent for too long.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._at = dict.fromkeys(names, time.monotonic())
        self._unheard = set(self._at)

    def hear(self, name: str) -> None:
        """A client asks for something."""
        self._at[name] = time.monotonic()
        self._unheard.discard(name)

    def silent_s(self, name: str) -> float:
        """For how many seconds a client was not heard of."""
        return time.monotonic() - self._at.get(name, 0.0)

    def silent(self, names: Iterable[str]) -> frozenset[str]:
        """Those of the names that were silent for too long."""
        now = time.monotonic()
        return frozenset(name for name in names if now - self._at.get(name, now) > SILENT_S)

    def is_waited_for(self, names: Iterable[str]) -> bool:
        """Whether one of the names was here before a restart, was not heard of since, and may still be."""
        return bool(self._unheard & set(names) - self.silent(names))
