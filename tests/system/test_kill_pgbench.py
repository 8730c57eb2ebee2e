"""pgbench over kills: no client fails, every transaction counts once, the balances add up."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from testbed import wait_until
from testbed.ledgers import check_ledger
from testbed.pgbench import Pgbench, Result, balances

if TYPE_CHECKING:
    from testbed import Keeper, Postgres, RunDir
    from tests.fix_bouncer import MakeBouncer
    from tests.fix_keeper import MakeKeeper

SETTINGS: dict[str, str | int | None] = {"max_prepared_statements": 50, "default_pool_size": 5}

# Twice as many clients as servers, but where pgbench would lock itself up: it waits for a prepared
# statement with all its clients, and in a session pool nobody gives a server back.
PARAMETERS = [
    ("transaction", "prepared", 5, 4000),
    ("session", "simple", 5, 4000),
    ("transaction", "simple", 10, 4000),
    pytest.param("transaction", "extended", 10, 30_000, marks=pytest.mark.slow),
    pytest.param("transaction", "prepared", 5, 30_000, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("database", "protocol", "clients", "transactions"), PARAMETERS)
def test_balances_add_up_over_kills(
    run_dir: RunDir,
    make_keeper: MakeKeeper,
    postgres: Postgres,
    database: str,
    protocol: str,
    clients: int,
    transactions: int,
) -> None:
    keeper = make_keeper(settings=SETTINGS)
    with Pgbench(run_dir, keeper, name=f"pgbench-{keeper.name}") as pgbench:
        pgbench.make_tables(postgres)
        pgbench.start(
            database=database, clients=clients, transactions=transactions, protocol=protocol
        )

        kills = kill_while_it_works(keeper, postgres, pgbench)

        assert kills >= 10
        assert_clean(pgbench.finish(), postgres)
    check_ledger(keeper)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "clients"), [("simple", 10), ("extended", 10), ("prepared", 5)]
)
def test_minutes_of_kills_by_the_clock(
    run_dir: RunDir, make_keeper: MakeKeeper, postgres: Postgres, protocol: str, clients: int
) -> None:
    keeper = make_keeper(settings=SETTINGS)
    chance = random.Random(protocol)
    kills = 0
    with Pgbench(run_dir, keeper, name=f"pgbench-{keeper.name}") as pgbench:
        pgbench.make_tables(postgres)
        pgbench.start(database="transaction", clients=clients, seconds=120, protocol=protocol)
        while pgbench.running:
            time.sleep(chance.uniform(0.1, 0.3))  # what is asked for: a kill as often as that
            keeper.kill_bouncer()
            kills += 1
        result = pgbench.finish()
        assert_clean(result, postgres)
    print(f"{protocol}: {result.transactions} transactions over {kills} kills")
    assert kills > 300
    assert result.transactions > kills
    check_ledger(keeper)


def test_the_same_over_one_kill_of_an_unpatched_pgbouncer(
    run_dir: RunDir, make_vanilla_bouncer: MakeBouncer, postgres: Postgres
) -> None:
    """The control: pgbench's clients are gone with the first kill."""
    bouncer = make_vanilla_bouncer(settings=SETTINGS)
    with Pgbench(run_dir, bouncer, name=f"pgbench-{bouncer.name}") as pgbench:
        pgbench.make_tables(postgres)
        pgbench.start(database="transaction", clients=5, transactions=10**6, protocol="prepared")
        wait_lines(postgres, 100)

        bouncer.kill()
        bouncer.start()

        result = pgbench.finish()
    assert result.exit_code != 0
    with pytest.raises(AssertionError):
        assert_clean(result, postgres)


def kill_while_it_works(keeper: Keeper, postgres: Postgres, pgbench: Pgbench) -> int:
    """Kill each time that 20 more transactions have been committed; how many kills."""
    kills = 0
    while pgbench.running:
        lines = balances(postgres)[-1]
        if wait_lines(postgres, lines + 20, pgbench):
            keeper.kill_bouncer()
            kills += 1
    return kills


def wait_lines(postgres: Postgres, count: int, pgbench: Pgbench | None = None) -> bool:
    """Wait until so many transactions have been committed, or pgbench has ended: False then."""

    def enough() -> bool:
        return balances(postgres)[-1] >= count

    wait_until(
        lambda: enough() or (pgbench is not None and not pgbench.running),
        what=f"{count} transactions",
        poll_s=0.02,
    )
    return enough()


def assert_clean(result: Result, postgres: Postgres) -> None:
    """No client failed, and what PostgreSQL has is what pgbench was told, whole."""
    assert (result.exit_code, result.failed) == (0, 0), result.output
    accounts, tellers, branches, history, lines = balances(postgres)
    assert accounts == tellers == branches == history
    assert lines == result.transactions
