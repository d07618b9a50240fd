"""Bars on a terminal, below what is logged: never in a pipe, and not for a reader of JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[str, int, int], None]
"""Is told what goes on, how many rounds of it are done, and of how many."""


@contextmanager
def progress_bars(*, as_json: bool) -> Iterator[Show]:
    """Show a bar for each thing that is told; they vanish in the end, however it comes."""
    if as_json or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Data goes where stdout goes; only where that is the terminal too must the bars make room for it.
    shown = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
    with shown:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(what, total=total)
            shown.update(tasks[what], completed=min(done, total), total=total)

        yield show
