"""What the hanger counts, and how it tells it: the reports of the admin socket."""

from __future__ import annotations

import functools
import os
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from pgkeeper.control.report import (
    AdoptionStatus,
    BouncerStatus,
    Counts,
    CrashStatus,
    HandoffReport,
    HangerStatus,
    Session,
    SessionStatus,
    Status,
)
from pgkeeper.hanger.history import History
from pgkeeper.hanger.vault import is_server
from pgkeeper.ledger import reader
from pgkeeper.states import ProcessState, service_state
from protocol.control import Lost

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from pgkeeper.control.report import QuarantineStatus
    from pgkeeper.hanger.census import Census
    from pgkeeper.hanger.holdings import Holdings
    from pgkeeper.hanger.process import Process
    from pgkeeper.ledger.reader import SessionRow
    from protocol.control import Ready

__all__ = [
    "Accounts",
    "handoff_report",
    "list_sessions",
    "lost_by_reason",
    "of_row",
    "without_slot",
]


class Accounts:
    """Counts adoptions and builds `Status`; all times are of the event loop's clock, seconds."""

    def __init__(self, now: float) -> None:
        self._started = now
        self._ready_once = False
        self._vacant_since: float | None = None
        self._count = 0
        self._last_pause: float | None = None
        self._sessions_lost = 0
        self._hangs = 0
        self.history = History()

    def counts(self) -> Counts:
        """What another hanger needs to go on counting."""
        return Counts(
            self._count,
            self._last_pause,
            self._sessions_lost,
            self._ready_once,
            self._vacant_since,
            self._hangs,
            self.history.record(),
        )

    def inherit(self, counts: Counts) -> None:
        """Go on counting where another hanger was."""
        self._count = counts.count
        self._last_pause = counts.last_pause
        self._sessions_lost = counts.sessions_lost
        self._ready_once = counts.ready_once
        self._vacant_since = counts.vacant_since
        self._hangs = counts.hangs
        self.history.inherit(counts.record)

    def vacant(self, now: float) -> None:
        """The one that served is dead."""
        self._vacant_since = now

    def hung(self) -> None:
        """The one that serves was found hanging."""
        self._hangs += 1

    def vacancy(self, now: float) -> float:
        """For how long nobody has served; 0 before anybody did."""
        return 0.0 if self._vacant_since is None else now - self._vacant_since

    @property
    def last_pause_ms(self) -> float:
        """How long nobody served at the last adoption, milliseconds."""
        return 0.0 if self._last_pause is None else round(self._last_pause * 1000, 3)

    def ready(self, now: float, ready: Ready) -> None:
        """Somebody serves.  All but the first of this hanger count as adoptions."""
        if self._ready_once:
            self._count += 1
            self._last_pause = self.vacancy(now)
            self._sessions_lost += sum(ready.lost)
            self.history.taken_over(self._last_pause)
            self.history.lost(lost_by_reason(ready))
        self._ready_once = True
        self._vacant_since = None

    def status(
        self,
        now: float,
        census: Census,
        holdings: Holdings,
        *,
        crash_looping: bool,
        quarantine: QuarantineStatus,
    ) -> Status:
        """How things are now."""
        owner = census.owner
        state = service_state((process.state for process in census), crash_looping=crash_looping)
        serving = owner or census.successor or census.starting
        standby = census.successor if owner is not None else None
        return Status(
            HangerStatus(os.getpid(), _version(), round(now - self._started, 3)),
            BouncerStatus(
                state,
                serving.pid if serving is not None else None,
                holdings.incarnation,
                standby.pid if standby is not None else None,
            ),
            SessionStatus(holdings.vault.clients, holdings.vault.servers, holdings.vault.unheld()),
            AdoptionStatus(
                self._count,
                self.last_pause_ms if self._count else None,
                self._sessions_lost,
            ),
            CrashStatus(self._hangs, quarantine),
        )


@functools.cache
def _version() -> str:
    """Ours; the metadata lie in files, so they are read once."""
    try:
        return version("pgkeeper")
    except PackageNotFoundError:
        return "not installed"


def lost_by_reason(ready: Ready) -> dict[str, int]:
    """The clients that an adoption lost, by reason: {"in-flight": 2}."""
    names = (reason.name.lower().replace("_", "-") for reason in Lost)
    return {name: count for name, count in zip(names, ready.lost, strict=True) if count}


def handoff_report(process: Process, ready: Ready, pause_ms: float) -> HandoffReport:
    """What a handoff that succeeded reports of the one that serves now."""
    return HandoffReport(
        pid=process.pid,
        incarnation=process.incarnation,
        clients=ready.clients,
        servers=ready.servers,
        lost=lost_by_reason(ready),
        pause_ms=pause_ms,
    )


def list_sessions(holdings: Holdings, census: Census) -> Iterator[Session]:
    """Every session, clients first: of the ledger, of the vault, and those served unheld.

    Others may change both between two rows; a ledger that is given back ends its part.
    """
    seen: set[int] = set()
    servers: list[Session] = []
    for row in _rows(holdings):
        seen.add(row.token)
        session = of_row(row, held=holdings.vault.get(row.token) is not None)
        if session.kind == "client":
            yield session
        else:
            servers.append(session)
    for session in without_slot(holdings, census, seen):
        if session.kind == "client":
            yield session
        else:
            servers.append(session)
    yield from servers


def without_slot(holdings: Holdings, census: Census, seen: Container[int]) -> Iterator[Session]:
    """Those of which the ledger says nothing, `seen` having the tokens of which it does."""
    owner = census.owner
    serving = owner is not None and owner.state is not ProcessState.FENCED
    fresh = "new, not looked at yet" if serving else "new, waits for a pgbouncer"
    for held in tuple(holdings.vault.held()):
        if held.token not in seen:
            yield _plain(held.token, "login", None, fresh)
    for token, reason in holdings.vault.unheld_tokens().items():
        if token not in seen:
            yield _plain(token, "unheld", reason, "served by pgbouncer alone")


def _rows(holdings: Holdings) -> Iterator[SessionRow]:
    segment = holdings.segment
    if segment is None:
        return
    rows = reader.sessions(segment.view(), time.time_ns() // 1000)
    while segment is holdings.segment:
        row = next(rows, None)
        if row is None:
            return
        yield row


def of_row(row: SessionRow, *, held: bool) -> Session:
    """What is reported of a socket that the ledger has; `held`: the vault has it too."""
    reason = row.reason
    if reason is None and not held:
        reason = "closing" if row.state == "closing" else "not registered"
    return Session(
        token=row.token,
        kind=row.kind,
        user=row.user,
        database=row.database,
        state=row.state,
        held=row.held and held,
        reason=reason,
        doing=row.doing,
        linked=row.linked,
    )


def _plain(token: int, state: str, reason: str | None, doing: str) -> Session:
    return Session(
        token=token,
        kind="server" if is_server(token) else "client",
        user=None,
        database=None,
        state=state,
        held=reason is None,
        reason=reason,
        doing=doing,
        linked=None,
    )
