"""``hefl demo``: everything at once, on this machine."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hefl.cli.options import engine_option, json_option, partition_option, print_json
from hefl.cli.progress import progress_bars
from hefl.params import DATA_SETS, DEFAULT_ENGINE, LIES

if TYPE_CHECKING:
    from hefl.demo import Progress
    from hefl.report import Report


@click.command()
@click.option("--data", type=click.Choice(DATA_SETS), default=DATA_SETS[0], show_default=True, help="What to learn.")
@click.option("--clients", type=click.IntRange(2, 50), default=2, show_default=True, help="How many share the data.")
@partition_option
@click.option("--rounds", type=click.IntRange(1, 1000), default=20, show_default=True, help="Trainings.")
@click.option("--seed", default=0, show_default=True, help="For training and initial parameters; never for keys.")
@engine_option
@click.option(
    "--tamper",
    metavar="LIE",
    type=click.Choice(LIES),
    help="Let the server lie from round 1 on, and end with exit code 4 when a client notices. One of: "
    + ", ".join(LIES)
    + ".",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("hefl-demo"),
    show_default=True,
    help="Folder for report.json and curves.png.",
)
@click.option("--force", is_flag=True, help="Replace an older report.")
@json_option
def demo(
    data: str,
    clients: int,
    partition: str,
    rounds: int,
    seed: int,
    engine: str,
    tamper: str | None,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Make keys, start a server and clients as processes of their own, and train one model over TLS.

    Then the same again for comparison: without encryption, and on the pooled data of all clients. Prints a row a
    round; leaves report.json and curves.png. With --tamper: one training, by a server that lies.
    """
    from hefl.demo import Task, run_tampered, run_training, share_data, train_pooled
    from hefl.errors import EngineError, ExistsError
    from hefl.examples.partition import Partition
    from hefl.files import replacing
    from hefl.report import build_report, draw_curves

    if engine == "plaintext":
        raise EngineError(
            "the demo compares an encrypted training with a plaintext one",
            hint="--engine packed" if tamper else "--engine packed or tenseal",
        )
    task = Task(data, clients, Partition.parse(partition), rounds, seed)
    shares = share_data(task)
    if tamper:
        if engine != DEFAULT_ENGINE:
            raise EngineError(f"engine {engine!r} verifies nothing, and would notice no lie", hint="--engine packed")
        with tempfile.TemporaryDirectory(prefix="hefl-demo-") as folder:
            run_tampered(Path(folder), task, tamper)
    report_path, curves_path = out / "report.json", out / "curves.png"
    found = [path for path in (report_path, curves_path) if path.exists()]
    if found and not force:
        raise ExistsError(f"{found[0]} exists already", hint="name another folder with --out, or add --force")
    out.mkdir(parents=True, exist_ok=True)
    with _progress(as_json=as_json) as progress:
        trainings = {}
        for which in (engine, "plaintext"):
            with tempfile.TemporaryDirectory(prefix="hefl-demo-") as folder:
                trainings[which] = run_training(Path(folder), task, which, progress)
        pooled = train_pooled(task, progress)
    report = build_report(task, shares, trainings[engine], trainings["plaintext"], pooled)
    with replacing(report_path) as file:
        file.write(json.dumps(report, indent=1).encode() + b"\n")
    draw_curves(report, curves_path)
    if as_json:
        print_json(report)
        return
    _print(report)
    click.echo(f"{report_path} and {curves_path} have it all")


def _print(report: Report) -> None:
    from rich.console import Console

    from hefl.report import build_table

    Console(width=None if sys.stdout.isatty() else 170).print(build_table(report))
    rows = report["validation_examples"]
    right, plain, pooled = (
        f"{(course['final']['accuracy'] or 0.0) * rows:.0f} of {rows}"
        for course in (report, report["plaintext"], report["pooled"])
    )
    click.echo(f"right: {right} validation rows; plaintext: {plain}; pooled data: {pooled}")
    click.echo(
        f"largest difference between a decrypted global model and the exact weighted mean: "
        f"{report['max_abs_difference']:.1e}"
    )
    proved = "every aggregate proved to be the announced sum" if report["verified"] else "this engine cannot prove sums"
    click.echo(f"verified: {str(report['verified']).lower()} ({proved})")


@contextmanager
def _progress(*, as_json: bool) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line now and then."""
    if sys.stderr.isatty():
        with progress_bars(as_json=as_json) as show:
            yield show
        return

    def line(what: str, done: int, total: int) -> None:
        if done % 5 == 0 or done == total:
            click.echo(f"hefl: {what}: {done} of {total} rounds", err=True)

    yield line
