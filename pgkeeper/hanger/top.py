"""What `pgkeeper top` asks for: the first sessions in some order, of thousands, all the time.

A few fields of all slots are read for the order; only what is shown is read whole.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pgkeeper.control.report import Top, TopRow, token_name
from pgkeeper.errors import PgkeeperError
from pgkeeper.hanger.accounts import of_row, without_slot
from pgkeeper.hanger.vault import SERVER_BIT, is_server
from pgkeeper.ledger import reader
from pgkeeper.ledger.scan import Scan
from pgkeeper.ledger.tally import PoolNames
from pgkeeper.states import ProcessState
from protocol.control import Kill
from protocol.ledger import Kind, SocketState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pgkeeper.control.report import Session, TopQuery
    from pgkeeper.hanger.census import Census
    from pgkeeper.hanger.holdings import Holdings

__all__ = ["LIMIT", "CannotKillError", "kill", "top"]

#: Rows of one answer, at most.
LIMIT: Final = 200
#: Seconds of work in one go, and rows that are read whole in about as much.
_BUDGET: Final = 0.002
_ROWS: Final = 25
_USEC: Final = 1_000_000

_SCAN: Final = Scan(
    *("kind", "state", "link", "query_start", "xact_start", "wait_start", "token", "pool")
)
_SOCKETS: Final = frozenset({Kind.CLIENT, Kind.SERVER, Kind.CLOSING})
_WAITING: Final = frozenset({SocketState.CL_WAITING, SocketState.CL_WAITING_LOGIN})


class CannotKillError(PgkeeperError):
    """The client `name` cannot be ended; `reason` says why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"cannot end {name}: {reason}")


@dataclass(slots=True)
class _Brief:
    """What a session is put in its place by.

    `rank`: 0 runs, 1 waits, 2 in a transaction, 3 rests; `since`: microseconds since 1970, 0: at
    rest.  `slot` is 0 where the ledger has nothing about it, but `session` is there then.
    """

    token: int
    slot: int = 0
    rank: int = 3
    since: int = 0
    database: str = ""
    user: str = ""
    state: str = ""
    address: str = ""
    survived: int = 0
    session: Session | None = None


_ORDERS: Final[Mapping[str, Callable[[_Brief], Any]]] = {
    "activity": lambda one: (one.rank, one.since, one.token),
    "user": lambda one: (one.user, one.database, one.token),
    "database": lambda one: (one.database, one.user, one.token),
    "address": lambda one: (one.address, one.token),
    "age": lambda one: (not one.since, one.since, one.token),
    "survived": lambda one: (-one.survived, one.token),
    "token": lambda one: one.token,
}


async def top(holdings: Holdings, census: Census, query: TopQuery) -> Top:
    """The answer to `query`; the event loop turns meanwhile."""
    total, found = await _survey(holdings, census, query)
    offset, limit = max(query.offset, 0), min(max(query.limit, 0), LIMIT)
    choose = heapq.nlargest if query.reverse else heapq.nsmallest
    shown = choose(offset + limit, found, key=_ORDERS[query.order])[offset:]
    rows: list[TopRow] = []
    for number, brief in enumerate(shown):
        if number % _ROWS == _ROWS - 1:
            await asyncio.sleep(0)
        row = _row(holdings, brief)
        if row is not None:
            rows.append(row)
    return Top(total, len(found), rows)


async def _survey(holdings: Holdings, census: Census, query: TopQuery) -> tuple[int, list[_Brief]]:
    """How many sessions there are, and those that match."""
    total, found, seen = 0, [], set()
    words = query.match.lower().split()
    segment = holdings.segment
    until = time.perf_counter() + _BUDGET
    if segment is not None:
        view = segment.view()
        names = PoolNames(view)
        for batch in _SCAN.batches(view):
            for slot, (_, kind, state, link, began, xact, waits, token, pool) in batch:
                if kind not in _SOCKETS:
                    continue
                seen.add(token)
                if not _wanted(token, query):
                    continue
                total += 1
                brief = _Brief(token, slot, *_activity(state, link, began, xact, waits))
                brief.database, brief.user = names[pool].database, names[pool].user
                brief.state = _state(kind, state)
                _complete(brief, holdings)
                if _matches(brief, words):
                    found.append(brief)
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + _BUDGET
                if holdings.segment is not segment:
                    break  # given back: all sessions have ended
    for session in without_slot(holdings, census, seen):
        if _wanted(session.token, query):
            total += 1
            brief = _Brief(session.token, state=session.state, session=session)
            _complete(brief, holdings)
            if _matches(brief, words):
                found.append(brief)
    return total, found


def _wanted(token: int, query: TopQuery) -> bool:
    return query.side == "all" or is_server(token) == (query.side == "server")


def _activity(state: int, link: int, began: int, xact: int, waits: int) -> tuple[int, int]:
    if state in _WAITING:
        return 1, waits
    if began:
        return 0, began
    if xact and link:
        return 2, xact
    return 3, 0


def _state(kind: int, state: int) -> str:
    if kind == Kind.CLOSING:
        return "closing"
    try:
        return reader.SHOW_STATES[SocketState(state)]
    except ValueError:
        return "damaged"


def _complete(brief: _Brief, holdings: Holdings) -> None:
    """What the hanger knows of it."""
    brief.address = holdings.vault.peer(brief.token) or ""
    held = holdings.vault.get(brief.token)
    if held is not None:
        brief.survived = max(holdings.incarnation - held.born, 0)


def _matches(brief: _Brief, words: list[str]) -> bool:
    if not words:
        return True
    fields = (brief.user, brief.database, brief.address, brief.state, token_name(brief.token))
    text = "\n".join(fields).lower()
    return all(word in text for word in words)


def _row(holdings: Holdings, brief: _Brief) -> TopRow | None:
    """Read it whole; None if it has gone meanwhile."""
    session = brief.session
    now = time.time_ns() // 1000
    if session is None:
        if holdings.segment is None:
            return None
        row = reader.session(holdings.segment.view(), brief.slot, now)
        if row is None or row.token != brief.token:
            return None
        session = of_row(row, held=holdings.vault.get(row.token) is not None)
    age = max(now - brief.since, 0) / _USEC if brief.since else None
    return TopRow(session, brief.address or None, brief.survived, age)


def kill(holdings: Holdings, census: Census, name: str) -> str:
    """Have pgbouncer end the client of that token's name, with an error where it can be told.

    Returns the name.  Raises `CannotKillError`.
    """
    digits = name[1:]
    if not name.startswith("c") or not (digits.isascii() and digits.isdigit()):
        raise CannotKillError(ascii(name[:40]), "not the token of a client")
    token = int(digits) if len(digits) < len(str(SERVER_BIT)) else SERVER_BIT
    if token in holdings.vault.unheld_tokens():
        reason = "it is not held: KILL_CLIENT on pgbouncer's console does it"
        raise CannotKillError(name, reason)
    if holdings.vault.get(token) is None:
        raise CannotKillError(name, "there is no such client")
    owner = census.owner
    if owner is None or owner.link is None or owner.state is not ProcessState.ACTIVE:
        raise CannotKillError(name, "no pgbouncer serves at the moment")
    owner.link.send(Kill((token,)))
    return name
