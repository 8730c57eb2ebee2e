"""`pgkeeper top`: sessions to watch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pgkeeper.cli.common import client_for, ini_option, socket_option
from pgkeeper.control.report import TopQuery
from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["command"]


class _NoTerminalError(PgkeeperError):
    """There is nobody to watch."""

    def __init__(self) -> None:
        super().__init__("top needs a terminal; `pgkeeper sessions --json` needs none")


class _NoTextualError(PgkeeperError):
    """The library that draws it is not here, as in pgkeeper's image."""

    def __init__(self) -> None:
        super().__init__("top needs the Python package textual, 3.0 or later: pip install textual")


@click.command("top")
@socket_option
@ini_option
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option(
    "--order",
    type=click.Choice(["activity", "user", "database", "address", "age", "survived", "token"]),
    default="activity",
    show_default=True,
    help="What comes first: activity is what runs longest, then what waits.",
)
@click.option("--match", default="", help="Only what has this in user, database, address, ...")
@click.option("--allow-kill", is_flag=True, help="Let the key k end a session, once confirmed.")
def command(
    socket: Path | None,
    ini: Path | None,
    interval: float,
    order: Any,
    match: str,
    allow_kill: bool,
) -> None:
    """Watch the sessions: who runs what, for how long, held or not.

    SURV is how many pgbouncers a session has outlived, AGE for how long it has
    been doing what it does. Reads only, unless --allow-kill is given.

    \b
    Keys:
      arrows, PgUp, PgDn   move            enter   all about a session
      n, p                 next, previous hundred
      o, r                 another order, reversed
      v                    clients, servers, all
      /, escape            filter, all again
      space                freeze, go on
      k                    end the session (--allow-kill)
      q                    quit

    \b
    Exit status:
      0  quit
      1  no terminal, or no textual
      2  no hanger answers

    \b
    Examples:
      pgkeeper top --socket /run/pgkeeper/keeper.sock
      pgkeeper top --order age --match "joe shop" --allow-kill
    """
    if not watched():
        raise _NoTerminalError
    client = client_for(socket, ini)
    query = TopQuery(order=order, match=match)
    first = client.top(query)
    # Only this command needs it, and it is large.
    try:
        from pgkeeper.top.app import TopApp
    except ModuleNotFoundError:
        raise _NoTextualError from None

    TopApp(client, query, first, interval=interval, allow_kill=allow_kill).run()


def watched() -> bool:
    """Whether a terminal is at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()
