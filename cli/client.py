"""``hefl client``: one client."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hefl.cli.interrupts import raised
from hefl.cli.logs import log_option
from hefl.cli.options import (
    json_option,
    keep_option,
    partition_option,
    print_json,
    terms_options,
)
from hefl.cli.passphrase import existing_passphrase, passphrase_file_option
from hefl.cli.progress import show_progress
from hefl.cli.terminal import say
from hefl.params import CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    from hefl.client.callbacks import RoundReport
    from hefl.client.options import OnTamper
    from hefl.engines.engine import Weighting
    from hefl.models.trainer import Trainer


log = logging.getLogger("hefl")


@click.command()
@click.argument("folder", metavar="DIR/clients/NAME", type=click.Path(path_type=Path))
@click.option("--data", metavar="NAME[:PART]", help="An example's data: iris:alice, iris:bob, digits:2/5.")
@partition_option
@click.option("--trainer", metavar="MODULE:FACTORY", help="Your own model, such as a Flower NumPyClient.")
@click.option("--server", "url", metavar="URL", help="Where the server is.  [default: as the folder says]")
@click.option(
    "--proxy",
    metavar="URL",
    help="Call the server through this HTTP proxy; TLS goes through it.  [default: as HTTPS_PROXY and NO_PROXY say]",
)
@click.option("--seed", default=0, show_default=True, help="For training and initial parameters; never for keys.")
@click.option(
    "--data-seed",
    type=click.IntRange(0, 2**32 - 1),
    default=42,
    show_default=True,
    help="For the split of --data; the same for every client.",
)
@click.option("--num-examples", type=int, metavar="N", help="Sample weight, where the trainer does not state it.")
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Start from this model (.npz, .safetensors) where this client begins the run: the first by name does.",
)
@click.option(
    "--save", type=click.Path(path_type=Path), metavar="FILE", help="Write the final model (.npz, .safetensors)."
)
@click.option(
    "--save-best",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the model with the lowest averaged validation loss so far there.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Let --save and --save-best replace a file that this client did not write in this run.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    metavar="N",
    help="Stop after N models in a row no better than the best, by averaged validation loss; the same for all clients.",
)
@click.option("--state", type=click.Path(path_type=Path), help="Private folder.  [default: DIR/clients/NAME/state]")
@keep_option
@terms_options
@click.option(
    "--connect-timeout",
    type=click.FloatRange(0),
    default=CONNECT_TIMEOUT_S,
    show_default=True,
    help="Seconds to try again where nobody answers, and to wait where another client came first with another model.",
)
@click.option(
    "--min-participants",
    type=click.IntRange(2),
    default=2,
    show_default=True,
    metavar="N",
    help="Answer no round, and believe no sum, of fewer clients than that: end with exit code 4 instead.",
)
@click.option(
    "--on-tamper",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do about a sum that fails a check: end with exit code 4, or keep the last model and go on. Who skips "
    "trains from one model again: a lying participant may then learn more of its update than one sum tells.",
)
@click.option(
    "--again",
    metavar="CODE",
    help="Train again from a model that was in a useless sum, for whoever is there now: a refusal shows the code, and "
    "what it may give away. It works once.",
)
@click.option(
    "--report-metrics",
    is_flag=True,
    help="Tell the server the averaged metrics of each model, to three digits, for its page.",
)
@passphrase_file_option
@click.option("--trace", type=click.Path(path_type=Path, file_okay=False), hidden=True)
@click.option("--insecure-http", is_flag=True, help="Plain HTTP without certificates, to loopback only.")
@click.option("--insecure-plaintext", is_flag=True, help="Allow --engine plaintext, to loopback only.")
@log_option
@json_option
def client(
    folder: Path,
    data: str | None,
    partition: str,
    trainer: str | None,
    url: str | None,
    proxy: str | None,
    seed: int,
    data_seed: int,
    num_examples: int | None,
    init: Path | None,
    save: Path | None,
    save_best: Path | None,
    force: bool,
    patience: int | None,
    state: Path | None,
    keep: int,
    engine: str,
    precision: int,
    weighting: Weighting,
    connect_timeout: float,
    min_participants: int,
    on_tamper: OnTamper,
    again: str | None,
    report_metrics: bool,
    passphrase_file: Path | None,
    trace: Path | None,
    insecure_http: bool,
    insecure_plaintext: bool,
    as_json: bool,
) -> None:
    """Take part in a training with this client's data, which never leaves it.

    Prints the averaged metrics of each global model on stdout.
    """
    from hefl.errors import UsageError

    if (data is None) == (trainer is None):
        raise UsageError("name either --data or --trainer", hint="for a first try: --data iris:alice")
    if trainer is not None and partition != "iid":
        raise UsageError("--partition shares an example's data, and --trainer brings its own")
    progress = show_progress(f"reading the keys in {folder}", as_json=as_json)
    from hefl.cli.loop import run
    from hefl.cli.proxy import proxy_from_environment
    from hefl.client.options import ClientOptions
    from hefl.client.start import opened

    def load(name: str) -> Trainer:
        progress.step(f"loading {data or trainer}")
        return _trainer(data, partition, trainer, seed, data_seed, name)

    said = False

    def step(what: str) -> None:
        nonlocal said
        if not said:  # the keys are read, and loading may take long
            log.info("loading %s", data or trainer)
            said = True
        progress.step(what)

    def tell(report: RoundReport) -> None:
        (_print_round_json if as_json else _print_round)(report)
        progress.rounds("rounds", report.round, report.rounds)

    options = ClientOptions(
        server=url,
        proxy=proxy,
        connect_timeout_s=connect_timeout,
        seed=seed,
        num_examples=num_examples,
        initial=init,
        save=save,
        save_best=save_best,
        force=force,
        patience=patience,
        state=state,
        keep=keep,
        engine=engine,
        precision_bits=precision,
        weighting=weighting,
        min_participants=min_participants,
        on_tamper=on_tamper,
        again=again,
        report_metrics=report_metrics,
        trace=trace,
        passphrase=existing_passphrase(passphrase_file),
        insecure_http=insecure_http,
        insecure_plaintext=insecure_plaintext,
    )
    with opened(folder, load, options, tell, find_proxy=proxy_from_environment, step=step) as participation:
        click.get_current_context().with_resource(raised())
        run(participation.run())
        if as_json:
            outcome = participation.outcome
            told = {"by": list(outcome.confirmed), "missing": list(outcome.unconfirmed)}
            print_json({"event": "confirmed", **told})
            if save:
                print_json({"event": "saved", "path": str(save)})


def _trainer(data: str | None, partition: str, trainer: str | None, seed: int, data_seed: int, name: str) -> Trainer:
    if trainer is not None:
        from hefl.models.trainer import load_trainer

        return load_trainer(trainer)
    from hefl.datasets import load_example

    return load_example(data or "", seed=seed, data_seed=data_seed, partition=partition, client=name)


def _print_round(report: RoundReport) -> None:
    if report.round == 0:
        return
    numbers = ", ".join(f"{k} {v:.4f}" if v is not None else f"{k} missing" for k, v in report.metrics.items())
    say(f"model {report.model} of {report.rounds}: {numbers}" if report.model else f"initial model: {numbers}")


def _print_round_json(report: RoundReport) -> None:
    print_json(
        {
            "event": "round",
            "round": report.round,
            "rounds": report.rounds,
            "metrics_of_model": report.model,
            "metrics": report.metrics,
            "verified": report.verified,
            "bytes_up": report.bytes_up,
            "bytes_down": report.bytes_down,
            "seconds": dict(report.seconds),
        }
    )
