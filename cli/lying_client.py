"""``python -m hefl.cli.lying_client LIE client ...``: ``hefl`` with a client that lies; see demo.lying_client."""

from __future__ import annotations

import sys

from hefl.cli.main import main as command_line
from hefl.client import start
from hefl.demo.lying_client import LyingClient, LyingLearner


def main() -> None:
    """Run hefl's command line with a client that tells the lie that the first argument names."""
    LyingLearner.lie = sys.argv.pop(1)
    # Where the command takes them from.
    setattr(start, "Client", LyingClient)  # noqa: B010
    setattr(start, "Learner", LyingLearner)  # noqa: B010
    command_line()


if __name__ == "__main__":
    main()
