"""Write lines to a terminal, above the progress that is displayed there.

Every line goes through ``echo`` or ``say``. Written past the display, a line would be glued to it.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

PIPE_COLUMNS = 80
MIN_COLUMNS = 20
"""A terminal this narrow, or whose size is not known, breaks lines where it will."""

_displayed: Live | None = None


def display(live: Live) -> None:
    """Start a display on stderr, which must be a terminal."""
    global _displayed
    live.start(refresh=True)
    _displayed = live


def clear() -> None:
    """Take the display away, if there is one."""
    global _displayed
    live, _displayed = _displayed, None
    if live:
        live.stop()


def wipe() -> None:
    """Take the display's last line away and show the cursor, for a process that ends now; takes no lock."""
    if _displayed:
        os.write(2, b"\r\x1b[2K\x1b[?25h")


@contextmanager
def cleared() -> Iterator[None]:
    """In this block the terminal is a person's, who is asked something."""
    live = _displayed
    clear()
    yield
    if live:
        display(live)


def echo(text: str, *, err: bool = False) -> None:
    """One line on stdout, or stderr, at once."""
    if _displayed and (err or is_one_terminal()):
        _displayed.console.out(text, highlight=False)
    else:
        click.echo(text, err=err)


def say(text: str, *, err: bool = False, indent: int = 2) -> None:
    """Sentences for a person. Where they go to a terminal they break between words, so that none is torn apart.

    Args:
        text: One line, or several.
        err: They go to stderr.
        indent: Spaces before what goes on in another row.
    """
    echo("\n".join(_broken(text, 2 if err else 1, indent)), err=err)


def _broken(text: str, to: int, indent: int) -> list[str]:
    lines = text.split("\n")
    columns = os.get_terminal_size(to).columns if os.isatty(to) else 0
    if columns <= MIN_COLUMNS:
        return lines
    wrapper = textwrap.TextWrapper(columns, break_long_words=False, break_on_hyphens=False)
    wrapper.subsequent_indent = " " * indent
    return [row for line in lines for row in wrapper.wrap(line) or [""]]


def print_table(table: Table) -> None:
    """A table on stdout, as wide as the terminal; in a pipe as wide as most are."""
    from rich.console import Console

    Console(width=None if os.isatty(1) else PIPE_COLUMNS).print(table)


def is_one_terminal() -> bool:
    """Whether stdout is the terminal that stderr is."""
    return os.isatty(1) and os.isatty(2) and os.fstat(1).st_rdev == os.fstat(2).st_rdev
