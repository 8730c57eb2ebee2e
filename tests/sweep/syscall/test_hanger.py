"""The hanger is killed at its own system calls, while clients come, ask and go.

Nobody notices, and everybody is held again by the next hanger. The one exception is inherent: who
was accepted and not yet passed on is known to nobody else.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pgkeeper.control.client import NoHangerError
from testbed import RawClient, wait_until
from testbed.errors import ConnectionLostError
from testbed.ledgers import check_ledger
from tests.sweep.syscall.tracer import Point, Tracer
from tests.system.wrapping import expect_fatal

if TYPE_CHECKING:
    from pathlib import Path

    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper
    from tests.sweep.syscall.tracer import Death

# The workload is over when so many points in a row were not reached.
_BEYOND = 3
# What the script takes at the least; a hanger that does less does not do its work.
_FEWEST_CALLS = 25


@dataclass(frozen=True, slots=True)
class Visit:
    """A run of the script: the hanger's death in it, if any, and how many were turned away."""

    death: Death | None
    turned_away: int


@pytest.mark.parametrize("standby", [False, True], ids=["no standby", "standby"])
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(11, id="some points"),
        pytest.param(1, id="every point", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(1800)
def test_the_hanger_is_killed(
    make_keeper: MakeKeeper, tracer_program: Path, step: int, standby: bool
) -> None:
    keeper = make_keeper(standby=standby)
    tried = beyond = 0
    for number in itertools.count(0, step):
        point = Point(number // 2 + 1, number % 2 == 1)
        visit = run(keeper, tracer_program, point)
        beyond = beyond + 1 if visit.death is None else 0
        if beyond == _BEYOND:
            break
        if visit.death is not None:
            tried += 1
            assert visit.turned_away <= _may_be_turned_away(visit.death), visit.death
    assert tried * step >= 2 * _FEWEST_CALLS
    # The standby goes with its hanger.
    expect_fatal(keeper, "the hanger closed the connection", times=tried if standby else 0)
    print(f"{tried} deaths of the hanger")


def _may_be_turned_away(death: Death) -> int:
    """Between the accept() of a client and the message that passes it on there is nothing."""
    calls = {("accept4", True), ("sendmsg", False)}
    return int((death.syscall, death.point.at_exit) in calls)


def run(keeper: Keeper, program: Path, point: Point) -> Visit:
    """Kill the hanger at that point of the script, let the next one hold all, kill pgbouncer.

    Raises AssertionError if a session is not what it was.
    """
    with contextlib.ExitStack() as stack:

        def enter(database: str = "transaction") -> RawClient:
            client = stack.enter_context(RawClient(keeper.host, keeper.port))
            client.login(database=database)
            assert client.query("SELECT 'here'") == [("here",)]
            return client

        resident = enter("session")
        resident.query("BEGIN")
        resident.query("CREATE TEMP TABLE luggage AS SELECT 5 AS n")
        leaver = enter()
        turned_away = 0
        with Tracer(program, keeper.hanger.pid, point) as tracer:
            assert resident.query("SELECT n FROM luggage") == [("5",)]
            with contextlib.suppress(NoHangerError):
                keeper.status()
            try:
                newcomer = enter()
            except ConnectionLostError:
                turned_away += 1
                newcomer = enter()
            leaver.close()
            try:
                enter("session").close()
            except ConnectionLostError:
                turned_away += 1
            assert resident.query("SELECT n FROM luggage") == [("5",)]
            assert newcomer.query("SELECT 1") == [("1",)]
        if tracer.deaths:
            keeper.hanger.wait(10)
            keeper.start_hanger()
        wait_until(lambda: keeper.status().sessions.clients_held == 2, what="both are held")
        assert keeper.kill_bouncer().adoptions.sessions_lost == 0
        assert keeper.status().sessions.unheld == {}
        assert resident.query("SELECT n FROM luggage") == [("5",)]
        assert newcomer.query("SELECT 1") == [("1",)]
    wait_until(lambda: keeper.status().sessions.clients_held == 0, what="nobody is held")
    check_ledger(keeper)
    return Visit(tracer.deaths[0] if tracer.deaths else None, turned_away)
