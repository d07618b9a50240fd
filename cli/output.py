"""What commands print: data on stdout, as text or, with ``--json``, a line of JSON an event."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from hefl.params import DEFAULT_ENGINE, ENGINES

F = TypeVar("F", bound=Callable[..., Any])

engine_option: Callable[[F], F] = click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=DEFAULT_ENGINE,
    show_default=True,
    help="How updates are encrypted; the same on both sides. 'plaintext' is for comparisons on one machine.",
)

json_option: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="Print a line of JSON an event.")


def print_json(event: Mapping[str, Any]) -> None:
    """One event on stdout, at once."""
    click.echo(json.dumps(event))
