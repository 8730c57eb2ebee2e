"""Run the demo. Exit status 0 if every session went on with pgkeeper and none without."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from demo.stage import Alone, Kept, play
from demo.stories import ALL, TABLES
from demo.story import LOST
from demo.table import show
from pgkeeper.errors import PgkeeperError
from testbed import BedError, Bouncer, Keeper, Postgres, RunDir, binaries

if TYPE_CHECKING:
    from demo.stage import Result

_INTERRUPTED = 130  # as a shell reports SIGINT


def main() -> int:
    """The exit status: 0 all held, 1 not, 130 after Ctrl-C."""
    argparse.ArgumentParser(
        prog="demo",
        description="Sessions of psycopg and asyncpg over a kill -9 of pgbouncer, with pgkeeper"
        " and without. Starts PostgreSQL and all else itself, on 127.0.0.1, and leaves nothing.",
    ).parse_args()
    # psycopg logs what the lost sessions of the unpatched side are about; the table says it.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    console = Console()
    try:
        kept, alone = _play_both(console)
    except KeyboardInterrupt:
        console.print("stopped")
        return _INTERRUPTED
    except (BedError, PgkeeperError, *LOST) as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    show(console, kept, alone)
    return 0 if kept.held == len(kept.outcomes) and alone.held == 0 else 1


def _play_both(console: Console) -> tuple[Result, Result]:
    with console.status("building pgbouncer (the first time takes a minute)") as status:
        patched, vanilla = binaries.patched(), binaries.vanilla()
        status.update("starting PostgreSQL")
        with RunDir() as run_dir, Postgres(run_dir) as postgres:
            for table in TABLES:
                postgres.sql(table)
            status.update("kill -9 without pgkeeper")
            with Bouncer(run_dir, postgres, vanilla) as bouncer:
                alone = asyncio.run(play(Alone(bouncer), ALL))
            status.update("kill -9 with pgkeeper")
            with Keeper(run_dir, postgres, patched) as keeper:
                kept = asyncio.run(play(Kept(keeper), ALL))
                if kept.held < len(kept.outcomes):
                    # The logs go away with the run.
                    console.print(keeper.output.tail(), keeper.log.tail(), markup=False)
    return kept, alone


if __name__ == "__main__":
    sys.exit(main())
