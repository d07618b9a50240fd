"""``hefl client``: one client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hefl.cli.logs import log_option
from hefl.cli.options import json_option, print_json, terms_options

if TYPE_CHECKING:
    from hefl.client import RoundReport
    from hefl.engine import Weighting
    from hefl.trainer import Trainer


@click.command()
@click.argument("folder", metavar="DIR/clients/NAME", type=click.Path(path_type=Path))
@click.option("--data", metavar="NAME:PART", help="An example's data: iris:alice, iris:bob, iris:2/3.")
@click.option("--trainer", metavar="MODULE:FACTORY", help="Your own model, such as a Flower NumPyClient.")
@click.option("--server", "url", metavar="URL", help="Where the server is.  [default: as the folder says]")
@click.option("--seed", default=0, show_default=True, help="For training and initial parameters; never for keys.")
@click.option("--data-seed", default=42, show_default=True, help="For the split of --data.")
@click.option("--num-examples", type=int, metavar="N", help="Sample weight, where the trainer does not state it.")
@click.option("--save", type=click.Path(path_type=Path), metavar="FILE.npz", help="Write the final global model.")
@click.option("--force", is_flag=True, help="Let --save replace a file.")
@click.option("--state", type=click.Path(path_type=Path), help="Private folder.  [default: DIR/clients/NAME/state]")
@terms_options
@click.option(
    "--connect-timeout",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds to try again where nobody answers.",
)
@click.option(
    "--report-metrics",
    is_flag=True,
    help="Tell the server the averaged metrics of each model, to three digits, for its page.",
)
@click.option("--trace", type=click.Path(path_type=Path, file_okay=False), hidden=True)
@click.option("--insecure-http", is_flag=True, help="Plain HTTP without certificates, to loopback only.")
@click.option("--insecure-plaintext", is_flag=True, help="Allow --engine plaintext, to loopback only.")
@log_option
@json_option
def client(
    folder: Path,
    data: str | None,
    trainer: str | None,
    url: str | None,
    seed: int,
    data_seed: int,
    num_examples: int | None,
    save: Path | None,
    force: bool,
    state: Path | None,
    engine: str,
    precision: int,
    weighting: Weighting,
    connect_timeout: float,
    report_metrics: bool,
    trace: Path | None,
    insecure_http: bool,
    insecure_plaintext: bool,
    as_json: bool,
) -> None:
    """Take part in a training with this client's data, which never leaves it.

    Prints the averaged metrics of each global model on stdout.
    """
    from hefl.cli.loop import run
    from hefl.client import Client
    from hefl.engine import load_engine
    from hefl.errors import ExistsError, UsageError
    from hefl.files import check_writable, locked, private_folder
    from hefl.keys.party import read_client_folder
    from hefl.learner import Learner

    if (data is None) == (trainer is None):
        raise UsageError("name either --data or --trainer", hint="for a first try: --data iris:alice")
    if save and save.exists() and not force:
        raise ExistsError(f"{save} exists already", hint="name another file, or add --force")
    if save and not save.absolute().parent.is_dir():
        raise UsageError(f"the folder of --save {save} does not exist")
    if save:
        check_writable(save)
    keys = read_client_folder(folder)
    cipher = load_engine(engine, precision_bits=precision, weighting=weighting, insecure_plaintext=insecure_plaintext)
    cipher.prepare()
    place = private_folder(state or folder / "state")
    with locked(place, "client"):
        learner = Learner(
            keys.name,
            _trainer(data, trainer, seed, data_seed),
            keys.secret,
            cipher,
            seed=seed,
            num_examples=num_examples,
            trace=trace and private_folder(trace),
        )
        party = Client(
            keys,
            learner,
            place,
            url=url,
            connect_timeout_s=connect_timeout,
            insecure_http=insecure_http,
            report_metrics=report_metrics,
            on_round=_print_round_json if as_json else _print_round,
        )
        run(party.run())
        if save:
            learner.save(save)
            if as_json:
                print_json({"event": "saved", "path": str(save)})


def _trainer(data: str | None, trainer: str | None, seed: int, data_seed: int) -> Trainer:
    if trainer is not None:
        from hefl.trainer import load_trainer

        return load_trainer(trainer)
    from hefl.examples import load_example

    return load_example(data or "", seed=seed, data_seed=data_seed)


def _print_round(report: RoundReport) -> None:
    if report.round == 0:
        return
    numbers = ", ".join(f"{k} {v:.4f}" if v is not None else f"{k} missing" for k, v in report.metrics.items())
    last = report.round - 1
    click.echo(f"model {last} of {report.rounds}: {numbers}" if last else f"initial model: {numbers}")


def _print_round_json(report: RoundReport) -> None:
    print_json(
        {
            "event": "round",
            "round": report.round,
            "rounds": report.rounds,
            "metrics_of_model": report.round - 1,
            "metrics": report.metrics,
            "verified": report.verified,
            "bytes_up": report.bytes_up,
            "bytes_down": report.bytes_down,
            "seconds": dict(report.seconds),
        }
    )
