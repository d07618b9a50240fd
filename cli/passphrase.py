"""Ask a person for a passphrase, or read it from a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hefl.cli.interrupts import raised
from hefl.cli.terminal import cleared
from hefl.errors import KeyFileError, UsageError

if TYPE_CHECKING:
    from hefl.keys.passphrase import Passphrase

F = TypeVar("F", bound=Callable[..., Any])

passphrase_file_option: Callable[[F], F] = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="F",
    help="Private file whose first line is the passphrase.  [default: ask, where the keys have one]",
)


def existing_passphrase(file: Path | None) -> Passphrase:
    """The passphrase of keys that have one; asks when it is needed. Raises KeyFileError where it cannot be had."""
    from hefl.keys.passphrase import Passphrase

    def ask(what: str) -> str:
        if not sys.stdin.isatty():
            raise KeyFileError(
                f"{what} is sealed with a passphrase, and there is no terminal to ask for it",
                hint="--passphrase-file F names a private file whose first line it is",
            )
        return _prompt(twice=False)

    return Passphrase.from_file(file) if file else Passphrase(ask)


def new_passphrase(file: Path | None) -> Passphrase:
    """A passphrase to seal new keys with. Raises UsageError where there is no terminal to ask twice."""
    from hefl.keys.passphrase import Passphrase

    if file:
        return Passphrase.from_file(file)
    if not sys.stdin.isatty():
        raise UsageError(
            "--passphrase asks on a terminal, and there is none",
            hint="--passphrase-file F names a private file whose first line is the passphrase",
        )
    return Passphrase(lambda what: _prompt(twice=True))


def _prompt(*, twice: bool) -> str:
    with cleared(), raised():  # an interrupted prompt has a terminal's echo to switch on again
        words: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True)
    return words
