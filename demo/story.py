"""What every session of the demo has in common, and how one is watched over the kill."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import asyncpg  # type: ignore[import-untyped]
import psycopg

if TYPE_CHECKING:
    from testbed import Pooler

# Between two steps of a session: often enough to see a pause of milliseconds.
_STEP_S = 0.004
# A session that does not come back at all must not stop the demo.
_PATIENCE_S = 30.0


class BrokenError(Exception):
    """The session went on, but something it had is not as it was."""


# All that a driver raises when its session is lost or refused, and our own verdict.
LOST = (
    BrokenError,
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresError,
    psycopg.Error,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one session; `pause_s` is the longest wait it saw, `reason` why it is lost."""

    title: str
    driver: str
    database: str
    held: bool
    pause_s: float
    reason: str = ""


@dataclass(slots=True)
class Moment:
    """The kill as the sessions see it: `struck` when the signal was sent, `over` a while after."""

    struck: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Story(abc.ABC):
    """One session: what it has before the kill, what it does meanwhile, what must hold after."""

    title: ClassVar[str]
    driver: ClassVar[str]
    database: ClassVar[str]

    def __init__(self, pooler: Pooler) -> None:
        self.pooler = pooler
        self.pause_s = 0.0
        # Everything opened is pushed here and left in reverse order at the end.
        self.stack = contextlib.AsyncExitStack()

    @abc.abstractmethod
    async def begin(self) -> None:
        """Log in and set the scene. Fails only if the demo cannot run at all."""

    @abc.abstractmethod
    async def step(self) -> None:
        """One small piece of work, again and again over the kill."""

    @abc.abstractmethod
    async def prove(self) -> None:
        """Look at everything after the kill. Raises `BrokenError`, or what the driver raises."""

    def knock(self) -> asyncio.Task[None] | None:
        """What must begin while no pgbouncer runs; called right after the kill, most do nothing."""
        return None

    async def watch(self, moment: Moment) -> Outcome:
        """Live through the kill, with every wait measured."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._live(moment)
                await self.prove()
        except LOST as error:
            return self._outcome(_reason(error))
        return self._outcome("")

    async def leave(self) -> None:
        """Close all that was opened; a lost session cannot be left in order, nor need it be."""
        with contextlib.suppress(*LOST):
            await self.stack.aclose()

    async def _live(self, moment: Moment) -> None:
        while not moment.over.is_set():
            began = time.perf_counter()
            await self.step()
            if moment.struck.is_set():
                self.pause_s = max(self.pause_s, time.perf_counter() - began)
            await asyncio.sleep(_STEP_S)

    def _outcome(self, reason: str) -> Outcome:
        return Outcome(
            self.title, self.driver, self.database, not reason, self.pause_s, reason=reason
        )


def expect(condition: bool, otherwise: str) -> None:
    """Raise `BrokenError(otherwise)` unless the condition holds."""
    if not condition:
        raise BrokenError(otherwise)


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    lines = str(error).strip().splitlines()
    # Drivers name the call and the address before what happened: the last clause is the news.
    return lines[0].rpartition(": ")[2] if lines else type(error).__name__
