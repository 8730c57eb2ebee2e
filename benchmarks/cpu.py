"""CPU seconds of pgbouncer for 100,000 transactions, with and without the keeper.

Both programs run at the same time, started the same way, and are loaded in turns: what else the
machine does meets both alike, and the median of the paired ratios says what the keeper costs. The
kernel's own account of the process is taken (/proc/PID/schedstat, nanoseconds).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.instructions import PROTOCOLS
from benchmarks.load import pgbench_transactions
from benchmarks.pair import pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.pooler import Pooler
    from testbed.rundir import RunDir


@dataclass(frozen=True, slots=True)
class Figure:
    """One protocol: medians of CPU seconds for 100,000 transactions, and of the paired ratios."""

    protocol: str
    unpatched: float
    keeper: float
    ratio: float
    lower: float
    upper: float
    rounds: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--transactions", type=int, default=20_000, help="a turn")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--protocol", choices=PROTOCOLS, action="append")
    parser.add_argument("--pgbouncer", type=Path, help="another patched binary than the built one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    with pair(options.pgbouncer) as both:
        poolers: tuple[tuple[Pooler, int], ...] = (
            (both.unpatched, both.unpatched.pid),
            (both.kept, both.kept.bouncer_pid),
        )
        figures = [
            _measure(both.run_dir, poolers, protocol, options)
            for protocol in options.protocol or PROTOCOLS
        ]
    if options.json:
        print(json.dumps([asdict(figure) for figure in figures]))
        return 0
    print("CPU seconds of 100,000 transactions   unpatched   keeper   ratio (quartiles)")
    for figure in figures:
        print(
            f"{figure.protocol:<36}{figure.unpatched:>11.3f}{figure.keeper:>9.3f}"
            f"   {figure.ratio:.3f} ({figure.lower:.3f} .. {figure.upper:.3f})"
        )
    return 0


def _measure(
    run_dir: RunDir,
    poolers: tuple[tuple[Pooler, int], ...],
    protocol: str,
    options: argparse.Namespace,
) -> Figure:
    def turn(pooler: Pooler, pid: int) -> float:
        before = cpu_seconds(pid)
        pgbench_transactions(run_dir, pooler, protocol, options.clients, options.transactions)
        return (cpu_seconds(pid) - before) * 100_000 / float(options.transactions)

    pairs = []
    for number in range(options.rounds):
        # Who comes first changes, so that a drift favours nobody.
        order = poolers if number % 2 == 0 else poolers[::-1]
        seconds = {pid: turn(pooler, pid) for pooler, pid in order}
        pairs.append(tuple(seconds[pid] for _, pid in poolers))
    ratios = [kept / plain for plain, kept in pairs]
    lower, _, upper = statistics.quantiles(ratios, n=4)
    return Figure(
        protocol,
        statistics.median(plain for plain, _ in pairs),
        statistics.median(kept for _, kept in pairs),
        statistics.median(ratios),
        lower,
        upper,
        options.rounds,
    )


def cpu_seconds(pid: int) -> float:
    """Time on a CPU, user and system (proc(5), /proc/PID/schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


if __name__ == "__main__":
    sys.exit(main())
