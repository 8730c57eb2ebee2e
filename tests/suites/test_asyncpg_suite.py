"""asyncpg's own suite ends the same, be pgbouncer killed five times a second or not at all."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from testbed import Postgres
from testbed.ledgers import check_ledger
from tests.suites.asyncpg_suite import SETTINGS, complaints, run
from tests.suites.killer import Killer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Keeper, RunDir
    from tests.fix_keeper import MakeKeeper

pytestmark = pytest.mark.timeout(20 * 60)

_numbers = itertools.count(1)
_SOME = ("test_prepare.py", "test_copy.py", "test_cursor.py", "test_cancellation.py")


@pytest.fixture
def keeper(make_keeper: MakeKeeper, run_dir: RunDir) -> Iterator[Keeper]:
    """Session pooling for whatever database the suite makes, on a server that it may litter."""
    with Postgres(run_dir, name=f"for-asyncpg-{next(_numbers)}") as server:
        target = f"host={server.host} port={server.port}"
        yield make_keeper(settings=SETTINGS, databases={"*": target})


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
