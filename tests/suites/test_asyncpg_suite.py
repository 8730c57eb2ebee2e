"""asyncpg's own suite ends the same, be pgbouncer killed five times a second or not at all."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from testbed import Postgres
from testbed.ledgers import check_ledger
from tests.suites.asyncpg_suite import SETTINGS, complaints, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Keeper, RunDir
    from tests.fix_keeper import MakeKeeper

pytestmark = pytest.mark.timeout(20 * 60)

_KILL_EVERY_S = 0.2
_numbers = itertools.count(1)
_SOME = ("test_prepare.py", "test_copy.py", "test_cursor.py", "test_cancellation.py")


@pytest.fixture
def keeper(make_keeper: MakeKeeper, run_dir: RunDir) -> Iterator[Keeper]:
    """Session pooling for whatever database the suite makes, on a server that it may litter."""
    with Postgres(run_dir, name=f"for-asyncpg-{next(_numbers)}") as server:
        target = f"host={server.host} port={server.port}"
        yield make_keeper(settings=SETTINGS, databases={"*": target})


class Killer:
    """Kills the pgbouncer of a keeper again and again, as a context manager; `kills` counts."""

    def __init__(self, keeper: Keeper) -> None:
        self.kills = 0
        self._keeper = keeper
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self._work_done: Future[None] | None = None

    def __enter__(self) -> Killer:
        self._work_done = self._threads.submit(self._work)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        if self._work_done is not None:
            self._work_done.result()

    def _work(self) -> None:
        while not self._stop.wait(_KILL_EVERY_S):
            self._keeper.kill_bouncer()
            self.kills += 1


@pytest.mark.parametrize(
    "files",
    [pytest.param(_SOME, id="a part"), pytest.param((), id="whole", marks=pytest.mark.slow)],
)
def test_suite_passes_while_pgbouncer_is_killed(
    run_dir: RunDir, keeper: Keeper, files: tuple[str, ...]
) -> None:
    with Killer(keeper) as killer:
        outcomes = run(run_dir, keeper, f"{keeper.name}-asyncpg", files)
    assert complaints(outcomes, killed=True) == []
    statuses = [outcome.status for outcome in outcomes.values()]
    assert statuses.count("passed") > (50 if files else 250)
    print(f"{killer.kills} kills, {statuses.count('passed')} passed")
    assert killer.kills > 10
    assert keeper.status().adoptions.sessions_lost == 0
    check_ledger(keeper)


@pytest.mark.slow
def test_suite_ends_the_same_without_a_kill(run_dir: RunDir, keeper: Keeper) -> None:
    """The evidence for what asyncpg.toml says."""
    outcomes = run(run_dir, keeper, f"{keeper.name}-asyncpg")
    assert complaints(outcomes) == []
