"""The command line: one file a command, imported when it is called.

A command NAME is the click command `command` in `pgkeeper.cli.NAME`, listed in COMMANDS.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import click

from pgkeeper.errors import PgkeeperError
from pgkeeper.version import version

__all__ = ["main"]

COMMANDS: Final = (
    "run",
    "status",
    "sessions",
    "top",
    "handoff",
    "release",
    "build",
    "trial",
    "completion",
)

_EXIT_USAGE: Final = 64  # EX_USAGE: click's own 2 means "no hanger answers" here
_EXIT_DEFECT: Final = 70  # EX_SOFTWARE
_EXIT_INTERRUPTED: Final = 130  # what shells report for SIGINT


class _Commands(click.Group):
    """Loads commands by name and turns errors into one line and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        command: click.Command = module.command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.show()
            ctx.exit(_EXIT_USAGE)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PgkeeperError as error:
            if ctx.params["debug"]:
                raise
            click.echo(f"pgkeeper: {error.message}", err=True)
            ctx.exit(error.exit_code)
        except click.UsageError as error:
            error.show()
            ctx.exit(_EXIT_USAGE)
        except KeyboardInterrupt:
            click.echo("pgkeeper: interrupted", err=True)
            ctx.exit(_EXIT_INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own business; a reader that left (`| head`) is none of ours
        except Exception as error:
            if ctx.params["debug"]:
                raise
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            hint = f"pgkeeper --debug {ctx.invoked_subcommand} ... shows where"
            click.echo(f"pgkeeper: unexpected {what} ({hint})", err=True)
            ctx.exit(_EXIT_DEFECT)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="pgkeeper", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, envvar="PGKEEPER_DEBUG", help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """PostgreSQL sessions that outlive the PgBouncer that carries them.

    \b
    Examples:
      pgkeeper build
      pgkeeper run --ini /etc/pgbouncer/pgbouncer.ini
      pgkeeper status --ini /etc/pgbouncer/pgbouncer.ini

    \b
    Exit status of all commands, unless their own help says more:
      0    done
      1    failed; one line on stderr says why
      2    no hanger answers
      64   wrong usage
      70   a defect in pgkeeper itself
      130  interrupted
    """
