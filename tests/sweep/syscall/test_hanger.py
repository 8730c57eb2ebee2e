"""The hanger is killed at its own system calls.

While pgbouncer lives nobody notices, and everybody is held again by the next hanger. The one
exception is inherent: who was accepted and not yet passed on is known to nobody else. Over a dead
pgbouncer all sessions go on, if the next one has been given everything, or all end.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import pytest

from pgkeeper.control.client import NoHangerError
from testbed import Keeper, RawClient, wait_until
from testbed.errors import ConnectionLostError, WaitTimeoutError
from testbed.guard import marked
from testbed.ledgers import check_ledger
from testbed.process import send
from tests.sweep.controls.mutants import Change
from tests.sweep.syscall.sweep import every
from tests.sweep.syscall.tracer import Point, Tracer
from tests.system.wrapping import expect_fatal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from testbed import Postgres, RunDir
    from tests.fix_keeper import MakeKeeper
    from tests.sweep.controls.mutants import Mutants
    from tests.sweep.syscall.tracer import Death

# The workload is over when so many points in a row were not reached.
_BEYOND = 3
# What the script takes at the least; a hanger that does less does not do its work.
_FEWEST_CALLS = 25
_FEWEST_CALLS_OF_A_SUCCESSION = 10
# One that the short form tries too, with a pgbouncer that is whole.
_OF_THE_CONTROLS = Point(6, at_exit=True)
_GONE = "the hanger closed the connection"


class End(Enum):
    """What has become of a session."""

    INTACT = "intact"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Visit:
    """A run of a script: the hanger's death in it, if any, and what became of its sessions.

    `turned_away`: how many newcomers had to connect again.
    """

    death: Death | None
    end: End
    turned_away: int = 0


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
    tried = 0
    for death, visit in deaths(step, functools.partial(run, keeper, tracer_program)):
        tried += 1
        assert visit.turned_away <= _may_be_turned_away(death), death
    assert tried * step >= 2 * _FEWEST_CALLS
    # The standby goes with its hanger.
    expect_fatal(keeper, _GONE, times=tried if standby else 0)
    print(f"{tried} deaths of the hanger")


@_STANDBY
@_steps(9)
@pytest.mark.timeout(1800)
def test_the_hanger_is_killed_over_a_dead_pgbouncer(
    make_keeper: MakeKeeper, tracer_program: Path, step: int, standby: bool
) -> None:
    keeper = make_keeper(standby=standby)
    one = functools.partial(run_over_a_dead_pgbouncer, keeper, tracer_program)
    ends = Counter(visit.end for _, visit in deaths(step, one))
    assert ends.total() * step >= 2 * _FEWEST_CALLS_OF_A_SUCCESSION
    # Who had not been given everything went with the hanger, and so did who stood by.
    gone = keeper.output.read().count(_GONE)
    assert gone <= ends.total() * (1 + standby)
    expect_fatal(keeper, _GONE, times=gone)
    print(ends)


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        pytest.param(
            Change("src/keeper/hanger.c", "\t\tif (!cf_shutdown)\n\t\t\tresume_pooler();\n"),
            TimeoutError,
            id="nobody accepts without a hanger",
        ),
        pytest.param(
            Change(
                "src/keeper/hanger.c",
                "if (l->fd >= 0 && l->token) {",
                "if (l->fd >= 0 && l->token && !ready.clients) {",
            ),
            WaitTimeoutError,
            id="sockets are left out when all are registered",
        ),
    ],
)
def test_a_broken_rule_is_noticed(
    run_dir: RunDir,
    postgres: Postgres,
    mutants: Mutants,
    tracer_program: Path,
    change: Change,
    missed: type[Exception],
) -> None:
    keeper = Keeper(run_dir, postgres, mutants.binary([change]), name=f"broken-{missed.__name__}")
    try:
        keeper.start()
        with pytest.raises(missed):
            run(keeper, tracer_program, _OF_THE_CONTROLS)
    finally:
        # What a broken one leaves behind is not to be told by its log.
        wait_until(lambda: not _kill_all(run_dir, keeper), what="nothing of it is left")
        keeper.hanger.wait(10)


def _kill_all(run_dir: RunDir, keeper: Keeper) -> bool:
    """Whether there was anybody; who is being started meanwhile comes next."""
    left = marked(run_dir.run_id, keeper.name)
    for pid in left:
        send(pid, signal.SIGKILL)
    return bool(left)


def deaths(step: int, one: Callable[[Point], Visit]) -> Iterator[tuple[Death, Visit]]:
    """The visits in which the hanger died, at each `step`-th point, until the script is over.

    Raises AssertionError if a session ends in one that it outlives.
    """
    beyond = 0
    for point, _ in every(step):
        visit = one(point)
        if visit.death is not None:
            beyond = 0
            yield visit.death, visit
            continue
        assert visit.end is End.INTACT
        beyond += 1
        if beyond == _BEYOND:
            return


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
    return Visit(_death(tracer), End.INTACT, turned_away)


def run_over_a_dead_pgbouncer(keeper: Keeper, program: Path, point: Point) -> Visit:
    """Kill pgbouncer, and the hanger at that point of what it does then, if it comes so far.

    Raises AssertionError if not the same became of two sessions.
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
    return Visit(_death(tracer), end)


def _death(tracer: Tracer) -> Death | None:
    return tracer.deaths[0] if tracer.deaths else None


def _end_of(client: RawClient, question: str) -> End:
    """Raises AssertionError at a wrong answer, TimeoutError if nothing comes."""
    try:
        answer = client.query(question)
    except ConnectionLostError:
        return End.CLOSED
    assert answer == [("5",)]
    return End.INTACT
