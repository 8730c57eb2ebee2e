"""The kill, on either side: with pgkeeper and without."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from demo.story import Moment, Outcome
from testbed.process import send

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from demo.story import Story
    from testbed import Bouncer, Keeper, Pooler

# How long the sessions are watched before the kill and after the successor serves.
_BEFORE_S = 0.4
_AFTER_S = 0.4
# The longest that a restart without pgkeeper waits; systemd's default (RestartSec=) is 0.1 s.
_RESTART_S = 0.5


class Side(Protocol):
    """A pooler whose pgbouncer can be killed and comes back."""

    @property
    def pooler(self) -> Pooler:
        """Where the sessions log in."""
        ...

    def bouncer_pid(self) -> int:
        """The pgbouncer that serves now."""
        ...

    async def recover(self, killed: int, knocking: Collection[asyncio.Task[None]]) -> None:
        """Return when another than `killed` serves; `knocking` are the logins begun meanwhile."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """The hanger restarts pgbouncer and hands it the sessions."""

    pooler: Keeper

    def bouncer_pid(self) -> int:
        """The pgbouncer that serves now."""
        return self.pooler.bouncer_pid

    async def recover(self, killed: int, knocking: Collection[asyncio.Task[None]]) -> None:
        """Only wait: the hanger does it."""
        await asyncio.to_thread(self.pooler.wait_active, other_than=killed)


@dataclass(frozen=True, slots=True)
class Alone:
    """PgBouncer as it is; started anew soon, as a service manager would."""

    pooler: Bouncer

    def bouncer_pid(self) -> int:
        """The pgbouncer that serves now."""
        return self.pooler.pid

    async def recover(self, killed: int, knocking: Collection[asyncio.Task[None]]) -> None:
        """Start the next one, once the logins have found nobody."""
        if knocking:
            await asyncio.wait(knocking, timeout=_RESTART_S)
        await asyncio.to_thread(self.pooler.start)


@dataclass(frozen=True, slots=True)
class Result:
    """One side's kill: who was killed, who followed, and what each session saw."""

    killed: int
    successor: int
    recovered_s: float
    outcomes: tuple[Outcome, ...]

    @property
    def held(self) -> int:
        """How many sessions went on."""
        return sum(outcome.held for outcome in self.outcomes)

    @property
    def pause_s(self) -> float:
        """The longest pause that a session which went on has seen."""
        return max((outcome.pause_s for outcome in self.outcomes if outcome.held), default=0.0)


async def play(
    side: Side, cast: Sequence[type[Story]], number: signal.Signals = signal.SIGKILL
) -> Result:
    """Open a session for each story, kill pgbouncer under them, and see what became of each.

    `number` is the signal that it gets. Raises what a driver raises if a session cannot even begin.
    """
    stories = [story(side.pooler) for story in cast]
    try:
        for story in stories:
            await story.begin()
        moment = Moment()
        async with asyncio.TaskGroup() as group:
            watched = [group.create_task(story.watch(moment)) for story in stories]
            await asyncio.sleep(_BEFORE_S)

            killed = side.bouncer_pid()
            began = time.perf_counter()
            send(killed, number)
            moment.struck.set()
            knocking = [task for story in stories if (task := story.knock()) is not None]
            await side.recover(killed, knocking)
            recovered_s = time.perf_counter() - began

            await asyncio.sleep(_AFTER_S)
            moment.over.set()
        outcomes = tuple(task.result() for task in watched)
        return Result(killed, side.bouncer_pid(), recovered_s, outcomes)
    finally:
        for story in stories:
            await story.leave()
