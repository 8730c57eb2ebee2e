"""The demo's stories: lost by the kill without pgkeeper, kept with it, sound without a kill."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from demo.stage import Alone, Kept, play
from demo.stories import ALL, TABLES

if TYPE_CHECKING:
    from collections.abc import Collection

    from testbed import Bouncer, Keeper, Pooler, Postgres


@pytest.fixture
def _tables(postgres: Postgres) -> None:
    postgres.sql("DROP TABLE IF EXISTS demo_rows, demo_copied")
    for table in TABLES:
        postgres.sql(table)


@dataclass(frozen=True, slots=True)
class _Undisturbed:
    """A side where nothing has to come back, because nothing is killed."""

    pooler: Pooler
    pid: int

    def bouncer_pid(self) -> int:
        return self.pid

    async def recover(self, killed: int, knocking: Collection[asyncio.Task[None]]) -> None:
        assert killed == self.pid


@pytest.mark.usefixtures("_tables")
def test_every_story_holds_without_a_kill(vanilla_bouncer: Bouncer) -> None:
    """Else a story that is lost by the kill would prove nothing."""
    side = _Undisturbed(vanilla_bouncer, vanilla_bouncer.pid)
    result = asyncio.run(play(side, ALL, signal.SIGHUP))
    assert [outcome.reason for outcome in result.outcomes if not outcome.held] == []
    assert result.successor == result.killed


@pytest.mark.usefixtures("_tables")
def test_every_story_is_lost_without_pgkeeper(vanilla_bouncer: Bouncer) -> None:
    result = asyncio.run(play(Alone(vanilla_bouncer), ALL))
    assert [outcome.title for outcome in result.outcomes if outcome.held] == []
    assert result.successor != result.killed


@pytest.mark.usefixtures("_tables")
def test_every_story_goes_on_with_pgkeeper(keeper: Keeper) -> None:
    result = asyncio.run(play(Kept(keeper), ALL))
    assert [outcome.reason for outcome in result.outcomes if not outcome.held] == []
    assert result.successor != result.killed
