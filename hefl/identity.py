"""The identity of a federation and a generation of its keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """Which federation, and which generation of its keys.

    Attributes:
        federation: 32 hexadecimal digits, random.
        generation: From 1; a rotation of keys adds 1.
    """

    federation: str
    generation: int

    def __str__(self) -> str:
        return f"federation {self.federation[:8]}, key generation {self.generation}"
