"""Instructions that pgbouncer executes in user space a transaction, with and without the keeper.

Callgrind counts them: repeatable where seconds are not, and blind to the kernel, where PgBouncer
spends 93% of its time. Needs valgrind and pgbench. `--profile FOLDER` keeps Callgrind's files, for
callgrind_annotate.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load import pgbench_transactions
from testbed import binaries
from testbed.bouncer import Bouncer
from testbed.keeper import Keeper
from testbed.postgres import Postgres
from testbed.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Sequence

PROTOCOLS = ("simple", "extended", "prepared")
_TRANSACTIONS = 1000
_SETTINGS: dict[str, str | int | None] = {
    "server_tls_sslmode": "disable",
    "max_prepared_statements": 100,
    "log_connections": 0,
    "log_disconnections": 0,
}


@dataclass(frozen=True, slots=True)
class Count:
    """Instructions a transaction of one protocol."""

    protocol: str
    vanilla: float
    patched: float

    @property
    def more(self) -> float:
        """What the keeper adds."""
        return self.patched - self.vanilla


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pgbouncer", type=Path, help="another patched binary than the built one")
    parser.add_argument("--profile", type=Path, help="keep Callgrind's files in this folder")
    options = parser.parse_args(argv)
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed: apt-get install valgrind")
    with RunDir() as run_dir, Postgres(run_dir) as postgres:
        vanilla = _measure(run_dir, postgres, binaries.vanilla(), False, options)
        patched = _measure(
            run_dir, postgres, options.pgbouncer or binaries.patched(), True, options
        )
    print("instructions a transaction    unpatched      keeper        more")
    for protocol in PROTOCOLS:
        count = Count(protocol, vanilla[protocol], patched[protocol])
        print(f"{protocol:<26}{count.vanilla:>12.0f}{count.patched:>12.0f}{count.more:>12.0f}")
    return 0


def _measure(
    run_dir: RunDir, postgres: Postgres, binary: Path, keep: bool, options: argparse.Namespace
) -> dict[str, float]:
    """Instructions a transaction, by protocol: what a longer life costs more than a shorter one."""
    counts = {}
    for protocol in PROTOCOLS:
        short, long = (
            _life(run_dir, postgres, binary, keep, protocol, share * _TRANSACTIONS, options)
            for share in (1, 3)
        )
        counts[protocol] = (long - short) / (2 * _TRANSACTIONS)
    return counts


def _life(
    run_dir: RunDir,
    postgres: Postgres,
    binary: Path,
    keep: bool,
    protocol: str,
    transactions: int,
    options: argparse.Namespace,
) -> int:
    """Instructions of one pgbouncer from its start to its end."""
    name = f"{'keeper' if keep else 'unpatched'}-{protocol}-{transactions}"
    traces = run_dir.folder(f"callgrind-{name}")
    wrapper = _wrapper(run_dir, run_dir.usable(binary), traces, name)
    make = Keeper if keep else Bouncer
    with make(run_dir, postgres, wrapper, name=name, settings=_SETTINGS) as pooler:
        pgbench_transactions(run_dir, pooler, protocol, options.clients, transactions)
        if isinstance(pooler, Keeper):
            # The hanger's way to end one is SIGKILL, which leaves no count.
            pooler.kill_bouncer(signal.SIGTERM)
    total = _total(traces)
    if options.profile:
        shutil.copytree(traces, options.profile / name, dirs_exist_ok=True)
    return total


def _wrapper(run_dir: RunDir, binary: Path, traces: Path, name: str) -> Path:
    """A program that is pgbouncer under Callgrind.

    From the start as the account that pgbouncer becomes: at its end root's file would be closed to
    it.
    """
    account = run_dir.account
    become = (
        f"setpriv --reuid={account.uid} --regid={account.gid} --clear-groups" if account else ""
    )
    script = run_dir.path / f"callgrind-{name}.sh"
    script.write_text(
        f"#!/bin/sh\ncase $1 in --version) exec {binary} --version;; esac\n"
        f'[ "$(id -u)" = 0 ] && become="{become}"\n'
        f"exec $become valgrind --tool=callgrind --callgrind-out-file={traces}/out.%p"
        f' --quiet --vgdb=no {binary} "$@"\n'
    )
    script.chmod(0o755)
    return script


def _total(traces: Path) -> int:
    for path in sorted(traces.iterdir()):
        found = re.search(
            r"^(?:summary|totals): (\d+)", path.read_text(errors="replace"), re.MULTILINE
        )
        if found:
            return int(found[1])
    left = [(path.name, path.stat().st_size) for path in traces.iterdir()]
    raise LookupError(f"Callgrind left no total in {traces}: {left}")


if __name__ == "__main__":
    sys.exit(main())
