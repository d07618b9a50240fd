"""``hefl``: reads the command line, and turns what a command raises into a message and an exit code."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

import hefl
from hefl.cli import logs
from hefl.errors import HeflError, TrainerError, UsageError

log = logging.getLogger("hefl")

COMMANDS = ("keygen", "serve", "client", "demo", "plan", "bench")
INTERRUPTED = 130


class Commands(click.Group):
    """Loads a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"hefl.cli.{cmd_name}"), cmd_name)
        return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done; 1 failed; 2 called wrongly; 3 keys, certificates, versions or parameters; "
    "4 the peer broke the protocol; 5 unreachable or timed out; 130 interrupted.",
)
@click.version_option(hefl.__version__, message="hefl %(version)s")
def cli() -> None:
    """Encrypted federated averaging: clients train one model, and the server sees none of it.

    Begin with 'hefl demo'.
    """


def main() -> NoReturn:
    """Run the command line and exit."""
    logs.set_up()
    signal.signal(signal.SIGTERM, _terminate)
    code = 0
    try:
        cli(prog_name="hefl", standalone_mode=False)
    except click.exceptions.Abort:
        code = INTERRUPTED
    except KeyboardInterrupt:
        say("interrupted")
        code = INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        code = error.exit_code
        _complain(
            _lower(error.format_message()).rstrip("."),
            hint=f"see '{context.command_path if context else 'hefl'} --help'",
            error=UsageError.__name__,
            exit_code=code,
        )
    except HeflError as error:
        if isinstance(error, TrainerError) and error.__cause__:
            log.error("the trainer's traceback:", exc_info=error.__cause__)
        command = " ".join(["hefl", *(word for word in sys.argv[1:2] if word in COMMANDS)])
        hint = error.hint or (f"see '{command} --help'" if isinstance(error, UsageError) else None)
        code = error.exit_code
        _complain(error.message, hint=hint, error=type(error).__name__, exit_code=code)
    except BrokenPipeError:
        # Whoever read stdout has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def say(text: str) -> None:
    """One line on stderr, with the command's name in front."""
    log.info("%s", text)


def _complain(message: str, **fields: Any) -> None:
    log.error("%s", message, extra=fields)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _terminate(signum: int, frame: FrameType | None) -> None:
    """SIGTERM stops like Ctrl-C; a server handles it itself."""
    raise KeyboardInterrupt
