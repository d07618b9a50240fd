"""Read the command line, and turn errors into messages and exit codes."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from hefl.cli import interrupts, logs, terminal
from hefl.cli.interrupts import INTERRUPTED
from hefl.cli.usage import explain, nearest
from hefl.errors import HeflError, ProtocolError, TrainerError, UsageError, reason_of
from hefl.version import __version__

log = logging.getLogger("hefl")

COMMANDS = ("keygen", "inspect", "serve", "client", "demo", "status", "export", "plan", "bench")


class Interrupted(Exception):  # noqa: N818 - no error: a person's wish
    """A signal stopped the command; click would answer KeyboardInterrupt with an empty line."""


class Commands(click.Group):
    """Loads a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a newcomer needs them."""
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; a command that does not exist is refused with the one that was probably meant."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            meant = nearest(args[0], COMMANDS)
            raise UsageError(
                f"there is no command {args[0]!r}", hint=f"did you mean 'hefl {meant}'?" if meant else None
            )
        found = super().resolve_command(ctx, args)
        interrupts.begin_command()
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that is named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        return _command_of(cmd_name)


def _command_of(name: str) -> click.Command | None:
    if name not in COMMANDS:
        return None
    command: click.Command = getattr(importlib.import_module(f"hefl.cli.{name}"), name)
    return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Exit codes: 0 done; 1 failed; 2 called wrongly;
  3 keys, certificates, versions or parameters; 4 the peer broke the protocol;
  5 unreachable or timed out; 130 interrupted.

\b
Completion of commands and flags, for this shell or in its startup file:
  bash  eval "$(_HEFL_COMPLETE=bash_source hefl)"
  zsh   eval "$(_HEFL_COMPLETE=zsh_source hefl)"
  fish  _HEFL_COMPLETE=fish_source hefl | source""",
)
@click.version_option(__version__, message="hefl %(version)s")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings that repeat, as TOML: a table a command, keys named like its long flags, which win. "
    "Relative paths in it start from its folder.  [default: hefl.toml here, if there is one]",
)
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Encrypted federated averaging: clients train one model, and the server sees none of it.

    Begin with 'hefl demo'.
    """
    from hefl.cli.settings import DEFAULT_FILE, read_settings

    path = config or DEFAULT_FILE
    if config or path.exists():
        ctx.default_map = read_settings(path, COMMANDS, _command_of)
        if ctx.invoked_subcommand in ctx.default_map:
            say(f"with the settings in {path}, [{ctx.invoked_subcommand}]")


def main() -> NoReturn:
    """Run the command line and exit."""
    logs.set_up()
    interrupts.begin(_say_interrupted)
    code = 0
    try:
        cli(prog_name="hefl", standalone_mode=False)
    except (Interrupted, KeyboardInterrupt, click.exceptions.Abort):
        say("interrupted")
        code = INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        terminal.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        message, way_out = explain(error, _called())
        code = error.exit_code
        _complain(message, hint=way_out, error=UsageError.__name__, exit_code=code)
    except HeflError as error:
        if isinstance(error, TrainerError) and error.__cause__:
            log.error("the trainer's traceback:", exc_info=error.__cause__)
        code = error.exit_code
        hint = error.hint or (_see_help() if isinstance(error, UsageError) else None)
        check = error.check if isinstance(error, ProtocolError) else None
        _complain(error.message, check=check, hint=hint, error=type(error).__name__, exit_code=code)
    except BrokenPipeError:
        # Whoever read stdout has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.filename is None:
            raise  # not about a file that a person named
        code = 1
        _complain(
            f"{error.filename}: {reason_of(error)}",
            hint="is the path right, and may you use it? See its owner and mode with ls -l",
            error=type(error).__name__,
            exit_code=code,
        )
    interrupts.end_command(code)
    sys.exit(code)


def say(text: str) -> None:
    """One line on stderr, with the command's name in front."""
    log.info("%s", text)


def _complain(message: str, **fields: Any) -> None:
    log.error("%s", message, extra=fields)


def _called() -> click.Command | None:
    """The command that the command line names."""
    return next((_command_of(word) for word in sys.argv[1:] if word in COMMANDS), None)


def _see_help() -> str:
    command = _called()
    return f"see 'hefl {command.name} --help'" if command else "see 'hefl --help'"


def _say_interrupted() -> None:
    """From a signal's handler, which may log nothing."""
    terminal.wipe()
    os.write(2, f"{logs.line('interrupted')}\n".encode())
