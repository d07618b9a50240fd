"""Say how a run ended for a client."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hefl.client.learner import Learner
from hefl.protocol.messages import View

log = logging.getLogger("hefl")


def say_how_it_ended(view: View, learner: Learner, rounds: int) -> None:
    """What a run did not come to; where it ended early, whether this client, like all others, decided so.

    Args:
        view: The run's end.
        learner: The client's.
        rounds: The round of the last training, had there been no early end.
    """
    if view.model is None:
        log.warning("the run ended before there was a model")
        return
    if learner.model is None:
        hint = "start it again while the server lingers, with the --state that it had; the others have the last model"
        log.warning("this client has no model: no sum that it could get made one", extra={"hint": hint})
    elif learner.apart:
        hint = "a sum was skipped, as --on-tamper says: see above; the others have the last model"
        log.warning("this client's model is not the last one", extra={"hint": hint})
    last = view.model.announcement.round
    if view.records[-1] is view.model:
        log.warning("the metrics of model %d are not known: too few clients sent theirs in the end", last)
    if last >= rounds:
        return
    if reason := learner.reason_to_stop:
        log.info("stopped after round %d of %d: %s", last, rounds, reason)
    else:
        hint = f"the model is that of round {last}; ask who runs the server why"
        log.warning(
            "the run ended after round %d of %d, and this client did not decide so", last, rounds, extra={"hint": hint}
        )


def say_who_confirmed(confirmed: Sequence[str], unconfirmed: Sequence[str]) -> None:
    """For whom the run has ended in the same model, and of whom that is not known."""
    if unconfirmed:
        hint = "ask them whether their last round is this one; the server may have shown them another"
        log.warning("the model is not confirmed by %s", ", ".join(unconfirmed), extra={"hint": hint})
    elif confirmed:
        log.info("the model is confirmed by %s", ", ".join(confirmed))
