"""``hefl bench``: what encryption costs on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hefl.cli.interrupts import raised
from hefl.cli.options import json_option, print_json
from hefl.cli.progress import show_progress
from hefl.cli.terminal import clear, echo, print_table
from hefl.params import EXAMPLE_CLIENTS, EXAMPLE_VALUES

if TYPE_CHECKING:
    from rich.table import Table

    from hefl.demo.benchmark import Row


@click.command()
@click.option(
    "--values", type=click.IntRange(1000), default=EXAMPLE_VALUES, show_default=True, help="Parameters of the model."
)
@click.option(
    "--clients", type=click.IntRange(2, 50), default=EXAMPLE_CLIENTS, show_default=True, help="With equal weights."
)
@json_option
def bench(values: int, clients: int, as_json: bool) -> None:
    """Time each engine's arithmetic on one core, and whole rounds, encrypted and plaintext, over TLS on this machine.

    Takes a minute or more. Each figure is a median of five; both sides are first checked to compute the same.
    """
    progress = show_progress("loading the engines", as_json=as_json)
    from hefl.demo.benchmark import bench_engines, bench_round

    def say(text: str) -> None:
        echo(f"hefl: {text}", err=True)
        progress.step("measuring")

    with raised():
        rows = [*bench_engines(values, [1] * clients, say), *bench_round(values, [1] * clients, say)]
    clear()
    if as_json:
        from hefl.demo.benchmark import as_json as plain

        for row in plain(rows):
            print_json(row)
        return
    for table in ("engines", "round"):
        print_table(_table(table, [row for row in rows if row.table == table]))


def _table(title: str, rows: Sequence[Row]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=f"{title}: {rows[0].values:,} values, {rows[0].clients} clients", box=SIMPLE_HEAD, padding=0)
    for heading in (
        "engine",
        "phase",
        "ms",
        "ns a\nvalue",
        "bytes a\nvalue up",
        "bytes a\nvalue down",
        "MB\npeak",
        "error",
    ):
        table.add_column(heading, justify="left" if heading in ("engine", "phase") else "right")
    for row in rows:
        table.add_row(
            row.engine,
            row.phase,
            f"{row.seconds * 1e3:,.1f}",
            f"{row.seconds / row.values * 1e9:,.1f}",
            f"{row.bytes_up / row.values:.2f}",
            f"{row.bytes_down / row.values:.2f}",
            f"{row.peak_bytes / 1e6:,.0f}",
            f"{row.max_abs_error:.0e}",
        )
    return table
