"""SIGKILL at the system calls of pgbouncer: no client and no server may tell.

The hanger's successor adopts after each kill, and the workload goes on on the same sockets. What
every client received, what the server ran and what it stored is compared with a run that nobody
killed. `python -m tests.sweep.syscall` does one sweep by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from tests.sweep.syscall.sweep import Sweep, between, every, twice
from tests.sweep.syscall.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from testbed.postgres import Connection, Postgres
    from tests.sweep.syscall.bed import KeeperFactory
    from tests.sweep.syscall.stage import Workload
    from tests.sweep.syscall.sweep import Plan, Report

    class RunSweep(Protocol):
        """Runs one sweep to its end; the report."""

        def __call__(
            self,
            workload: Workload,
            plan: Plan,
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
# A prime, so that the points fall on all kinds of calls; the longest workloads skip more.
_STEP = 7
_STEPS = {"logins": 41, "ends": 17, "statements": 11, "session": 11}

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
        plan: Plan,
        *,
        standby: bool = False,
        more: Mapping[str, str | int] | None = None,
    ) -> Report:
        make = keeper_factory.maker(workload, standby=standby, more=more)
        sweep = Sweep(workload, make, sweep_postgres, watcher, tracer_program)
        report = sweep.over(plan)
        print(report)
        return report

    return run


@_EACH
def test_some_points(workload: Workload, run_sweep: RunSweep) -> None:
    report = run_sweep(workload, every(_STEPS.get(workload.name, _STEP)))
    assert not report.differences, report
    assert report.points >= 10


@_EACH
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("standby", [False, True], ids=["alone", "standby"])
def test_every_point(workload: Workload, standby: bool, run_sweep: RunSweep) -> None:
    report = run_sweep(workload, every(), standby=standby)
    assert not report.differences, report
    assert report.points >= 70


@_EACH
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_with_buffers_that_nothing_fits_into(workload: Workload, run_sweep: RunSweep) -> None:
    report = run_sweep(workload, every(), more=_CRAMPED)
    assert not report.differences, report


@_EACH
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_between_two_system_calls(workload: Workload, run_sweep: RunSweep) -> None:
    report = run_sweep(workload, between())
    assert not report.differences, report


@_EACH
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_successor_is_killed_too(workload: Workload, run_sweep: RunSweep) -> None:
    report = run_sweep(workload, twice(3))
    assert not report.differences, report
    assert report.kills > report.points
