"""``hefl serve``: the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hefl.cli.interrupts import terminated_is_success
from hefl.cli.logs import log_option
from hefl.cli.options import Seconds, json_option, keep_option, kept_option, kept_terms_options, print_json
from hefl.cli.passphrase import existing_passphrase, passphrase_file_option
from hefl.cli.progress import show_progress
from hefl.cli.terminal import echo
from hefl.params import (
    JOIN_WAIT_S,
    LEAST_CONNECTIONS,
    MAX_CONNECTIONS,
    MAX_NUM_EXAMPLES,
    MAX_VALUES,
    MIN_BYTES_PER_S,
    MIN_CLIENTS,
    PATIENCE_S,
    ROUND_TIMEOUT_S,
    ROUNDS,
    SERVED_NUM_EXAMPLES,
)

if TYPE_CHECKING:
    from hefl.engines.engine import Weighting

log = logging.getLogger("hefl")


@click.command()
@click.argument("folder", metavar="DIR/server", type=click.Path(path_type=Path))
@click.option(
    "--rounds",
    type=click.IntRange(1, 1_000_000),
    help=f"Trainings.  [default: {ROUNDS}, or the run's own]",
)
@kept_option("--min-clients", type=click.IntRange(2), default=MIN_CLIENTS, help="Fewer than this in a sum is refused.")
@kept_option(
    "--join-wait",
    type=Seconds(0),
    default=JOIN_WAIT_S,
    help="Seconds to wait for the other known clients once --min-clients are here.",
)
@kept_option(
    "--round-timeout",
    type=Seconds(0, min_open=True),
    default=ROUND_TIMEOUT_S,
    help="Seconds until a round closes with whoever is in.",
)
@click.option(
    "--linger",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Seconds to stay after the end for known clients that do not have the result: late ones, or killed ones.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8443, show_default=True, help="0 takes any.")
@click.option(
    "--max-connections",
    type=click.IntRange(LEAST_CONNECTIONS, 65536),
    default=MAX_CONNECTIONS,
    show_default=True,
    help="At once; a client needs two or three. Beyond it, who has shown no certificate is cut off first.",
)
@click.option(
    "--peer-timeout",
    type=click.FloatRange(0, min_open=True),
    default=PATIENCE_S,
    show_default=True,
    help="Seconds for TLS, for a request's head, for a connection without a request, and while nothing moves.",
)
@click.option(
    "--min-rate",
    type=click.FloatRange(0, min_open=True),
    default=MIN_BYTES_PER_S,
    show_default=True,
    help="Bytes a second, over --peer-timeout: who sends or takes more slowly is cut off, and may try again.",
)
@kept_option(
    "--max-values",
    type=click.IntRange(1, MAX_VALUES),
    default=MAX_VALUES,
    help="A larger model is refused: 'hefl plan' says what memory and disk one takes.",
)
@kept_option(
    "--max-num-examples",
    type=click.IntRange(1, MAX_NUM_EXAMPLES),
    default=SERVED_NUM_EXAMPLES,
    metavar="N",
    help="A client with more is refused: beside very many examples of one, the others' weights become the same.",
)
@click.option(
    "--page-port",
    type=click.IntRange(0, 65535),
    help="Show the run in a browser of this machine, with /metrics and /healthz, on a port such as 8444; 0 takes any.  "
    "[default: off]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Folder for the run, which goes on where it stopped.  [default: DIR/server/state]",
)
@keep_option
@kept_terms_options
@passphrase_file_option
@click.option("--insecure-http", is_flag=True, help="Plain HTTP without certificates, on loopback only.")
@click.option("--insecure-plaintext", is_flag=True, help="Allow --engine plaintext, on loopback only.")
@log_option
@json_option
def serve(
    folder: Path,
    rounds: int | None,
    min_clients: int | None,
    join_wait: float | None,
    round_timeout: float | None,
    linger: float,
    host: str,
    port: int,
    max_connections: int,
    peer_timeout: float,
    min_rate: float,
    max_values: int | None,
    max_num_examples: int | None,
    page_port: int | None,
    state: Path | None,
    keep: int,
    engine: str | None,
    precision: int | None,
    weighting: Weighting | None,
    passphrase_file: Path | None,
    insecure_http: bool,
    insecure_plaintext: bool,
    as_json: bool,
) -> None:
    """Run the server of a federation for one training. It holds no key and sees no model.

    Prints its URL on stdout once it listens, and on stderr whom it waits for. Ends with exit code 0 when all rounds
    are over and every client that is still here has the result; says of whom it does not know that. Ctrl-C stops it
    (130), and so does SIGTERM (0); the same command then goes on with the run, and so it does after a crash. Where
    an option says "or the run's own", it need not be given again. With more --rounds, a finished run goes on too; with
    --linger, its result is to be had again.
    """
    terminated_is_success()
    progress = show_progress(f"reading the keys in {folder}", as_json=as_json)
    from hefl.cli.loop import run
    from hefl.server.limits import Limits
    from hefl.server.options import ServerOptions
    from hefl.server.start import Serving, limit_malloc_arenas, opened

    limit_malloc_arenas()
    running: Serving | None = None

    def tell(event: Mapping[str, Any]) -> None:
        (print_json if as_json else _print_url)(event)
        if event["event"] == "listening":
            progress.step("")
        elif event["event"] == "round" and running:
            progress.rounds("rounds", event["round"], running.journal.now.run.last_training)

    options = ServerOptions(
        rounds=rounds,
        min_clients=min_clients,
        join_wait_s=join_wait,
        round_timeout_s=round_timeout,
        max_values=max_values,
        max_num_examples=max_num_examples,
        engine=engine,
        precision_bits=precision,
        weighting=weighting,
        linger_s=linger,
        keep=keep,
        host=host,
        port=port,
        page_port=page_port,
        limits=Limits(max_connections=max_connections, patience_s=peer_timeout, min_bytes_per_s=min_rate),
        state=state,
        passphrase=existing_passphrase(passphrase_file),
        insecure_http=insecure_http,
        insecure_plaintext=insecure_plaintext,
    )
    with opened(folder, options, tell, progress.step) as serving:
        running = serving
        if serving:
            run(serving.run(), stop=serving.server.stop, terminated_is_success=True)


def _print_url(event: Mapping[str, Any]) -> None:
    if event["event"] == "listening":
        echo(event["url"])
    elif event["event"] == "page":
        log.info("the run can be watched at %(url)s", event)
