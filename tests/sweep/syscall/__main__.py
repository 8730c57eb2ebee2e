"""One sweep by hand, with every difference in full: `python -m tests.sweep.syscall simple`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import binaries
from testbed.errors import BedError
from testbed.postgres import Postgres
from testbed.rundir import RunDir
from tests.sweep.syscall.bed import SETTINGS, KeeperFactory, prepare
from tests.sweep.syscall.sweep import Report, Sweep, between, every, spread, twice
from tests.sweep.syscall.tracer import Point, build_tracer
from tests.sweep.syscall.workloads import WORKLOADS
from tests.sweep.syscall.workloads.chance import by_chance

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Workload
    from tests.sweep.syscall.sweep import Plan

_PLANS = {"every": every, "between": between, "twice": twice}


def main() -> int:
    """Run it; the exit status is 1 if anything differed."""
    options = _options()
    more = dict(setting.split("=", 1) for setting in options.set)
    reports = []
    with (
        RunDir() as run_dir,
        Postgres(run_dir, log_statement="all", settings=SETTINGS) as postgres,
    ):
        prepare(postgres)
        program = build_tracer(run_dir.path)
        with (
            contextlib.closing(postgres.connect()) as watcher,
            KeeperFactory(run_dir, postgres, options.pgbouncer or binaries.patched()) as factory,
        ):
            for workload in _chosen(options):
                make = factory.maker(workload, standby=options.standby, more=more)
                sweep = Sweep(workload, make, postgres, watcher, program)
                try:
                    reports.append(_watch(sweep, options))
                except (AssertionError, BedError) as error:
                    print(f"## {workload.name}: cannot be swept: {error}", flush=True)
                    reports.append(Report(workload.name, differences=[str(error)]))
    return any(report.differences for report in reports)


def _chosen(options: argparse.Namespace) -> list[Workload]:
    if options.chance:
        first, _, last = options.chance.partition("-")
        return [by_chance(number) for number in range(int(first), int(last or first) + 1)]
    names = options.workload or [workload.name for workload in WORKLOADS]
    return [one for one in WORKLOADS if one.name in names]


def _watch(sweep: Sweep, options: argparse.Namespace) -> Report:
    plan: Plan = _PLANS[options.plan](options.step, options.start)
    reference = sweep.rehearse()
    if options.points:
        plan = spread(sweep.length, options.points)
    if options.plan == "twice":
        plan = twice(options.step, options.start, options.stride)
    if options.point:
        call, where, *steps = options.point.split(",")
        point = Point(int(call), where == "exit", int(steps[0]) if steps else 0)
        plan = itertools.repeat((point, (None,)), options.step)
    shown = 0
    began = time.monotonic()

    def show(report: Report) -> None:
        nonlocal shown
        for text in report.differences[shown:]:
            print(text, flush=True)
        shown = len(report.differences)
        if report.points % 500 == 0:
            print(report.head, flush=True)

    report = sweep.over(plan, reference=reference, at_most=options.at_most, watch=show)
    seconds = time.monotonic() - began
    print(f"## {report.head}, {sweep.length} calls, {seconds:.0f} s", flush=True)
    return report


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep.syscall", description=__doc__)
    parser.add_argument("workload", nargs="*", help="all, if none is named")
    parser.add_argument("--plan", choices=_PLANS, default="every")
    parser.add_argument("--chance", metavar="N[-M]", help="workloads that dice have written")
    parser.add_argument("--points", type=int, help="so many points all over each workload")
    parser.add_argument("--step", type=int, default=1, help="try each STEP-th point")
    parser.add_argument("--start", type=int, default=0, help="leave out the first START points")
    parser.add_argument("--stride", type=int, default=1, help="twice: each STRIDE-th second point")
    parser.add_argument("--point", help="CALL,entry|exit[,STEPS]: this one alone, STEP times")
    parser.add_argument("--pgbouncer", type=Path, help="another binary than the built one")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="ini")
    parser.add_argument("--standby", action="store_true")
    parser.add_argument("--at-most", type=int, default=10, help="differences of one workload")
    options = parser.parse_args()
    unknown = set(options.workload) - {workload.name for workload in WORKLOADS}
    if unknown:
        parser.error(f"no such workload: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
