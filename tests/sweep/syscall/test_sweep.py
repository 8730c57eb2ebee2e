"""SIGKILL at the system calls of pgbouncer: no client and no server may tell.

The hanger's successor adopts after each kill, and the workload goes on on the same sockets. What
every client received, what the server ran and what it stored is compared with a run that nobody
killed. `python -m tests.sweep.syscall` does one sweep by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from tests.sweep.syscall.sweep import Sweep, between, every, spread, twice
from tests.sweep.syscall.workloads import WORKLOADS, timeouts
from tests.sweep.syscall.workloads.chance import by_chance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from testbed.postgres import Connection, Postgres
    from tests.sweep.syscall.bed import KeeperFactory
    from tests.sweep.syscall.stage import Workload
    from tests.sweep.syscall.sweep import Plan, Report

    class RunSweep(Protocol):
        """Runs one sweep to its end; `plan` is told how many calls the workload makes."""

        def __call__(
            self,
            workload: Workload,
            plan: Callable[[int], Plan],
            *,
            standby: bool = False,
            more: Mapping[str, str | int] | None = None,
        ) -> Report: ...


# Buffers so small that messages never fit, and a loop that leaves off after every second of them.
_CRAMPED: Mapping[str, str | int] = {
    "pkt_buf": 512,
    "sbuf_loopcnt": 2,
    "tcp_socket_buffer": 4096,
}
# Their megabytes are tens of thousands of calls then.
_BULKY = {"one-row", "deaf-server", "both-full"}
# Where an answer fills the buffer exactly, upstream may release its server, and reset it, one query
# late: 2 runs of 150 without the keeper, and as many with it.
_VARYING = {"always-reset"}

# The points that the short form tries; fewer where each run waits for PgBouncer's clock.
_POINTS = 20
_FEW_POINTS = 6
_SLOW = {workload.name for workload in timeouts.WORKLOADS} | {"check-query", "rest"}

# In the short form the successor dies too in these, after a few points.
_PAIRED = {"contention", "copy", "eager-logins", "last-server-goes", "statements"}

_EACH = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)


@pytest.fixture
def run_sweep(
    keeper_factory: KeeperFactory,
    sweep_postgres: Postgres,
    watcher: Connection,
    tracer_program: Path,
) -> RunSweep:
    """See `RunSweep`."""

    def run(
        workload: Workload,
        plan: Callable[[int], Plan],
        *,
        standby: bool = False,
        more: Mapping[str, str | int] | None = None,
    ) -> Report:
        make = keeper_factory.maker(workload, standby=standby, more=more)
        sweep = Sweep(workload, make, sweep_postgres, watcher, tracer_program)
        reference = sweep.rehearse()
        report = sweep.over(plan(sweep.length), reference=reference)
        print(report)
        return report

    return run


# Workloads by number (`by_chance`), in the short form and in the long one.
_THROWN, _THROWN_LONG = range(1, 11), range(1000, 1300)

_STANDBY = pytest.mark.parametrize("standby", [False, True], ids=["alone", "standby"])


@_EACH
def test_some_points(workload: Workload, run_sweep: RunSweep) -> None:
    points = _FEW_POINTS if workload.name in _SLOW else _POINTS
    report = run_sweep(workload, lambda length: spread(length, points))
    assert not report.differences, report
    # What came in several reads when it was rehearsed may come in one: a run is shorter then.
    assert report.points >= points // 4


@pytest.mark.parametrize(
    "workload",
    [one for one in WORKLOADS if one.name in _PAIRED],
    ids=lambda workload: workload.name,
)
@_STANDBY
def test_some_pairs(workload: Workload, standby: bool, run_sweep: RunSweep) -> None:
    report = run_sweep(
        workload, lambda length: twice(length // 2 | 1, length // 4, stride=31), standby=standby
    )
    assert not report.differences, report
    assert report.pairs >= 5


@pytest.mark.parametrize("number", _THROWN)
def test_some_points_of_what_dice_have_written(number: int, run_sweep: RunSweep) -> None:
    report = run_sweep(by_chance(number), lambda length: spread(length, _FEW_POINTS))
    assert not report.differences, report
    assert report.points >= _FEW_POINTS // 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@_STANDBY
@pytest.mark.parametrize("number", _THROWN_LONG)
def test_what_dice_have_written(number: int, standby: bool, run_sweep: RunSweep) -> None:
    report = run_sweep(by_chance(number), lambda length: spread(length, _POINTS), standby=standby)
    assert not report.differences, report


@_EACH
@pytest.mark.slow
@pytest.mark.timeout(3600)
@_STANDBY
def test_every_point(workload: Workload, standby: bool, run_sweep: RunSweep) -> None:
    report = run_sweep(workload, lambda _: every(), standby=standby)
    assert not report.differences, report
    assert report.points >= 70


@pytest.mark.parametrize(
    "workload",
    [one for one in WORKLOADS if one.name not in _BULKY | _VARYING],
    ids=lambda workload: workload.name,
)
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_with_buffers_that_nothing_fits_into(workload: Workload, run_sweep: RunSweep) -> None:
    report = run_sweep(workload, lambda _: every(), more=_CRAMPED)
    assert not report.differences, report


@_EACH
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_between_two_system_calls(workload: Workload, run_sweep: RunSweep) -> None:
    report = run_sweep(workload, lambda _: between())
    assert not report.differences, report


@_EACH
@pytest.mark.slow
@pytest.mark.timeout(3600)
@_STANDBY
def test_the_successor_is_killed_too(
    workload: Workload, standby: bool, run_sweep: RunSweep
) -> None:
    """After some points of the workload, at every call of the adoption and the loop behind it."""
    report = run_sweep(workload, lambda length: twice(length // 9 | 1, stride=7), standby=standby)
    assert not report.differences, report
    assert not report.missed, report
