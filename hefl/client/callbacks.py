"""Call a user's code after each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hefl.encoding.codec import Metrics
from hefl.errors import TrainerError
from hefl.models.trainer import blaming


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One finished round, as one client saw it: what ``on_round`` is called with.

    Attributes:
        round: Its number, from 0. Round 0 hands out the initial model; the one after the last training is a closing
            exchange of metrics only.
        rounds: The round of the last training, as planned by then. In a run that was extended, the closing rounds
            before it have numbers too, so that it is more than the number of trainings.
        model: The round that made the model which this one started from: the one before, unless that made none.
        metrics: By name, averaged over the clients' validation data: of that model. Empty in round 0; None where no
            client had a number.
        verified: The aggregate proved that it is the announced sum.
        bytes_up, bytes_down: Sizes of this client's update and of the aggregate.
        seconds: What this client spent, by phase; see timings.PHASES.
    """

    round: int
    rounds: int
    model: int
    metrics: Metrics
    verified: bool
    bytes_up: int
    bytes_down: int
    seconds: Mapping[str, float]


OnRound = Callable[[RoundReport], object]
"""A user's callback."""


def tell(on_round: OnRound, report: RoundReport) -> None:
    """Call a user's callback.

    Raises:
        TrainerError: It raised; says what, and the traceback stays attached.
        BrokenPipeError: Whoever read what it prints has gone.
    """
    try:
        with blaming("on_round"):
            on_round(report)
    except TrainerError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            raise error.__cause__ from None
        raise
