"""Kills while packets are late, lost, doubled and out of order, to clients and to PostgreSQL.

Over loopback all that is sent has been acknowledged at once. Here a kill finds bytes that the
kernel still has to send, send again, or put in order.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NamedTuple

import pytest

from testbed.errors import NotFoundError
from testbed.ledgers import check_ledger
from testbed.line import FarKeeper, Line, NearPostgres
from testbed.load import EVERY_KIND, Progress, check_books, kill_at_random, make_tables, work
from tests.sweep.controls.mutants import Change
from tests.sweep.controls.rule import KEEPER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import RunDir
    from tests.sweep.controls.mutants import Mutants

_FIGURES = f"{KEEPER}/figures.c"
_LINES = {
    # Delay and jitter in microseconds, lost and doubled packets in a thousand.
    "slow": {"delay": 10_000, "jitter": 2_000},
    "lossy": {"delay": 500, "jitter": 200, "lost": 30},
    "out-of-order": {"delay": 500, "jitter": 5_000, "lost": 10, "twice": 50},
}


class Mistake(NamedTuple):
    """In the reading of the kernel's figures, right as long as packets come; and what shows it."""

    line: str
    changes: tuple[Change, ...]


_MISTAKES = {
    "what is under way counts as not written": Mistake(
        "slow",
        (Change(_FIGURES, "!info->tcpi_unacked && ", ""),),
    ),
    "what was sent again counts twice": Mistake(
        "lossy",
        (
            Change(_FIGURES, "before.tcpi_bytes_acked;", "before.tcpi_bytes_sent;"),
            Change(
                _FIGURES,
                "after.tcpi_bytes_acked + unsent",
                "after.tcpi_bytes_sent + after.tcpi_notsent_bytes",
            ),
        ),
    ),
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
    with far_keeper(line, run_dir, patched_binary, request.node.callspec.id) as (keeper, postgres):
        kill_under_load(keeper, postgres, kills)
        assert line.sent_again() or not line.loses


@pytest.mark.parametrize(("line", "changes"), _MISTAKES.values(), ids=_MISTAKES, indirect=["line"])
def test_a_mistake_in_the_figures_is_noticed_over(
    line: Line,
    run_dir: RunDir,
    mutants: Mutants,
    changes: tuple[Change, ...],
    request: pytest.FixtureRequest,
) -> None:
    """The control, in which a session is lost that could have gone on."""
    binary = mutants.binary(changes)
    with far_keeper(line, run_dir, binary, request.node.callspec.id) as (keeper, postgres):
        with pytest.raises(ExceptionGroup) as noticed:
            kill_under_load(keeper, postgres, 10)
        print(noticed.value.exceptions)
        assert keeper.status().adoptions.sessions_lost


@contextlib.contextmanager
def far_keeper(
    line: Line, run_dir: RunDir, binary: Path, name: str
) -> Iterator[tuple[FarKeeper, NearPostgres]]:
    """A hanger at the other end of the line, and PostgreSQL at this one."""
    with NearPostgres(
        run_dir, name=f"{name}-postgres", settings={"listen_addresses": "*"}
    ) as postgres:
        keeper = line.there(
            lambda: FarKeeper(
                run_dir,
                postgres,
                binary,
                name=f"{name}-keeper",
                settings={"max_prepared_statements": 50},
                standby=True,
            ).__enter__()
        )
        try:
            yield keeper, postgres
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
