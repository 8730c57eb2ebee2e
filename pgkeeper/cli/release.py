"""`pgkeeper release`: end all sessions for good, and the hanger."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from pgkeeper.cli.common import client_for, ini_option, json_option, socket_option
from pgkeeper.cli.render import plural
from pgkeeper.control.shape import to_plain

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["command"]


@click.command("release")
@socket_option
@ini_option
@json_option
def command(socket: Path | None, ini: Path | None, as_json: bool) -> None:
    """End all sessions for good: clients get a FATAL error, pgbouncer and hanger exit.

    This is the only command that ends sessions; it does not ask again.

    \b
    Exit status:
      0  all sessions are ended
      1  it failed; one line on stderr says why
      2  no hanger answers

    \b
    Example:
      pgkeeper release --socket /run/pgkeeper/keeper.sock
    """
    report = client_for(socket, ini).release()
    if as_json:
        click.echo(json.dumps(to_plain(report)))
    else:
        clients, servers = plural(report.clients, "client"), plural(report.servers, "server")
        click.echo(f"ended {clients} and {servers}")
