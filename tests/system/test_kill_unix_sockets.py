"""Kills while sockets without byte counters are busy: exact, or a clear end, and how seldom.

The kernel counts no bytes of Unix-domain sockets. The ledger counts them itself, after each system
call, so a kill within one leaves open whether it took place: that session ends.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING

import psycopg
import pytest

from testbed.ledgers import check_ledger
from testbed.load import (
    CopyIn,
    Pipelines,
    Progress,
    PsycopgRows,
    SimpleInserts,
    SingleInserts,
    Worker,
    make_tables,
)
from testbed.pooler import POOL_MODES

if TYPE_CHECKING:
    from testbed import Keeper, Postgres, RunDir
    from tests.fix_keeper import MakeKeeper

KINDS = (SingleInserts, SimpleInserts, Pipelines, CopyIn, PsycopgRows)
_ENDED = "pgbouncer was restarted while data of this session was in flight"
# In the middle of a message no error can be told.
_CUT = "server closed the connection unexpectedly"


class Sessions:
    """So many workers at a time: whose session has ended gives its place to another one."""

    def __init__(self, keeper: Keeper, places: int) -> None:
        self.keeper = keeper
        self.places = places
        self.progress = Progress()
        self.workers: list[Worker] = []
        self.ended: list[Worker] = []
        self.told: list[str] = []
        self.over = False

    async def run(self, disturb: list[int]) -> None:
        """Work while pgbouncer is killed after so many steps each."""
        async with asyncio.TaskGroup() as group:
            for place in range(self.places):
                group.create_task(self._fill(place))
            await self.progress.wait(self.places)
            try:
                for steps in disturb:
                    await self.progress.wait(steps)
                    await asyncio.to_thread(self.keeper.kill_bouncer)
                await self.progress.wait(20)
            finally:
                self.progress.stopping = self.over = True

    async def _fill(self, place: int) -> None:
        while not self.over:
            number = len(self.workers) + 1
            worker = KINDS[place % len(KINDS)](self.keeper, number, self.progress)
            self.workers.append(worker)
            try:
                await worker.run()
            except psycopg.OperationalError as error:
                # A worker that fails stops all others; these go on.
                self.progress.stopping = self.over
                self.ended.append(worker)
                self.told.append(str(error))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [15, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_session_over_unix_sockets_is_exact_or_ends(
    make_keeper: MakeKeeper, postgres: Postgres, run_dir: RunDir, kills: int
) -> None:
    """Servers and clients both, and pgbouncer is busy all the time.

    Whoever is told that a row was written finds it, once; whose session has ended finds at most the
    one more that it had asked for.
    """
    folder = run_dir.folder(f"unix-{kills}")
    target = f"host={postgres.socket_dir} port={postgres.port} dbname=postgres"
    keeper = make_keeper(
        settings={"max_prepared_statements": 50, "unix_socket_dir": str(folder)},
        databases={mode: f"{target} pool_mode={mode}" for mode in POOL_MODES},
    )
    keeper.host = str(folder)
    make_tables(postgres)
    sessions = Sessions(keeper, 20)
    chance = random.Random(kills)

    asyncio.run(sessions.run([chance.randint(1, 20) for _ in range(kills)]))

    rows = Counter(postgres.sql("SELECT worker, n FROM counted"))
    for worker in sessions.workers:
        if worker.writes_counted:
            found = {n: count for (who, n), count in rows.items() if who == worker.number}
            more = {len(worker.done) + 1: 1} if worker in sessions.ended else {}
            told = dict.fromkeys(worker.done, 1)
            assert found in (told, told | more), f"{worker.kind} {worker.number}"
    assert all(_ENDED in text or _CUT in text for text in sessions.told), sessions.told
    # One call at a time is under way, and a client and a server depend on it.
    assert len(sessions.ended) <= kills
    assert keeper.status().adoptions.sessions_lost == len(sessions.ended)
    check_ledger(keeper)
    print(f"{kills} kills of {sessions.places} busy sessions: {len(sessions.ended)} ended")
