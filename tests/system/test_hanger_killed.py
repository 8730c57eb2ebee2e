"""The hanger dies: pgbouncer serves on, accepts by itself, and comes back to the next hanger."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeeper.control.client import NoHangerError
from testbed import RawClient, wait_until
from testbed.ledgers import check_ledger
from testbed.load import EVERY_KIND, check_books, make_tables, work
from testbed.process import send
from tests.system.orphans import assert_intact, make_orphans_table, open_three

if TYPE_CHECKING:
    from testbed import Keeper, Postgres, RunDir
    from testbed.load import Progress
    from tests.fix_keeper import MakeKeeper


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    return make_keeper(settings={"max_prepared_statements": 50})


def test_sessions_before_between_and_after(keeper: Keeper, postgres: Postgres) -> None:
    """Three generations of sessions over the deaths of two hangers and a pgbouncer."""
    make_orphans_table(postgres)
    pid = keeper.bouncer_pid
    with contextlib.ExitStack() as stack:
        sessions = open_three(stack, keeper, "before")
        keeper.kill_hanger()
        with pytest.raises(NoHangerError):
            keeper.status()

        assert_intact(sessions)
        # Nobody but pgbouncer can have accepted these.
        sessions += open_three(stack, keeper, "between")
        assert_intact(sessions)

        keeper.start_hanger()
        assert keeper.bouncer_pid == pid
        status = keeper.status().sessions
        assert status.clients_held == len(sessions)
        # Two transactions, two that keep their server, and whoever served those at rest.
        assert status.servers_held == len(keeper.admin("SHOW SERVERS")) >= 4
        assert status.unheld == {}
        assert_intact(sessions)
        sessions += open_three(stack, keeper, "after")

        keeper.kill_bouncer()
        assert keeper.bouncer_pid != pid
        assert_intact(sessions)

        keeper.kill_hanger()
        assert_intact(sessions)
        keeper.start_hanger()
        keeper.kill_bouncer()
        assert_intact(sessions)
        for one in sessions:
            one.finish()
        check_ledger(keeper)
    rows = [who for (who,) in postgres.sql("SELECT who FROM orphans ORDER BY who")]
    assert rows == ["after", "before", "between"]


def test_both_dead_is_the_limit(keeper: Keeper) -> None:
    """What README says is lost is lost: the control for the test above."""
    with contextlib.closing(keeper.connect()) as connection:
        pid = keeper.bouncer_pid
        keeper.kill_hanger()
        send(pid, signal.SIGKILL)
        keeper.start_hanger()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert keeper.sql("SELECT 1") == [(1,)]


def test_deaths_of_both_in_turns_under_load(keeper: Keeper, postgres: Postgres) -> None:
    """The hanger dies, and as soon as the next one has taken over, pgbouncer."""
    make_tables(postgres)
    chance = random.Random(7)

    async def disturb(progress: Progress) -> None:
        for _ in range(5):
            await progress.wait(chance.randint(1, 30))
            await asyncio.to_thread(keeper.kill_hanger)
            await progress.wait(chance.randint(1, 30))
            await asyncio.to_thread(keeper.start_hanger)
            await progress.wait(chance.randint(1, 30))
            await asyncio.to_thread(keeper.kill_bouncer)
        await progress.wait(30)

    workers = asyncio.run(work(keeper, EVERY_KIND, disturb))

    check_books(postgres, workers)
    status = keeper.status()
    assert (status.adoptions.sessions_lost, status.sessions.unheld) == (0, {})
    check_ledger(keeper)


def test_many_sessions_that_nobody_knew(keeper: Keeper) -> None:
    """More than one message of 64 descriptors, and as many that have left meanwhile."""
    with contextlib.ExitStack() as stack:
        leaving = [RawClient(keeper.host, keeper.port).login() for _ in range(150)]
        keeper.kill_hanger()
        staying = [
            stack.enter_context(RawClient(keeper.host, keeper.port)).login() for _ in range(150)
        ]
        for client in leaving:
            client.close()
        keeper.start_hanger()
        wait_until(
            lambda: keeper.status().sessions.clients_held == len(staying), what="150 are held"
        )
        keeper.kill_bouncer()
        for client in staying:
            assert client.query("SELECT 1") == [("1",)]
        check_ledger(keeper)


def test_clients_over_a_unix_socket(make_keeper: MakeKeeper, run_dir: RunDir) -> None:
    folder = str(run_dir.folder("orphaned-unix"))
    keeper = make_keeper(settings={"unix_socket_dir": folder})
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.closing(keeper.connect(host=folder)))
        keeper.kill_hanger()
        second = stack.enter_context(contextlib.closing(keeper.connect(host=folder)))
        keeper.start_hanger()
        third = stack.enter_context(contextlib.closing(keeper.connect(host=folder)))
        keeper.kill_bouncer()
        for connection in (first, second, third):
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
