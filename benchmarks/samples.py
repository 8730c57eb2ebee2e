"""The keeper's share of pgbouncer's CPU time, by sampling where it is.

What the keeper adds is user-space work alone: it makes no system call of its own in a transaction.
`perf record` says how much of each program's time is spent in user space; with the time in the
kernel as the measure that both share, the difference is the keeper's cost; not so for prepared
statements, for which the keeper makes fewer system calls than PgBouncer does. Paired CPU seconds
(`benchmarks.cpu`) say the same, but vary by several percent with how the scheduler happens to group
wake-ups; this varies by half a percent or so. Needs perf (linux-perf) and pgbench.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.instructions import PROTOCOLS
from benchmarks.load import pgbench_transactions
from benchmarks.pair import pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.pooler import Pooler
    from testbed.rundir import RunDir

_FREQUENCY_HZ = 4999


@dataclass(frozen=True, slots=True)
class Samples:
    """Where one program was found: samples in user space by function, and in the kernel."""

    user: Counter[str]
    kernel: int

    @property
    def user_per_kernel(self) -> float:
        """Time in user space for each unit of time in the kernel."""
        return self.user.total() / self.kernel


def cost(unpatched: Samples, patched: Samples) -> float:
    """What the patched program needs more, as a share of the other one's whole time."""
    more = patched.user_per_kernel - unpatched.user_per_kernel
    return more / (1 + unpatched.user_per_kernel)


def main(argv: Sequence[str] | None = None) -> int:
    """Sample and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.samples", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program")
    parser.add_argument("--transactions", type=int, default=100_000, help="a turn")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--protocol", choices=PROTOCOLS, action="append")
    parser.add_argument("--pgbouncer", type=Path, help="another patched binary than the built one")
    parser.add_argument("--functions", type=int, default=0, help="also print so many functions")
    options = parser.parse_args(argv)
    if shutil.which("perf") is None:
        parser.error("perf is not installed: apt-get install linux-perf")
    with pair(options.pgbouncer) as both:
        bouncer, keeper = both.unpatched, both.kept
        print("user space for each second in the kernel   unpatched   keeper   cost   samples")
        for protocol in options.protocol or PROTOCOLS:
            plain, patched = Samples(Counter(), 0), Samples(Counter(), 0)
            for _ in range(options.rounds):
                plain = _more(plain, both.run_dir, bouncer, bouncer.pid, protocol, options)
                patched = _more(
                    patched, both.run_dir, keeper, keeper.bouncer_pid, protocol, options
                )
            print(
                f"{protocol:<41}{plain.user_per_kernel:>11.4f}{patched.user_per_kernel:>9.4f}"
                f"{cost(plain, patched):>7.1%}{patched.user.total() + patched.kernel:>10}"
            )
            for name, count in patched.user.most_common(options.functions):
                share = count / (patched.user.total() + patched.kernel)
                before = plain.user[name] / (plain.user.total() + plain.kernel)
                print(f"    {share:>7.2%} {before:>7.2%} {name}")
    return 0


def _more(
    so_far: Samples,
    run_dir: RunDir,
    pooler: Pooler,
    pid: int,
    protocol: str,
    options: argparse.Namespace,
) -> Samples:
    """One more turn of a program, added to its samples."""
    data = run_dir.path / "perf.data"
    how = ("-e", "cpu-clock", "-F", str(_FREQUENCY_HZ), "-p", str(pid))
    recorder = subprocess.Popen(["perf", "record", "-q", "-o", str(data), *how])
    try:
        pgbench_transactions(run_dir, pooler, protocol, options.clients, options.transactions)
    finally:
        recorder.send_signal(signal.SIGINT)
        recorder.wait()
    report = subprocess.run(
        ["perf", "report", "-i", data, "--stdio", "-n", "--sort", "sym", "--percent-limit", "0"],
        check=True,
        capture_output=True,
        text=True,
    )
    user, kernel = Counter(so_far.user), so_far.kernel
    for count, level, name in re.findall(r"%\s+(\d+)\s+\[([.k])\] (.+)", report.stdout):
        if level == ".":
            user[name.strip()] += int(count)
        else:
            kernel += int(count)
    return Samples(user, kernel)


if __name__ == "__main__":
    sys.exit(main())
