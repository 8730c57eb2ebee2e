"""All that pgkeeper costs, in one table: `python -m benchmarks`, or some of it with --only.

Programs are measured in turns on the same machine: an unpatched pgbouncer, the kept one, and where
that has a meaning PostgreSQL without either. A ratio is the median of those of single rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks import footprint, speed
from benchmarks.figures import Bar, Figure, table
from benchmarks.scale import FULL, QUICK
from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.scale import Scale


def _cpu(scale: Scale) -> Iterator[Figure]:
    """CPU seconds of pgbouncer for 100,000 transactions: benchmarks.cpu."""
    for one in _asked("cpu", "--rounds", scale.rounds, "--transactions", scale.transactions):
        yield Figure(
            "CPU of pgbouncer, 100,000 transactions",
            one["protocol"],
            "s",
            one["unpatched"],
            one["keeper"],
            None,
            one["ratio"],
            one["lower"],
            one["upper"],
            one["rounds"],
            Bar(1.01),
        )


def _adoption(scale: Scale) -> Iterator[Figure]:
    """How long the next pgbouncer takes to adopt sessions and statements: benchmarks.adoption.

    The shortest of the rounds: whatever else has the processor makes one longer, and none shorter.
    """
    group = "adoption"
    times = {}
    for sessions in scale.herds:
        times[sessions] = took = _adopted(scale, sessions, 1)
        yield Figure(group, f"{sessions:,} sessions", "ms", None, took, rounds=scale.rounds)
    # Not from the fewest, whose pages and caches cost more than they do.
    few, many = scale.herds[len(scale.herds) // 2], scale.herds[-1]
    slope = 1000 * (times[many] - times[few]) / (many - few)
    what = f"each of {few:,} to {many:,}"
    yield Figure(group, what, "us", None, slope, rounds=scale.rounds, bar=Bar(5, ratio=False))
    for statements in scale.statements[1:]:
        what = f"{scale.herds[2]:,} sessions, {statements} statements each"
        took = _adopted(scale, scale.herds[2], statements)
        yield Figure(group, what, "ms", None, took, rounds=scale.rounds)


def _adopted(scale: Scale, sessions: int, statements: int) -> float:
    sizes = ("--sessions", sessions, "--statements", statements, "--rounds", scale.rounds)
    return float(min(_asked("adoption", *sizes)["adoption_ms"]))


def _asked(name: str, *words: str | int) -> Any:
    """What the benchmark of that name says; they can be run by themselves, too."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


BENCHMARKS: dict[str, Callable[[Scale], Iterator[Figure]]] = {
    "cpu": _cpu,
    "transactions": speed.transactions,
    "bulk": speed.bulk,
    "connects": speed.connects,
    "memory": footprint.memory,
    "adoption": _adoption,
    "hanger": footprint.hanger,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status is 0 whatever the figures are, 2 if they cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="benchmarks.instructions (Callgrind) and benchmarks.samples (perf) say what a"
        " transaction costs where CPU seconds are too noisy; they are run by themselves.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="repeatable")
    parser.add_argument("--rounds", type=int, help="of each paired figure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    scale = QUICK if options.quick else FULL
    if options.rounds:
        scale = replace(scale, rounds=options.rounds)
    figures: list[Figure] = []
    load = [os.getloadavg()[0]]
    try:
        for name in options.only or BENCHMARKS:
            print(f"benchmarks: {name}", file=sys.stderr)
            for figure in BENCHMARKS[name](scale):
                figures.append(figure)
                print(table([figure]).splitlines()[-1], file=sys.stderr)
            load.append(os.getloadavg()[0])
    except (PgkeeperError, subprocess.CalledProcessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    # Those of one group stand together.
    groups = list(dict.fromkeys(figure.group for figure in figures))
    figures.sort(key=lambda figure: groups.index(figure.group))
    machine = f"{os.cpu_count()} processors, {platform.system()} {platform.release()}"
    if options.json:
        plain = [figure.plain() for figure in figures]
        print(json.dumps({"machine": machine, "load": load, "figures": plain}, indent=1))
    else:
        print(table(figures))
        print(f"\n{machine}; load average {min(load):.1f} to {max(load):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
