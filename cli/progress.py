"""Show on a terminal what a command is doing, below what it says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from hefl.cli import terminal

if TYPE_CHECKING:
    from rich.progress import TaskID


_BESIDE = 16
"""Columns beside a step's text."""


class Progress:
    """What a command is doing; here where there is nothing to display it on.

    Attributes:
        is_displayed: There is.
    """

    is_displayed = False

    def step(self, what: str) -> None:
        """Something begins that may take a while, in place of the step before; nothing does where it is empty."""

    def rounds(self, what: str, done: int, total: int) -> None:
        """So many rounds of something are done; no step goes on any more."""


class _Displayed(Progress):
    """A line for the step, with the seconds since it began, and a bar for each thing that has rounds."""

    is_displayed = True

    def __init__(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        console = Console(stderr=True)
        shortened = Column(no_wrap=True, overflow="ellipsis", max_width=max(console.width - _BESIDE, 1))
        what = TextColumn("{task.description}", markup=False, table_column=shortened)
        self._steps = Bars(SpinnerColumn(), what, TimeElapsedColumn(), console=console)
        what = TextColumn("{task.description:>10}", markup=False)
        self._bars = Bars(what, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
        self._of: dict[str, TaskID] = {}
        # What a trainer prints stays above the display too.
        redirected = terminal.is_one_terminal()
        terminal.display(
            Live(
                Group(self._steps, self._bars),
                console=console,
                transient=True,
                redirect_stdout=redirected,
                refresh_per_second=8,
            )
        )

    def step(self, what: str) -> None:
        for task in self._steps.task_ids:
            self._steps.remove_task(task)
        if what:
            self._steps.add_task(what, total=None)

    def rounds(self, what: str, done: int, total: int) -> None:
        self.step("")
        if what not in self._of:
            self._of[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._of[what], completed=min(done, total), total=total)


def show_progress(first: str, *, as_json: bool) -> Progress:
    """Display what the command does, from a first step on; it vanishes when the command ends, however it does.

    Args:
        first: The step.
        as_json: Whoever called wants JSON, and no display.
    """
    if as_json or not sys.stderr.isatty():
        return Progress()
    click.get_current_context().call_on_close(terminal.clear)
    progress = _Displayed()
    progress.step(first)
    return progress
