"""Log to stderr: a line an event for a person, or a JSON object a line for a machine.

A message whose one argument is a mapping, ``log.info("%(client)s left", {"client": name})``, has its items as fields of
the object; so has whatever ``extra`` brings. The text has no time: a terminal needs none, and journald adds its own.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TypeVar

import click

from hefl.cli.terminal import echo, say

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("text", "json")

# Control characters, those that turn the direction of a line, and what is no text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """``hefl: message``, then the check that failed and a hint on lines of their own.

    Control characters, which a peer may send, are escaped.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line, or as many as a hint and a traceback need."""
        lines = [f"hefl: {_visible(record.getMessage())}"]
        for name in ("check", "hint"):
            if text := getattr(record, name, None):
                lines.append(f"hefl: {name}: {_visible(str(text))}")
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """An object a line: ``time`` in UTC, ``level``, ``message``, then the record's fields, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        fields = dict(record.args) if isinstance(record.args, Mapping) else {}
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        line |= {name: value for name, value in fields.items() if name not in line and value is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Stderr(logging.Handler):
    """Writes above what is displayed on the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write = say if isinstance(self.formatter, TextFormatter) else echo
            write(self.format(record), err=True)
        except Exception:
            self.handleError(record)


def set_up(form: str = "text") -> None:
    """Send all logging to stderr: hefl's from ``info`` on, others' warnings; the last call counts."""
    handler = _Stderr()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("hefl").setLevel(logging.INFO)
    if form == "json":
        # Whoever parses stderr must find nothing else there.
        logging.captureWarnings(capture=True)
        sys.excepthook = _log_crash


def line(text: str) -> str:
    """What ``info`` would write, for a place where nothing may be logged: a signal's handler."""
    formatter = logging.getLogger().handlers[0].formatter or TextFormatter()
    return formatter.format(logging.LogRecord("hefl", logging.INFO, "", 0, text, None, None))


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("hefl").critical("a bug in hefl: %s", kind.__name__, exc_info=(kind, error, trace))


def _choose(ctx: click.Context, parameter: click.Parameter, value: str) -> None:
    set_up(value)


log_option: Callable[[F], F] = click.option(
    "--log-format",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    expose_value=False,
    is_eager=True,  # so that a complaint about another flag has the form already
    callback=_choose,
    help="How to log on stderr: lines for a person, or an object of JSON a line, with time, level, message and fields.",
)


def _visible(text: str) -> str:
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
