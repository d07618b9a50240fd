"""``hefl serve``: the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hefl.cli.logs import log_option
from hefl.cli.options import json_option, keep_option, print_json, terms_options
from hefl.cli.passphrase import announce_expiry, existing_passphrase, passphrase_file_option
from hefl.cli.progress import progress_bars
from hefl.params import (
    MAX_CONNECTIONS,
    MAX_NUM_EXAMPLES,
    MAX_VALUES,
    MIN_BYTES_PER_S,
    PATIENCE_S,
    ROUNDS,
    SERVED_NUM_EXAMPLES,
)

if TYPE_CHECKING:
    from hefl.engine import Weighting
    from hefl.page.site import Page
    from hefl.server import Server

log = logging.getLogger("hefl")


@click.command()
@click.argument("folder", metavar="DIR/server", type=click.Path(path_type=Path))
@click.option(
    "--rounds",
    type=click.IntRange(1, 1_000_000),
    help=f"Trainings.  [default: {ROUNDS}, or those of the run that is there]",
)
@click.option(
    "--min-clients", type=click.IntRange(2), default=2, show_default=True, help="Fewer than this in a sum is refused."
)
@click.option(
    "--join-wait",
    type=click.FloatRange(0),
    default=2.0,
    show_default=True,
    help="Seconds to wait for the other known clients once --min-clients are here.",
)
@click.option(
    "--round-timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
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
    type=click.IntRange(2, 65536),
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
@click.option(
    "--max-values",
    type=click.IntRange(1, MAX_VALUES),
    default=MAX_VALUES,
    show_default=True,
    help="A larger model is refused: 'hefl plan' says what memory and disk one takes.",
)
@click.option(
    "--max-num-examples",
    type=click.IntRange(1, MAX_NUM_EXAMPLES),
    default=SERVED_NUM_EXAMPLES,
    show_default=True,
    metavar="N",
    help="A client with more is refused: beside very many examples of one, the others' weights become the same.",
)
@click.option(
    "--page-port",
    type=click.IntRange(0, 65535),
    help="Show the run in a browser of this machine, with /metrics and /healthz; 0 takes any port.  [default: off]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Folder for the run, which goes on where it stopped.  [default: DIR/server/state]",
)
@keep_option
@terms_options
@passphrase_file_option
@click.option("--insecure-http", is_flag=True, help="Plain HTTP without certificates, on loopback only.")
@click.option("--insecure-plaintext", is_flag=True, help="Allow --engine plaintext, on loopback only.")
@log_option
@json_option
def serve(
    folder: Path,
    rounds: int | None,
    min_clients: int,
    join_wait: float,
    round_timeout: float,
    linger: float,
    host: str,
    port: int,
    max_connections: int,
    peer_timeout: float,
    min_rate: float,
    max_values: int,
    max_num_examples: int,
    page_port: int | None,
    state: Path | None,
    keep: int,
    engine: str,
    precision: int,
    weighting: Weighting,
    passphrase_file: Path | None,
    insecure_http: bool,
    insecure_plaintext: bool,
    as_json: bool,
) -> None:
    """Run the server of a federation for one training. It holds no key and sees no model.

    Prints its URL on stdout once it listens, and on stderr whom it waits for. Ends with exit code 0 when all rounds
    are over and every client that is still here has the result; says of whom it does not know that. Ctrl-C stops it
    (130), and so does SIGTERM (0); the same command then goes on with the run, and so it does after a crash. With more
    --rounds, a finished run goes on too; with --linger, its result is to be had again.
    """
    from hefl.cli.loop import run
    from hefl.decisions import RunSettings, at_start
    from hefl.engine import load_engine
    from hefl.files import locked, state_folder
    from hefl.heap import share_one_arena
    from hefl.journal import FILE, Journal, is_journal
    from hefl.keys.party import read_server_folder
    from hefl.limits import Limits
    from hefl.news import ended, say_who_lacks
    from hefl.page.site import Page
    from hefl.page.watch import KEPT_ROUNDS
    from hefl.rounds import Phase
    from hefl.server import Server
    from hefl.spool import Spool, arriving

    share_one_arena()
    place = state or folder / "state"
    keys = read_server_folder(folder, existing_passphrase(passphrase_file), uploads=arriving(place))
    announce_expiry(keys.credentials)
    cipher = load_engine(engine, precision_bits=precision, weighting=weighting, insecure_plaintext=insecure_plaintext)
    settings = RunSettings(
        rounds=rounds,
        min_clients=min_clients,
        join_wait_s=join_wait,
        round_timeout_s=round_timeout,
        linger_s=linger,
        keep=keep,
        max_values=max_values,
        max_num_examples=max_num_examples,
    )
    limits = Limits(max_connections=max_connections, patience_s=peer_timeout, min_bytes_per_s=min_rate)
    cipher.prepare()
    place = state_folder(place, FILE, is_journal)
    with (
        locked(place, "server"),
        progress_bars(as_json=as_json) as show,
        closing(
            Journal(
                place,
                keys.public.identity,
                cipher.terms,
                rounds=rounds,
                min_clients=min_clients,
                known=keys.clients,
            )
        ) as journal,
    ):
        found = replace(journal.now.run, known=keys.clients)
        if found.phase is Phase.ENDED and not at_start(found, settings):
            hint = "more --rounds go on with it; a new run takes a new folder, see --state"
            log.info("the run in %s has ended already", place, extra={"hint": hint})
            say_who_lacks(found)
            if as_json:
                print_json(ended(found))
            return
        say = print_json if as_json else _print_url

        def tell(event: Mapping[str, Any]) -> None:
            say(event)
            if event["event"] == "round":
                show("rounds", event["round"], journal.now.run.last_training)
            if page:
                page.see(event)
                if event["event"] == "listening":
                    say({"event": "page", "url": page.url})

        server = Server(
            keys,
            cipher,
            settings,
            journal,
            Spool(place),
            tell,
            host=host,
            port=port,
            insecure_http=insecure_http,
            limits=limits,
        )
        records = journal.last_records(KEPT_ROUNDS)
        page = None if page_port is None else Page(server.look, page_port, records, limits)
        run(_serve(server, page), stop=server.stop, terminated_is_success=True)


async def _serve(server: Server, page: Page | None) -> None:
    """Serve; the page's port is tried before anything else happens, and is open until everything has."""
    async with page or nullcontext():
        await server.serve()


def _print_url(event: Mapping[str, Any]) -> None:
    if event["event"] == "listening":
        click.echo(event["url"])
    elif event["event"] == "page":
        log.info("the run can be watched at %(url)s", event)
