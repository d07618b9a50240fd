"""Read ``hefl.toml``: defaults for the commands' flags.

    [serve]
    rounds = 50
    state = "runs/first"            # relative to the file

    [client]
    data = "iris:alice"

A table for each command, a key for each long flag. What a command line says wins.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from hefl.cli.usage import expects, nearest
from hefl.errors import UsageError, reason_of

DEFAULT_FILE = Path("hefl.toml")

EACH_TIME = frozenset({"force", "insecure-http", "insecure-plaintext", "renew", "revoke", "rotate"})
"""Flags that give up a protection, or cannot be undone: nobody should use one without knowing."""

Settings = dict[str, dict[str, Any]]
"""By command and parameter, as click's ``default_map``."""

Lookup = Callable[[str], click.Command | None]


def read_settings(path: Path, commands: Iterable[str], command_of: Lookup) -> Settings:
    """Read and check a file of settings, all of it, whichever command runs.

    Args:
        path: The file.
        commands: Names of all commands.
        command_of: Finds the command of a name.

    Raises:
        UsageError: It cannot be read, or holds what no command takes; names the file and the key.
    """
    try:
        tables = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist", hint="name a file of settings after --config") from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {reason_of(error)}",
            hint="a hefl.toml here is read by every command; move it, or name another file with --config",
        ) from error
    except ValueError as error:
        text = str(error)
        raise UsageError(
            f"{path} is not TOML: {text[:1].lower()}{text[1:]}",
            hint='a line is NAME = VALUE, with text in quotes: data = "iris:alice"',
        ) from error
    settings: Settings = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(
                f"{path}: {name!r} stands in no table", hint="put it below the name of its command, such as [serve]"
            )
        command = command_of(name)
        if command is None:
            raise UsageError(
                f"{path}: {name!r} is not the table of a command",
                hint=_nearest(name, commands, "[{}]") or f"tables are [{'], ['.join(commands)}]",
            )
        settings[name] = _read_table(path, command, table)
    return settings


def _read_table(path: Path, command: click.Command, table: dict[str, Any]) -> dict[str, Any]:
    options = {flag.removeprefix("--"): option for option in _options(command) for flag in option.opts if "--" in flag}
    found: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{path}: [{command.name}] {key}"
        if key in EACH_TIME:
            raise UsageError(
                f"{where} is not taken from a file", hint=f"give --{key} on the command line, each time it is needed"
            )
        if key not in options:
            raise UsageError(
                f"{where} is no setting of 'hefl {command.name}'",
                hint=_nearest(key, options.keys() - EACH_TIME, "{}")
                or f"keys are the long flags of 'hefl {command.name} --help'",
            )
        option = options[key]
        if option.name:
            found[option.name] = _value(where, option, value, path.parent)
    return found


def _options(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and p.expose_value and not p.hidden]


def _value(where: str, option: click.Option, value: Any, folder: Path) -> Any:
    """A value as the command line would give it, checked; a path is relative to the file's folder."""
    kind, words = _kind(option)
    values = value if option.multiple and isinstance(value, list) else [value]
    if (option.multiple and not isinstance(value, list)) or any(type(v) not in kind for v in values):
        raise UsageError(
            f"{where} takes {words}, got {_shown(value)}", hint=f"as on the command line: {option.opts[-1]}"
        )
    if isinstance(option.type, click.Path):
        values = [str(folder / v) for v in values]
    try:
        for each in values:
            option.type.convert(each, option, None)
    except click.BadParameter as error:
        said = error.message.rstrip(".")
        text = f": {said}" if isinstance(option.type, click.Path) else f" takes {expects(option)}, got {_shown(value)}"
        raise UsageError(where + text, hint=f"as on the command line: {option.opts[-1]}") from error
    return values if option.multiple else values[0]


def _kind(option: click.Option) -> tuple[tuple[type, ...], str]:
    """The types of a TOML value that an option takes, and how to say so."""
    if option.is_flag:
        kind: tuple[tuple[type, ...], str] = (bool,), "true or false"
    elif isinstance(option.type, click.types.IntParamType):
        kind = (int,), "a whole number"
    elif isinstance(option.type, click.types.FloatParamType):
        kind = (int, float), "a number"
    else:
        kind = (str,), "text in quotes"
    return (kind[0], f"a list, each {kind[1]}") if option.multiple else kind


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _nearest(name: str, names: Iterable[str], form: str) -> str | None:
    near = nearest(name, names)
    return f"did you mean {form.format(near)}?" if near else None
