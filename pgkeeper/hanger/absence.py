"""The time in which nobody serves, and the end of the sessions when it has been too long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pgkeeper.hanger import farewell
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.log import get_logger
from pgkeeper.states import ProcessState

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeeper.hanger.census import Census
    from pgkeeper.hanger.holdings import Holdings
    from pgkeeper.hanger.process import Process
    from pgkeeper.hanger.settings import Settings

__all__ = ["Absence"]

log = get_logger()


class Absence:
    """Ends all sessions once nobody has served for `hold_timeout`.

    Not while somebody else is at it, who `may_end` knows of: then it waits as long again.
    `on_ended` is called when all sessions are over, `on_over` when a timeout has been dealt with.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        census: Census,
        holdings: Holdings,
        *,
        may_end: Callable[[], bool],
        on_ended: Callable[[], None],
        on_over: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._census = census
        self._holdings = holdings
        self._may_end = may_end
        self._on_ended = on_ended
        self._on_over = on_over
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def ending(self) -> bool:
        """Whether the sessions are being ended: nobody may be activated."""
        return self._ending is not None

    def begin(self) -> None:
        """Nobody serves from now on."""
        self.finish()
        if self._settings.hold_timeout:
            self._timer = self._loop.call_later(self._settings.hold_timeout, self._expired)

    def finish(self) -> None:
        """Somebody serves, or nobody waits for that any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def settle(self) -> None:
        """Wait until no sessions are being ended."""
        if self._ending is not None:
            await asyncio.wait([self._ending])

    async def end_sessions(self, error: tuple[str, str], event: HangerEvent) -> None:
        """Tell the clients and close everything that is held; nobody may be the owner."""
        segment = self._holdings.segment
        view = segment.view() if segment is not None else None
        ended = await farewell.end_sessions(self._holdings.vault, view, error)
        log.warning(event, told=ended.told, cut=ended.cut)
        self._on_ended()

    def _expired(self) -> None:
        self._timer = None
        owner = self._census.owner
        if owner is not None:
            owner.kill("hold_timeout")  # it hangs in its adoption
        if self._ending is None and self._may_end():
            self._ending = self._loop.create_task(self._end(owner))
        else:
            self.begin()

    async def _end(self, owner: Process | None) -> None:
        try:
            if owner is not None and not await owner.reach(
                ProcessState.DEAD, within=self._settings.patience.death
            ):
                return
            if self._holdings.vault:
                await self.end_sessions(farewell.HOLD_TIMEOUT, HangerEvent.HOLD_TIMEOUT)
        finally:
            self._ending = None
            self._on_over()
