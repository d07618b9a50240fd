"""Where ``hefl`` begins. What Ctrl-C does is settled before the rest is loaded, for that takes a moment."""

from __future__ import annotations

from hefl.cli import interrupts

interrupts.begin()


def main() -> None:
    """Run the command line and exit."""
    from hefl.cli.main import main as command_line

    command_line()
