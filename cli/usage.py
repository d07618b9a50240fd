"""Explain click's usage errors: what was wrong, what is expected, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import click


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, or None."""
    return next(iter(difflib.get_close_matches(name, list(names), 1)), None)


def expects(option: click.Parameter) -> str:
    """What an option takes, in words."""
    kind = option.type
    if isinstance(kind, click.IntRange | click.FloatRange):
        what = "a whole number" if isinstance(kind, click.IntRange) else "a number"
        low = "" if kind.min is None else f" {'above' if kind.min_open else 'from'} {kind.min}"
        return what + low + ("" if kind.max is None else f" to {kind.max}") + getattr(kind, "note", "")
    if isinstance(kind, click.types.IntParamType):
        return "a whole number"
    if isinstance(kind, click.types.FloatParamType):
        return "a number"
    if isinstance(kind, click.Choice):
        return f"one of {', '.join(map(str, kind.choices))}"
    return option.metavar or "a value"


def explain(error: click.ClickException, command: click.Command | None) -> tuple[str, str]:
    """A message and a hint for what click refused.

    Args:
        error: As click raised it.
        command: The command that was called, where click does not say.
    """
    context = getattr(error, "ctx", None)
    path = context.command_path if context else f"hefl {command.name}" if command else "hefl"
    see, name = f"see '{path} --help'", path.removeprefix("hefl ")
    match error:
        case click.MissingParameter(param=click.Option() as option):
            return f"{name} needs {option.opts[-1]}", f"{expects(option)}: {_help(option)}; {see}"
        case click.MissingParameter(param=click.Argument() as argument):
            return f"{name} needs {argument.human_readable_name}", f"{_usage(context, path)}; {see}"
        case click.NoSuchOption():
            meant = nearest(error.option_name, error.possibilities or [])
            return f"{name} has no option {error.option_name}", f"did you mean {meant}?" if meant else see
        case click.BadOptionUsage() if found := _option(command, error.option_name):
            return f"{found.opts[-1]} takes {expects(found)}, and nothing follows it", see
        case click.BadParameter(param=click.Option() as option):
            return _bad_value(error, option, see)
        case _ if found_extra := re.search(r"unexpected extra arguments? \((.*)\)", error.format_message()):
            return f"{name} takes no further argument, got {found_extra[1]}", f"{_usage(context, path)}; {see}"
    text = error.format_message().rstrip(".")
    return text[:1].lower() + text[1:], see


def _bad_value(error: click.BadParameter, option: click.Option, see: str) -> tuple[str, str]:
    flag, said = option.opts[-1], error.message.rstrip(".")
    value = re.match(r"(.+?) is not ", said)
    if value is None or isinstance(option.type, click.Path):
        return f"{flag}: {said[:1].lower()}{said[1:]}", see
    meant = isinstance(option.type, click.Choice) and nearest(
        value[1].strip("'").lower(), map(str, option.type.choices)
    )
    return f"{flag} takes {expects(option)}, got {value[1]}", f"did you mean {meant}?" if meant else see


def _option(command: click.Command | None, flag: str) -> click.Option | None:
    options = (p for p in command.params if isinstance(p, click.Option)) if command else ()
    return next((option for option in options if flag in option.opts), None)


def _help(option: click.Option) -> str:
    text = (option.help or "").split(".  [")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def _usage(context: click.Context | None, path: str) -> str:
    pieces = context.command.collect_usage_pieces(context) if context else []
    return " ".join(["as in:", path, *pieces])
