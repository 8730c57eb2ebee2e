"""The hanger is killed at its own system calls.

While pgbouncer lives nobody notices, and everybody is held again by the next hanger. The one
exception is inherent: who was accepted and not yet passed on is known to nobody else. Over a dead
pgbouncer all sessions go on, if the next one has been given everything, or all end.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import pytest

from pgkeeper.control.client import NoHangerError
from testbed import RawClient, wait_until
from testbed.errors import ConnectionLostError
from testbed.ledgers import check_ledger
from testbed.process import send
from tests.sweep.syscall.tracer import Point, Tracer
from tests.system.wrapping import expect_fatal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper
    from tests.sweep.syscall.tracer import Death

# The workload is over when so many points in a row were not reached.
_BEYOND = 3
# What the script takes at the least; a hanger that does less does not do its work.
_FEWEST_CALLS = 25
_FEWEST_CALLS_OF_A_SUCCESSION = 10


class End(Enum):
    """What has become of a session."""

    INTACT = "intact"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Visit:
    """A run of the script: the hanger's death in it, if any, and how many were turned away."""

    death: Death | None
    turned_away: int


_STANDBY = pytest.mark.parametrize("standby", [False, True], ids=["no standby", "standby"])


def _steps(short: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "step",
        [
            pytest.param(short, id="some points"),
            pytest.param(1, id="every point", marks=pytest.mark.slow),
        ],
    )


@_STANDBY
@_steps(11)
@pytest.mark.timeout(1800)
def test_the_hanger_is_killed(
    make_keeper: MakeKeeper, tracer_program: Path, step: int, standby: bool
) -> None:
    keeper = make_keeper(standby=standby)
    tried = beyond = 0
    for point in points(step):
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


@_STANDBY
@_steps(9)
@pytest.mark.timeout(1800)
def test_the_hanger_is_killed_over_a_dead_pgbouncer(
    make_keeper: MakeKeeper, tracer_program: Path, step: int, standby: bool
) -> None:
    keeper = make_keeper(standby=standby)
    ends: Counter[End] = Counter()
    beyond = 0
    for point in points(step):
        died, end = run_over_a_dead_pgbouncer(keeper, tracer_program, point)
        beyond = 0 if died else beyond + 1
        if beyond == _BEYOND:
            break
        if died:
            ends[end] += 1
        else:
            assert end is End.INTACT
    assert ends.total() * step >= 2 * _FEWEST_CALLS_OF_A_SUCCESSION
    # Who had not been given everything went with the hanger, as did standbys.
    text = "the hanger closed the connection"
    expect_fatal(keeper, text, times=keeper.output.read().count(text))
    print(ends)


def points(step: int) -> Iterator[Point]:
    """Entry and exit of every call, or each `step`-th of these; without end."""
    return (Point(number // 2 + 1, number % 2 == 1) for number in itertools.count(0, step))


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


def run_over_a_dead_pgbouncer(keeper: Keeper, program: Path, point: Point) -> tuple[bool, End]:
    """Kill pgbouncer, and the hanger at that point of what it does then, if it comes so far.

    Whether it did, and what became of two sessions. Raises AssertionError if that was not the same.
    """
    with contextlib.ExitStack() as stack:
        in_transaction, at_rest = (
            stack.enter_context(RawClient(keeper.host, keeper.port)) for _ in range(2)
        )
        in_transaction.login(database="session")
        in_transaction.query("BEGIN")
        in_transaction.query("CREATE TEMP TABLE luggage AS SELECT 5 AS n")
        at_rest.login()
        pid = keeper.wait_active().pgbouncer.pid
        assert pid is not None
        with Tracer(program, keeper.hanger.pid, point) as tracer:
            send(pid, signal.SIGKILL)
            end = _end_of(in_transaction, "SELECT n FROM luggage")
            assert end is _end_of(at_rest, "SELECT 5")
        if tracer.deaths:
            keeper.hanger.wait(10)
            keeper.start_hanger()
            with RawClient(keeper.host, keeper.port) as newcomer:
                newcomer.login()
                assert newcomer.query("SELECT 1") == [("1",)]
            if end is End.INTACT:
                keeper.kill_bouncer()
                assert in_transaction.query("SELECT n FROM luggage") == [("5",)]
    wait_until(lambda: keeper.status().sessions.clients_held == 0, what="nobody is held")
    check_ledger(keeper)
    return bool(tracer.deaths), end


def _end_of(client: RawClient, question: str) -> End:
    """Raises AssertionError at a wrong answer, TimeoutError if nothing comes."""
    try:
        answer = client.query(question)
    except ConnectionLostError:
        return End.CLOSED
    assert answer == [("5",)]
    return End.INTACT
