"""``hefl demo``: everything at once, on this machine."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hefl.cli.interrupts import raised
from hefl.cli.options import engine_option, json_option, partition_option, print_json
from hefl.cli.progress import show_progress
from hefl.cli.terminal import clear, echo, print_table, say
from hefl.params import CLIENT_LIES, DATA_SETS, DEFAULT_ENGINE, LIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hefl.demo.report import Report

log = logging.getLogger("hefl")


def _explained(lies: Mapping[str, str]) -> str:
    return "\n".join(f"  {lie:<16} {what}" for lie, what in lies.items())


@click.command(
    epilog=f"\b\nLies of the server:\n{_explained(LIES)}\n\n"
    f"\b\nLies of one client, beside two others or more:\n{_explained(CLIENT_LIES)}"
)
@click.option("--data", type=click.Choice(DATA_SETS), default=DATA_SETS[0], show_default=True, help="What to learn.")
@click.option("--clients", type=click.IntRange(2, 50), default=2, show_default=True, help="How many share the data.")
@partition_option
@click.option("--rounds", type=click.IntRange(1, 1000), default=20, show_default=True, help="Trainings.")
@click.option("--seed", default=0, show_default=True, help="For training and initial parameters; never for keys.")
@engine_option
@click.option(
    "--tamper",
    metavar="LIE",
    type=click.Choice([*LIES, *CLIENT_LIES]),
    help="Let the server or a client lie, and end with exit code 4 when the others stop; see below for the lies.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("hefl-demo"),
    show_default=True,
    help="Folder for report.json and curves.png.",
)
@click.option("--force", is_flag=True, help="Replace an older report.")
@click.option("--verbose", is_flag=True, help="Print how long each phase of a round took, too.")
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
    verbose: bool,
    as_json: bool,
) -> None:
    """Make keys, start a server and clients as processes of their own, and train one model over TLS.

    Then the same again for comparison: without encryption, and on the pooled data of all clients. Prints a row a
    round; leaves report.json and curves.png. With --tamper: one training, with a server or a client
    that lies.
    """
    progress = show_progress(f"sharing {data} among {clients} clients", as_json=as_json)
    from hefl.datasets.partition import Partition
    from hefl.demo.report import build_report, draw_curves
    from hefl.demo.training import Task, run_tampered, run_training, run_with_lying_client, split_data, train_pooled
    from hefl.errors import EngineError, ExistsError
    from hefl.files import replacing

    if engine == "plaintext":
        raise EngineError(
            "the demo compares an encrypted training with a plaintext one",
            hint="--engine packed" if tamper else "--engine packed or tenseal",
        )
    task = Task(data, clients, Partition.parse(partition), rounds, seed)
    shares = split_data(task)
    if tamper:
        if engine != DEFAULT_ENGINE:
            raise EngineError(f"engine {engine!r} verifies nothing, and would notice no lie", hint="--engine packed")
        liar, what = ("server", LIES[tamper]) if tamper in LIES else ("last client", CLIENT_LIES[tamper])
        log.info("the lie %s: the %s %s", tamper, liar, what)
        progress.step(f"training with the lie {tamper}")
        with raised(), tempfile.TemporaryDirectory(prefix="hefl-demo-") as folder:
            if tamper in LIES:
                run_tampered(Path(folder), task, tamper)
            came_of_it = run_with_lying_client(Path(folder), task, tamper)
        clear()
        say(came_of_it)
        return
    report_path, curves_path = out / "report.json", out / "curves.png"
    found = [path for path in (report_path, curves_path) if path.exists()]
    if found and not force:
        raise ExistsError(f"{found[0]} exists already", hint="name another folder with --out, or add --force")
    out.mkdir(parents=True, exist_ok=True)
    tell = progress.rounds if progress.is_displayed else _print_rounds
    trainings = {}
    with raised():
        for which in (engine, "plaintext"):
            progress.step(f"{which}: making keys, starting a server and {clients} clients")
            with tempfile.TemporaryDirectory(prefix="hefl-demo-") as folder:
                trainings[which] = run_training(Path(folder), task, which, tell)
        progress.step("training on the pooled data")
        pooled = train_pooled(task, tell)
        progress.step("drawing curves")
        report = build_report(task, shares, trainings[engine], trainings["plaintext"], pooled)
        with replacing(report_path) as file:
            file.write(json.dumps(report, indent=1).encode() + b"\n")
        draw_curves(report, curves_path)
    clear()
    if as_json:
        print_json(report)
        return
    _print(report, verbose=verbose)
    say(f"{report_path} and {curves_path} have it all")


def _print(report: Report, *, verbose: bool) -> None:
    from hefl.demo.report import build_phases_table, build_table

    print_table(build_table(report))
    if verbose:
        print_table(build_phases_table(report))
    rows = report["validation_examples"]
    right, plain, pooled = (
        f"{(course['final']['accuracy'] or 0.0) * rows:.0f} of {rows}"
        for course in (report, report["plaintext"], report["pooled"])
    )
    say(f"right: {right} validation rows; plaintext: {plain}; pooled data: {pooled}")
    say(f"largest difference of a model from the exact weighted mean: {report['max_abs_difference']:.1e}")
    proved = "every aggregate proved to be the announced sum" if report["verified"] else "this engine cannot prove sums"
    say(f"verified: {str(report['verified']).lower()} ({proved})")


def _print_rounds(what: str, done: int, total: int) -> None:
    """Where there is no bar, a line now and then."""
    if done % 5 == 0 or done == total:
        echo(f"hefl: {what}: {done} of {total} rounds", err=True)
