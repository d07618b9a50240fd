"""A global model, and the round that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hefl.encoding.codec import Scales
from hefl.models.layout import Arrays


@dataclass(frozen=True, slots=True)
class GlobalModel:
    """The model that stands after a round.

    Attributes:
        round: 0 for the initial one.
        arrays: In the layout's order.
        scales: At which the next round is encoded; empty where the engine needs none.
        of: The round that made it, where it is an earlier one.
    """

    round: int
    arrays: Arrays
    scales: Scales = ()
    of: int | None = None

    @property
    def made_in(self) -> int:
        """The round that made it."""
        return self.round if self.of is None else self.of

    def standing(self, round_num: int) -> GlobalModel:
        """The same model after a later round, which made none."""
        return replace(self, round=round_num, of=self.made_in)
