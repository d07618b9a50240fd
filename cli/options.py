"""Options that several commands share, and events as JSON on stdout."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from hefl.params import (
    CLIENT_WEIGHT_BITS,
    DEFAULT_ENGINE,
    ENGINES,
    KEEP_AGGREGATES,
    PRECISION_BITS,
    PRECISION_BITS_RANGE,
    WEIGHTINGS,
)

F = TypeVar("F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """A number of seconds: neither infinite nor NaN, which JSON cannot say."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does, and finite."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{found} is not finite", param, ctx)
        return found


class Precision(click.IntRange):
    """Bits of a value, where another option narrows the range."""

    note = f", and at most {PRECISION_BITS_RANGE[1] - CLIENT_WEIGHT_BITS} with --weighting client"
    """What a message adds."""


def kept_option(flag: str, *, default: object, help: str, **fields: Any) -> Callable[[F], F]:  # noqa: A002 - click's name
    """An option that a run keeps: a server that is started again without it goes on with the run's."""
    return click.option(flag, default=None, help=f"{help}  [default: {default}, or the run's own]", **fields)


TERMS: dict[str, dict[str, Any]] = {
    "--engine": {
        "type": click.Choice(ENGINES),
        "default": DEFAULT_ENGINE,
        "help": "How updates are encrypted; the same on both sides. 'plaintext' is for comparisons on one machine.",
    },
    "--precision": {
        "type": Precision(*PRECISION_BITS_RANGE),
        "default": PRECISION_BITS,
        "help": "Bits of a fixed-point value of engine packed; the same on both sides" + Precision.note + ".",
    },
    "--weighting": {
        "type": click.Choice(WEIGHTINGS),
        "default": WEIGHTINGS[0],
        "help": "Who multiplies by the numbers of examples, as on the other side; with 'client' the server never "
        "learns them.",
    },
}
"""What server and clients must agree on."""

engine_option: Callable[[F], F] = click.option("--engine", show_default=True, **TERMS["--engine"])
precision_option: Callable[[F], F] = click.option("--precision", show_default=True, **TERMS["--precision"])
weighting_option: Callable[[F], F] = click.option("--weighting", show_default=True, **TERMS["--weighting"])

partition_option: Callable[[F], F] = click.option(
    "--partition",
    metavar="iid|dirichlet:ALPHA",
    default="iid",
    show_default=True,
    help="How the clients share an example's data: evenly, or with labels that differ the more, the smaller ALPHA is.",
)


def terms_options(command: F) -> F:
    """What a client must do as its server does."""
    return engine_option(precision_option(weighting_option(command)))


def kept_terms_options(command: F) -> F:
    """The same at the server, whose run keeps it."""
    for flag in reversed(TERMS):
        command = kept_option(flag, **TERMS[flag])(command)
    return command


keep_option: Callable[[F], F] = click.option(
    "--keep", type=click.IntRange(1), default=KEEP_AGGREGATES, show_default=True, help="Last aggregates that stay."
)

json_option: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="Print a line of JSON an event.")


def print_json(event: Mapping[str, Any]) -> None:
    """One event on stdout, at once."""
    click.echo(json.dumps(event))
