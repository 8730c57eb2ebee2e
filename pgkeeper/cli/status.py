"""`pgkeeper status`: is a pgbouncer active, and what is held."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from pgkeeper.cli.common import client_for, ini_option, json_option, socket_option
from pgkeeper.cli.render import status_text, warnings_text
from pgkeeper.control.client import NoHangerError, RequestFailedError
from pgkeeper.control.shape import to_plain
from pgkeeper.states import ServiceState

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["command"]


@click.command("status")
@socket_option
@ini_option
@json_option
@click.pass_context
def command(ctx: click.Context, socket: Path | None, ini: Path | None, as_json: bool) -> None:
    """Show the hanger, its pgbouncer, and how many sessions are held.

    With --json, warnings go to stderr.

    \b
    Exit status:
      0  a pgbouncer is active
      1  none is (starting, adopting, down, crash-loop)
      2  no hanger answers

    \b
    Examples:
      pgkeeper status --socket /run/pgkeeper/keeper.sock
      pgkeeper status --json | jq .sessions.clients_held
    """
    try:
        reply = client_for(socket, ini).status()
    except RequestFailedError as error:
        # 1 would say that pgbouncer is not active, which nobody knows.
        raise NoHangerError(error.message) from None
    if as_json:
        click.echo(json.dumps(to_plain(reply.status)))
        for warning in warnings_text(reply.warnings):
            click.echo(warning, err=True)
    else:
        click.echo(status_text(reply.status, reply.warnings))
    ctx.exit(0 if reply.status.pgbouncer.state is ServiceState.ACTIVE else 1)
