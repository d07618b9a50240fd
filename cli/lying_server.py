"""``python -m hefl.cli.lying_server LIE serve ...``: ``hefl`` with a server that lies; see demo.lying_server."""

from __future__ import annotations

import sys

from hefl.cli.main import main as command_line
from hefl.demo.forgeries import LiarState
from hefl.demo.lying_server import LyingServer, LyingStore
from hefl.server import start


def main() -> None:
    """Run hefl's command line with a server that tells the lie that the first argument names."""
    LyingStore.memory = LiarState(sys.argv.pop(1))
    setattr(start, "Server", LyingServer)  # noqa: B010 - where the command takes it from
    command_line()


if __name__ == "__main__":
    main()
