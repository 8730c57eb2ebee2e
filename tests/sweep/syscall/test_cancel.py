"""However pgbouncer dies, a client's cancel request reaches the server once, and no other query."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from testbed.relay import Relay
from tests.sweep.syscall.stage import Workload, act
from tests.sweep.syscall.sweep import Sweep, every, twice
from tests.sweep.syscall.talker import query

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.postgres import Connection, Postgres
    from tests.sweep.syscall.bed import KeeperFactory
    from tests.sweep.syscall.stage import Stage
    from tests.sweep.syscall.sweep import Plan

_SLEEP = query("SELECT pg_sleep(5)")


def _cancels(stage: Stage, relay: Relay) -> None:
    """Two queries are cancelled; what their sessions ask at once afterwards is not.

    How many requests have passed stands in the transcript, those of the run before included.
    """
    a, b = stage.client("a"), stage.client("b")
    for client in (a, b):
        client.send(_SLEEP)
        stage.await_sleep()
        client.cancel()
        client.ready()
        client.ask(query(act(client.name)))
        client.ask(query(f"SELECT pg_sleep(0.01), '{client.name}'"))
    b.transcript += b"%d cancel requests" % relay.take_cancels()


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(every(11), id="some points"),
        pytest.param(every(), id="every point", marks=[pytest.mark.slow]),
        pytest.param(twice(11, stride=7), id="the successor too", marks=[pytest.mark.slow]),
    ],
)
@pytest.mark.timeout(1800)
def test_a_cancel_request_passes_once(
    plan: Plan,
    keeper_factory: KeeperFactory,
    sweep_postgres: Postgres,
    watcher: Connection,
    tracer_program: Path,
) -> None:
    with Relay(sweep_postgres) as relay:
        script = functools.partial(_cancels, relay=relay)
        workload = Workload("cancels", script, pool=f"port={relay.port}")
        make = keeper_factory.maker(workload)
        report = Sweep(workload, make, sweep_postgres, watcher, tracer_program).over(plan)
    print(report)
    assert not report.differences, report
    assert report.points >= 20
