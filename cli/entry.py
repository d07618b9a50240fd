"""Start the command line; settle what Ctrl-C does before the rest is loaded."""

from __future__ import annotations

from hefl.cli import interrupts

interrupts.begin()


def main() -> None:
    """Run the command line and exit."""
    from hefl.cli.main import main as command_line

    command_line()
