"""`pgkeeper sessions`: every client and server socket, and whether it is held."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from pgkeeper.cli.common import client_for, ini_option, json_option, socket_option
from pgkeeper.cli.render import session_plain, sessions_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["command"]


@click.command("sessions")
@socket_option
@ini_option
@json_option
def command(socket: Path | None, ini: Path | None, as_json: bool) -> None:
    """List client and server sockets: held or not, and why not.

    Tokens of clients begin with c, those of servers with s; LINKED is the other
    end of the link. --json prints a list of objects.

    \b
    Exit status:
      0  listed
      2  no hanger answers

    \b
    Examples:
      pgkeeper sessions --socket /run/pgkeeper/keeper.sock
      pgkeeper sessions --json | jq '.[] | select(.held | not) | .reason'
    """
    sessions = client_for(socket, ini).sessions()
    if as_json:
        click.echo(json.dumps([session_plain(session) for session in sessions]))
    else:
        click.echo(sessions_text(sessions))
