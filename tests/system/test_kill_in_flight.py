"""Kills in the middle of everything: no byte lost, doubled or changed, and no error at all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from testbed.ledgers import check_ledger
from testbed.load import EVERY_KIND, Progress, check_books, kill_at_random, make_tables, work

if TYPE_CHECKING:
    from testbed import Keeper, Postgres
    from tests.fix_bouncer import MakeBouncer
    from tests.fix_keeper import MakeKeeper

SETTINGS: dict[str, str | int | None] = {"max_prepared_statements": 50}


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_random_kills_under_mixed_load(
    make_keeper: MakeKeeper, postgres: Postgres, seed: int
) -> None:
    keeper = make_keeper(settings=SETTINGS)
    kill_under_load(keeper, postgres, kills=15, seed=seed)


@pytest.mark.slow
def test_many_random_kills_under_mixed_load(make_keeper: MakeKeeper, postgres: Postgres) -> None:
    keeper = make_keeper(settings=SETTINGS, standby=True)
    kill_under_load(keeper, postgres, kills=300, seed=3)


def test_a_server_pool_of_one_under_kills(make_keeper: MakeKeeper, postgres: Postgres) -> None:
    """Everyone waits for the same server, so that a kill finds waiting clients every time."""
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    databases = {
        "transaction": f"{target} pool_mode=transaction pool_size=1",
        "statement": f"{target} pool_mode=statement pool_size=1",
        "session": f"{target} pool_mode=session",
    }
    keeper = make_keeper(settings=SETTINGS, databases=databases)
    kill_under_load(keeper, postgres, kills=10, seed=4)


def kill_under_load(keeper: Keeper, postgres: Postgres, *, kills: int, seed: int) -> None:
    make_tables(postgres)
    before = keeper.status()

    async def disturb(progress: Progress) -> None:
        await kill_at_random(keeper, progress, kills, seed)

    workers = asyncio.run(work(keeper, EVERY_KIND * 2, disturb))

    check_books(postgres, workers)
    after = keeper.status()
    assert after.pgbouncer.incarnation == before.pgbouncer.incarnation + kills
    assert (after.adoptions.sessions_lost, after.sessions.unheld) == (0, {})
    check_ledger(keeper)


def test_an_unpatched_pgbouncer_loses_all_at_the_first_kill(
    make_vanilla_bouncer: MakeBouncer, postgres: Postgres
) -> None:
    """The control: the same load, and everybody in it gets an error."""
    bouncer = make_vanilla_bouncer(settings=SETTINGS)
    make_tables(postgres)

    async def disturb(progress: Progress) -> None:
        await progress.wait(10)
        await asyncio.to_thread(bouncer.kill)
        await asyncio.to_thread(bouncer.start)
        await progress.wait(1)

    with pytest.raises(ExceptionGroup):
        asyncio.run(work(bouncer, EVERY_KIND * 2, disturb))
