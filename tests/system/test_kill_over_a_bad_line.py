"""Kills while packets are late, lost, doubled and out of order, to clients and to PostgreSQL.

Over loopback all that is sent has been acknowledged at once. Here a kill finds bytes that the
kernel still has to send, send again, or put in order.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from testbed.errors import NotFoundError
from testbed.ledgers import check_ledger
from testbed.line import FarKeeper, Line, NearPostgres
from testbed.load import EVERY_KIND, Progress, check_books, kill_at_random, make_tables, work

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import RunDir

_LINES = {
    # Delay and jitter in microseconds, lost and doubled packets in a thousand.
    "slow": {"delay": 10_000, "jitter": 2_000},
    "lossy": {"delay": 500, "jitter": 200, "lost": 30},
    "out-of-order": {"delay": 500, "jitter": 5_000, "lost": 10, "twice": 50},
}


@pytest.fixture
def line(run_dir: RunDir, request: pytest.FixtureRequest) -> Iterator[Line]:
    """A line of the nature that the test names."""
    with contextlib.ExitStack() as stack:
        try:
            line = stack.enter_context(Line(run_dir, **_LINES[request.param]))
        except NotFoundError as error:
            pytest.skip(f"NOT TESTED over a bad line: {error}")
        yield line


@pytest.mark.parametrize("line", _LINES, indirect=True)
@pytest.mark.parametrize("kills", [10, pytest.param(150, marks=pytest.mark.slow)])
def test_random_kills_under_mixed_load_over(
    line: Line, run_dir: RunDir, patched_binary: Path, kills: int, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    with NearPostgres(
        run_dir, name=f"{name}-postgres", settings={"listen_addresses": "*"}
    ) as postgres:
        keeper = line.there(
            lambda: FarKeeper(
                run_dir,
                postgres,
                patched_binary,
                name=f"{name}-keeper",
                settings={"max_prepared_statements": 50},
                standby=True,
            ).__enter__()
        )
        try:
            kill_under_load(keeper, postgres, kills)
            assert line.sent_again() or not line.loses
        finally:
            keeper.print_logs()
            line.there(keeper.close)


def kill_under_load(keeper: FarKeeper, postgres: NearPostgres, kills: int) -> None:
    make_tables(postgres)

    async def disturb(progress: Progress) -> None:
        await kill_at_random(keeper, progress, kills, seed=kills)

    workers = asyncio.run(work(keeper, EVERY_KIND * 2, disturb))

    check_books(postgres, workers)
    after = keeper.status()
    assert after.adoptions.count == kills
    assert (after.adoptions.sessions_lost, after.sessions.unheld) == (0, {})
    check_ledger(keeper)
