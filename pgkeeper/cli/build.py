"""`pgkeeper build`: fetch, verify, patch and compile PgBouncer."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgkeeper.bouncer.build import Variant, binary

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["command"]


def _terminate(signum: int, frame: FrameType | None) -> None:
    """Leave like on Ctrl-C: the compiler is stopped and the half-built folder removed."""
    sys.exit(128 + signum)


@click.command("build")
@click.option(
    "--source",
    type=click.Path(path_type=Path, readable=False),
    envvar="PGKEEPER_SOURCE",
    help="PgBouncer's release tarball, a .dsc beside it, or their folder. "
    "Default: apt-get source, then upstream's release address.",
)
@click.option("--vanilla", is_flag=True, help="Without pgkeeper's patches: the baseline.")
@click.option("--cassert", is_flag=True, help="With PgBouncer's assertions.")
@click.option("--sanitize", is_flag=True, help="With the address and undefined sanitizers.")
def command(source: Path | None, vanilla: bool, cassert: bool, sanitize: bool) -> None:
    """Build PgBouncer with the distribution's security patches and pgkeeper's own.

    The source is verified against patches/BASE and the result kept in a cache
    ($PGKEEPER_CACHE), so a second call answers at once. Progress goes to stderr;
    the last line of stdout is the path of the executable.

    \b
    Example:
      pgkeeper build --source ~/Downloads/pgbouncer-1.24.1.tar.gz
    """
    signal.signal(signal.SIGTERM, _terminate)
    variant = Variant(vanilla=vanilla, cassert=cassert, sanitize=sanitize)
    click.echo(binary(variant, source=source))
