"""Fifty kills under two hundred resting sessions of two drivers: each keeps everything."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from testbed.resting import Resting, cancel_each, close_all, in_turns, open_resting, survivors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed import Bouncer, Keeper, Postgres
    from testbed.pooler import Pooler
    from tests.fix_bouncer import MakeBouncer
    from tests.fix_keeper import MakeKeeper

KILLS = 50
# Of each driver. Session pooling and open transactions cost a server connection each.
COUNTS = {"transaction": 60, "session": 20, "statement": 20}
IN_TRANSACTION = {"transaction": 10, "session": 10}

SETTINGS: dict[str, str | int | None] = {
    "max_prepared_statements": 100,
    "track_extra_parameters": "IntervalStyle, scram_iterations",
    "default_pool_size": 60,
}


@pytest.fixture
def table(postgres: Postgres) -> str:
    postgres.sql("DROP TABLE IF EXISTS at_rest")
    postgres.sql("CREATE TABLE at_rest (n int)")
    return "at_rest"


def test_two_hundred_sessions_keep_everything_over_fifty_kills(
    make_keeper: MakeKeeper, postgres: Postgres, table: str
) -> None:
    keeper = make_keeper(settings=SETTINGS)

    async def scenario() -> None:
        resting = await open_resting(keeper, COUNTS)
        await in_turns(one.begin(table) for one in to_begin(resting))
        before = await in_turns(one.facts() for one in resting)
        assert_all_different(before)
        tokens, logins = client_tokens(keeper), count_logins(keeper)
        assert len(tokens) == len(resting) == 200
        start = keeper.status().pgbouncer.incarnation

        pids = await asyncio.to_thread(kill_again_and_again, keeper)

        assert len(set(pids)) == KILLS
        status = keeper.status()
        assert status.pgbouncer.incarnation == start + KILLS
        assert status.adoptions.sessions_lost == 0
        assert status.sessions.unheld == {}
        assert client_tokens(keeper) == tokens
        after = await in_turns(one.facts() for one in resting)
        assert after == before
        assert all(await in_turns(one.prepared_work() for one in resting))
        await in_turns(one.commit() for one in resting if one.in_transaction)
        await cancel_each(postgres, keeper, resting)
        # As many as before: nobody, and no driver behind anybody's back, logged in again.
        assert count_logins(keeper) == logins
        await close_all(resting)
        assert rows(postgres, table) == sorted(one.number for one in to_begin(resting))

    asyncio.run(scenario())


def test_an_unpatched_pgbouncer_keeps_none_over_one_kill(
    make_vanilla_bouncer: MakeBouncer, postgres: Postgres, table: str
) -> None:
    """The control: the same sessions, and the first kill ends every one of them."""
    bouncer: Bouncer = make_vanilla_bouncer(settings=SETTINGS)

    async def scenario() -> None:
        resting = await open_resting(bouncer, COUNTS)
        await in_turns(one.begin(table) for one in to_begin(resting))
        logins = count_logins(bouncer)
        assert len(await survivors(resting)) == 200
        assert count_logins(bouncer) == logins

        await asyncio.to_thread(bouncer.kill)
        await asyncio.to_thread(bouncer.start)

        assert await survivors(resting) == []
        await close_all(resting)
        assert rows(postgres, table) == []

    asyncio.run(scenario())


def to_begin(resting: Iterable[Resting]) -> list[Resting]:
    """The sessions that are to rest inside of a transaction: the first of each kind."""
    chosen = []
    left = {(driver, mode): n for mode, n in IN_TRANSACTION.items() for driver in DRIVERS}
    for one in resting:
        kind = (one.session.driver, one.mode)
        if left.get(kind, 0):
            left[kind] -= 1
            chosen.append(one)
    return chosen


DRIVERS = ("psycopg", "asyncpg")


def assert_all_different(facts: Iterable[object]) -> None:
    """Two sessions that cannot be told apart could change places unnoticed."""
    assert len(set(facts)) == sum(COUNTS.values()) * len(DRIVERS)


def kill_again_and_again(keeper: Keeper) -> list[int]:
    """The pids of those that came after each kill."""
    pids = []
    for _ in range(KILLS):
        pid = keeper.kill_bouncer().pgbouncer.pid
        assert pid is not None
        pids.append(pid)
    return pids


def client_tokens(keeper: Keeper) -> list[int]:
    """The tokens of the clients that are held."""
    return sorted(held.token for held in keeper.sessions() if held.kind == "client" and held.held)


def count_logins(pooler: Pooler) -> int:
    """How many logins of users PgBouncer has logged; the test bed's own go to the console."""
    attempts = re.findall(r"login attempt: db=(\S+)", pooler.log.read())
    return sum(database != "pgbouncer" for database in attempts)


def rows(postgres: Postgres, table: str) -> list[int]:
    """What has been committed."""
    return [n for (n,) in postgres.sql(f"SELECT n FROM {table} ORDER BY n")]
