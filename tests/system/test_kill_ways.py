"""Every way to die, at random moments under every kind of load: no error, no duplicate, no leak."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, wait_until
from testbed.deaths import can_limit_memory, memory_limit, random_deaths
from testbed.ledgers import at_rest, check_ledger
from testbed.load import EVERY_KIND, Progress, check_books, make_tables, work
from testbed.load_logins import LOGIN_USER, LOGINS, prepare_logins
from testbed.pgbench import Pgbench
from tests.system.test_kill_pgbench import assert_clean

if TYPE_CHECKING:
    from testbed import Keeper, Postgres, RunDir
    from tests.fix_keeper import MakeKeeper

HBA = f"host all {LOGIN_USER} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"


@pytest.fixture
def keeper(make_keeper: MakeKeeper, postgres: Postgres, run_dir: RunDir) -> Keeper:
    """Logins by SCRAM for one user, without a password for all others."""
    verifier = prepare_logins(postgres)
    hba = run_dir.path / "kill-ways-hba.conf"
    hba.write_text(HBA)
    hba.chmod(0o644)
    return make_keeper(
        settings={"max_prepared_statements": 50, "auth_type": "hba", "auth_hba_file": str(hba)},
        users={LOGIN_USER: verifier},
    )


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kills", "transactions"),
    [(40, 2000), pytest.param(2000, 100_000, marks=pytest.mark.slow)],
    ids=["some", "thousands"],
)
def test_every_way_to_die_under_every_kind_of_load(
    keeper: Keeper, postgres: Postgres, run_dir: RunDir, kills: int, transactions: int
) -> None:
    kinds = (*EVERY_KIND, *LOGINS) * 2
    make_tables(postgres)
    # Pools and learnt keys come to stay.
    asyncio.run(work(keeper, kinds, lambda progress: progress.wait(1)))
    wait_until(lambda: keeper.status().sessions.clients_held == 0, what="all have been released")
    empty = at_rest(keeper)
    before = keeper.status()
    chance = random.Random(kills)
    make_tables(postgres)

    async def disturb(progress: Progress) -> None:
        for death in itertools.islice(random_deaths(kills), kills):
            await progress.wait(chance.randint(1, 40))
            await asyncio.to_thread(death, keeper)
        await progress.wait(50)

    with Pgbench(run_dir, keeper, name=f"pgbench-ways-{kills}") as pgbench:
        pgbench.make_tables(postgres)
        pgbench.start(
            database="transaction", clients=4, transactions=transactions, protocol="extended"
        )
        workers = asyncio.run(work(keeper, kinds, disturb))
        result = pgbench.finish(600)

    check_books(postgres, workers)
    assert_clean(result, postgres)
    after = keeper.status()
    assert after.pgbouncer.incarnation == before.pgbouncer.incarnation + kills
    assert (after.adoptions.sessions_lost, after.sessions.unheld) == (0, {})
    check_ledger(keeper)
    wait_until(lambda: keeper.status().sessions.clients_held == 0, what="all have been released")
    assert at_rest(keeper) == empty
    turns = sum(len(worker.done) for worker in workers)
    print(f"{kills} kills, {turns} turns of work, {result.transactions} transactions, no error")


@pytest.mark.skipif(not can_limit_memory(), reason="needs root and a memory cgroup, version 1")
def test_the_kernel_kills_it_for_its_memory_while_clients_storm_in(keeper: Keeper) -> None:
    """It grows with each client until it may not: all of them are served, by its successor."""
    before = keeper.status().pgbouncer
    assert before.pid is not None
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory_limit(before.pid, 64 * 1024, f"pgkeeper-bed-{os.getpid()}"))
        clients = [stack.enter_context(RawClient(keeper.host, keeper.port)) for _ in range(600)]
        for client in clients:
            client.start_up(user="postgres", database="transaction")
        for client in clients:
            client.finish_login()
        for number, client in enumerate(clients):
            assert client.query(f"SELECT {number}") == [(str(number),)]
        after = keeper.wait_active(after=before.incarnation)
        assert (after.adoptions.sessions_lost, after.sessions.unheld) == (0, {})
    assert "killed by SIGKILL" in keeper.output.read()
