"""``hefl plan``: what a round costs, before anything runs."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import click

from hefl.cli.options import json_option, precision_option, print_json
from hefl.cli.progress import show_progress
from hefl.cli.terminal import clear, say
from hefl.errors import UsageError
from hefl.params import (
    CONNECTION_BYTES,
    EXAMPLE_CLIENTS,
    EXAMPLE_VALUES,
    KEEP_AGGREGATES,
    MAX_CLIENTS,
    MAX_VALUES,
    MIN_CLIENTS,
    SERVER_BYTES,
)


@click.command()
@click.option(
    "--values",
    type=click.IntRange(1, MAX_VALUES),
    default=EXAMPLE_VALUES,
    show_default=True,
    help="Parameters of the model.",
)
@click.option(
    "--clients",
    type=click.IntRange(MIN_CLIENTS, MAX_CLIENTS),
    help=f"How many take part.  [default: {EXAMPLE_CLIENTS}, or as many as --weights]",
)
@precision_option
@click.option("--weights", metavar="N,N,...", help="Numbers of examples, one for each client.  [default: equal]")
@json_option
def plan(values: int, clients: int | None, precision: int, weights: str | None, as_json: bool) -> None:
    """Say what a round of the packed engine costs: bytes, memory, and how exact it is.

    Bytes are of one client's update and of the aggregate, metrics and frames left out. Of memory and disk it says the
    most that a server takes; its first round, which carries one client's initial float32 values bit for bit, counts.
    """
    show_progress("choosing a ring", as_json=as_json)
    from hefl.ckks.parallel import usable_cores
    from hefl.ckks.plan import choose_plan, reduce_weights
    from hefl.encoding.fixedpoint import initial_words

    clients = clients or (max(len(weights.split(",")), MIN_CLIENTS) if weights else EXAMPLE_CLIENTS)
    reduced = reduce_weights({str(i): number for i, number in enumerate(_numbers(weights, clients))})
    chosen = choose_plan(values, precision, reduced.total)
    initial = choose_plan(initial_words(4 * values, precision), precision, 1)
    sum_bytes = max(chosen.sum_bytes, initial.sum_bytes)
    kept_bytes = (KEEP_AGGREGATES + 1) * max(chosen.aggregate_bytes(clients), initial.aggregate_bytes(1))
    facts = {
        **{k: v for k, v in asdict(chosen).items() if k != "ring"},
        "ring": str(chosen.ring),
        "weights": list(reduced.of.values()),
        "weights_off_by": reduced.off_by,
        "blocks": chosen.blocks,
        "bytes_up": chosen.update_bytes,
        "bytes_down": chosen.aggregate_bytes(clients),
        "server_memory_bytes": SERVER_BYTES + sum_bytes + clients * CONNECTION_BYTES,
        "server_disk_bytes": clients * chosen.update_bytes + kept_bytes,
        "client_memory_bytes": chosen.client_memory_bytes(usable_cores()),
        "error_bound": chosen.error_bound,
    }
    clear()
    if as_json:
        print_json(facts)
        return
    row = partial(say, indent=9)
    row(f"for:     {values:,} values (--values), {clients} clients (--clients)")
    row(
        f"ring:    degree {chosen.ring.degree}, {chosen.limbs} limbs of {chosen.limb_bits} bits; "
        f"{chosen.lanes} values of {chosen.width_bits} bits in a coefficient, below them {chosen.margin_bits} for noise"
    )
    if reduced.off_by:
        row(f"weights: rounded to a total of {reduced.total}; a share is off by up to {reduced.off_by:.2g} of itself")
    else:
        row(f"weights: exact, total {reduced.total} after division by their greatest common divisor")
    for label, size in (("up:     ", facts["bytes_up"]), ("down:   ", facts["bytes_down"])):
        row(f"{label} {size:,} bytes a client and round, {size / values:.2f} a value (float32: 4)")
    row(
        f"memory:  {facts['server_memory_bytes'] / 1e6:,.0f} MB at the server: {SERVER_BYTES / 1e6:.0f} for its "
        f"program, {sum_bytes / 1e6:,.1f} for a sum, {CONNECTION_BYTES / 1e6:.1f} for each client's connections; "
        f"{facts['client_memory_bytes'] / 1e6:,.1f} MB at a client, beside its program and model"
    )
    row(
        f"disk:    {facts['server_disk_bytes'] / 1e6:,.0f} MB at the server: a round's updates, and the last "
        f"{KEEP_AGGREGATES} aggregates"
    )
    row(
        f"error:   sums are exact; an average differs from that of unrounded values by at most "
        f"{chosen.error_bound:.2g} of a tensor's range"
    )


def _example(clients: int) -> str:
    """Numbers of examples as ``--weights`` takes them."""
    return ",".join(str(10 * (i + 1)) for i in range(clients))


def _numbers(weights: str | None, clients: int) -> list[int]:
    if weights is None:
        return [1] * clients
    try:
        numbers = [int(number) for number in weights.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != clients or min(numbers) < 1:
        raise UsageError(
            f"--weights takes {clients} whole numbers from 1 on, one for each of --clients, got {weights!r}",
            hint="separate them by commas" + (f": --weights {_example(clients)}" if clients <= 5 else ""),
        )
    return numbers
