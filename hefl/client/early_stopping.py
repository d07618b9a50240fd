"""Early stopping: clients decide alike, from what they decrypt; the server cannot.

How the averaged validation loss has gone so far travels with every update, as two more encrypted metrics. Each client
takes it from the last aggregate, so that it is the same for all, for one that came late as well: ``Progress`` is a
function of the aggregate's bytes. The names of the two metrics say how patient a client is, so that clients that
differ in it have different layouts, and are told so when they join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hefl.params import LOSS_STEP, METRIC_RANGE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """How the averaged validation loss has gone so far, over the models whose loss is known.

    Attributes:
        best: The lowest, a multiple of LOSS_STEP; before there is one, the largest that a metric can be.
        since: How many models have come after the best one, none of them better.
    """

    best: float = METRIC_RANGE
    since: int = 0

    def after(self, loss: float | None) -> Progress:
        """With one more model. It is better if its loss is lower; one without a number (None) never is."""
        if loss is not None and (loss := _rounded(loss)) < self.best:
            return Progress(loss)
        return Progress(self.best, self.since + 1)


@dataclass(frozen=True, slots=True)
class Patience:
    """Stop after so many models in a row that are no better than the best one before them.

    Attributes:
        rounds: How many.
    """

    rounds: int

    @property
    def metrics(self) -> tuple[str, str]:
        """Names of the metrics that carry a Progress: the best loss, and ``since`` as a share of the patience."""
        return f"patience {self.rounds}: best loss", f"patience {self.rounds}: share used up"

    def is_over(self, progress: Progress) -> bool:
        """It is time to stop."""
        return progress.since >= self.rounds

    def tell(self, progress: Progress) -> dict[str, float]:
        """A progress as metrics."""
        best, share = self.metrics
        return {best: progress.best, share: min(progress.since / self.rounds, 1.0)}

    def read(self, metrics: Mapping[str, float | None]) -> Progress:
        """The progress that everyone told, from the averages."""
        best, share = (metrics[name] for name in self.metrics)
        if best is None or share is None:
            return Progress()
        return Progress(_rounded(best), round(share * self.rounds))


def without(metrics: Mapping[str, T], names: Sequence[str]) -> dict[str, T]:
    """The metrics that are a user's own."""
    return {name: value for name, value in metrics.items() if name not in names}


def of_layout(metrics: Sequence[str]) -> str:
    """What a layout's metrics say of a client's patience, in words."""
    found = next((name for name in metrics if name.startswith("patience ")), None)
    return f"--patience {found.split()[1].rstrip(':')}" if found else "no --patience"


def _rounded(loss: float) -> float:
    return round(loss / LOSS_STEP) * LOSS_STEP
