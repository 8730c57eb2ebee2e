"""A query in one segment with the startup message runs as the client's user, never as auth_user.

While the answer of auth_query is dealt with, the client is still linked to the server that gave it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sweep.syscall.stage import AUTH_USER, LATE_USER, Workload, act
from tests.sweep.syscall.sweep import Sweep, every
from tests.sweep.syscall.talker import SYNC, bind, execute, parse, query

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.postgres import Connection, Postgres
    from tests.sweep.syscall.bed import KeeperFactory
    from tests.sweep.syscall.stage import Stage
    from tests.sweep.syscall.sweep import Plan

_WHO = "SELECT current_user || ' ' || session_user"


def _pipelined(stage: Stage) -> None:
    """The first finds neither pool nor welcome message, the others both."""
    for name in ("a", "b", "c"):
        talker = stage.talker(name)
        extended = parse("", _WHO) + bind("") + execute() + SYNC
        talker.start_up(LATE_USER, stage.database, then=query(_WHO) + extended + query(act(name)))
        talker.ready(4)
        assert AUTH_USER.encode() not in talker.transcript
        assert talker.transcript.count(f"{LATE_USER} {LATE_USER}".encode()) == 2
    # One segment with less than a message behind the startup message, the rest a moment later.
    d = stage.talker("d")
    asked = query(_WHO)
    d.start_up(LATE_USER, stage.database, then=asked[:7])
    d.ready()
    d.send(asked[7:])
    d.ready()


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(every(11), id="some points"),
        pytest.param(every(), id="every point", marks=[pytest.mark.slow]),
    ],
)
@pytest.mark.timeout(1800)
def test_it_runs_as_its_own_user(
    plan: Plan,
    keeper_factory: KeeperFactory,
    sweep_postgres: Postgres,
    watcher: Connection,
    tracer_program: Path,
) -> None:
    workload = Workload("pipelined-login", _pipelined, settings={"auth_type": "hba"})
    make = keeper_factory.maker(workload)
    report = Sweep(workload, make, sweep_postgres, watcher, tracer_program).over(plan)
    print(report)
    assert not report.differences, report
    assert report.points >= 20
