"""``hefl status``: what state a run is in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hefl.cli.options import json_option, print_json
from hefl.cli.terminal import say

if TYPE_CHECKING:
    from hefl.server.journal import Moment


@click.command()
@click.argument("state", metavar="STATE", type=click.Path(path_type=Path))
@json_option
def status(state: Path, as_json: bool) -> None:
    """Say what state the run in a server's state folder is in, whether a server works on it or not.

    STATE is the folder that 'hefl serve' takes, DIR/server, or as its --state. Reads, and changes nothing.
    """
    from hefl.rounds.run import Phase
    from hefl.rounds.views import describe, length
    from hefl.server.journal import FILE, read_moment

    inside = state / "state"
    moment = read_moment(inside if (inside / FILE).exists() and not (state / FILE).exists() else state)
    run = moment.run
    if as_json:
        print_json(
            {
                "run": run.run,
                "state": run.phase.value,
                "round": run.shown_round,
                "rounds": run.last_training,
                "in": sorted(run.committed if run.announcement else run.sessions),
                "awaited": list(run.unconfirmed if run.is_over else run.awaited),
                "deadline_s": _left_s(moment),
            }
        )
        return
    say(f"run {run.run[:8]} of {length(run)}: {describe(run)}")
    left_s = _left_s(moment)
    if run.is_over:
        if run.unconfirmed:
            waits = "not known to have the result" if run.phase is Phase.ENDED else "may not have the result yet"
            say(f"{waits}: {', '.join(run.unconfirmed)}")
    elif run.awaited:
        until = (
            "" if left_s is None else f", for {left_s:.0f} s more" if left_s > 0 else ", and the deadline has passed"
        )
        say(f"waits for {', '.join(run.awaited)}{until}")


def _left_s(moment: Moment) -> float | None:
    """Seconds until the open attempt's deadline, below zero once it has passed; None where none is open."""
    announcement = moment.run.announcement
    if announcement is None:
        return None
    return round(moment.announced_at + announcement.deadline_s - time.time(), 1)
