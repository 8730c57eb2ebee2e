"""`pgkeeper handoff`: replace pgbouncer by a new one while its sessions go on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgkeeper.cli.common import client_for, json_option, socket_option
from pgkeeper.cli.render import handoff_text
from pgkeeper.control.shape import to_plain
from pgkeeper.inifile import printable

if TYPE_CHECKING:
    from pgkeeper.control.protocol import Progress

__all__ = ["command"]


@click.command("handoff")
@click.option(
    "--pgbouncer",
    type=click.Path(path_type=Path, readable=False),
    help="The new binary.  Default: the one in use now.",
)
@click.option(
    "--ini",
    type=click.Path(path_type=Path, readable=False),
    help="The new pgbouncer.ini.  Default: the one in use now.",
)
@socket_option
@json_option
def command(pgbouncer: Path | None, ini: Path | None, socket: Path | None, as_json: bool) -> None:
    """Replace pgbouncer by a new process, binary or configuration.

    The new one is started and made ready first, the old one stands still only
    for the moment of the change; if the new one fails, the old one goes on.
    Without --socket, keeper_socket is read from --ini or PGKEEPER_INI.

    Where pgbouncer crashes again and again, the new one adopts what is held.

    \b
    Exit status:
      0  the new pgbouncer serves
      1  it failed; the line on stderr says who serves
      2  no hanger answers

    \b
    Examples:
      pgkeeper handoff --pgbouncer /opt/pgbouncer-new/bin/pgbouncer
      pgkeeper handoff --ini /etc/pgbouncer/pgbouncer.ini
    """
    client = client_for(socket, ini)
    # The hanger has another working directory, and a link may be meant to be followed later.
    binary = pgbouncer.absolute() if pgbouncer else None
    new_ini = ini.absolute() if ini else None
    display = _Display()
    try:
        report = client.handoff(binary, new_ini, display.show)
    except KeyboardInterrupt:
        display.end()
        click.echo("pgkeeper: the handoff goes on without us; see pgkeeper status", err=True)
        raise
    finally:
        display.end()
    click.echo(json.dumps(to_plain(report)) if as_json else handoff_text(report))


class _Display:
    """Progress on stderr: one line that changes on a terminal, else a line a step."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._open = False

    def show(self, progress: Progress) -> None:
        if self._terminal:
            # Back to the column 1, erase to the end: ECMA-48, known to all terminals.
            click.echo(f"\r\x1b[K{printable(progress.text)} ...", err=True, nl=False)
            self._open = True
        else:
            click.echo(f"{printable(progress.step)}: {printable(progress.text)}", err=True)

    def end(self) -> None:
        if self._open:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._open = False
