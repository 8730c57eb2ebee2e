"""Asks the hanger for the figures of a scrape, and leaves it its turn meanwhile."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgkeeper.hanger.vault import is_server
from pgkeeper.ledger.tally import Pool, Tally, count
from pgkeeper.metrics.exposition import expose
from pgkeeper.metrics.figures import Figures, Fill, Own
from pgkeeper.states import ServiceState
from protocol.ledger import UNIT

if TYPE_CHECKING:
    from pgkeeper.control.report import Status
    from pgkeeper.hanger.holdings import Holdings
    from pgkeeper.hanger.service import Service

__all__ = ["Gatherer"]

#: Seconds of work in one go.
_BUDGET: Final = 0.002
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Gatherer:
    """Of one hanger.  Its methods raise `PgkeeperError` once it has been replaced."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = _start_time()

    def health(self) -> tuple[bool, str]:
        """Whether a pgbouncer serves, and a line about it."""
        status = self._service.status()
        state = status.pgbouncer.state
        if state is ServiceState.ACTIVE:
            return True, "active"
        return False, f"{state.value}: no pgbouncer serves{self._since(status)}"

    def _since(self, status: Status) -> str:
        seconds = self._service.vacancy
        held = status.sessions.clients_held
        return f" since {seconds:.1f} s, {held} clients are held" if seconds else ""

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """`metrics.server.Source`: all that there is, as text."""
        return expose(await self.figures(), accept)

    async def figures(self) -> Figures:
        """All that there is."""
        supervisor = self._service.supervisor
        holdings, settings = supervisor.holdings, supervisor.settings
        sessions = await _sessions(holdings)
        status = self._service.status()
        return Figures(
            status=status,
            record=supervisor.accounts.history.record(),
            sessions=sessions,
            vacancy=self._service.vacancy,
            standby_wanted=settings.standby and settings.supervise,
            hold_timeout=settings.hold_timeout,
            own=Own(self._started, time.process_time(), _resident()),
            fill=_fill(holdings),
            unheld=dict(sessions.unheld + Counter(status.sessions.unheld)),
        )


async def _sessions(holdings: Holdings) -> Tally:
    tally = Tally()
    segment = holdings.segment
    if segment is not None:
        for _ in count(segment.view(), holdings.vault.tokens, tally, _BUDGET):
            await asyncio.sleep(0)
            if holdings.segment is not segment:
                break  # given back: all sessions have ended
    # They have come since, or no pgbouncer has looked at them yet.
    for token in holdings.vault.tokens - tally.tokens:
        (tally.servers if is_server(token) else tally.clients)[Pool()] += 1
    return tally


def _fill(holdings: Holdings) -> Fill | None:
    if holdings.segment is None:
        return None
    header = holdings.segment.view().header
    return Fill(
        format=holdings.format,
        bytes=holdings.segment.size,
        slots=header.slots,
        slots_used=header.used_slots,
        iobufs=header.iobufs,
        iobufs_used=header.used_iobufs,
        heap=header.units * UNIT,
        heap_used=header.used_units * UNIT,
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE


def _start_time() -> float:
    """When this process started, in seconds since 1970: proc(5), `starttime`."""
    stat = Path("/proc/self/stat").read_text("utf-8", errors="replace")
    ticks = int(stat.rpartition(")")[2].split()[19])
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - now + ticks / os.sysconf("SC_CLK_TCK")
