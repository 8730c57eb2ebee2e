"""What a ledger tells about its sessions, for `pgkeeper sessions` and for the hanger.

State names are those that PgBouncer's SHOW CLIENTS and SHOW SERVERS print (admin.c).  Nothing here
shows the text of a query, a name of a prepared statement or a cancel key.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from protocol.errors import ProtocolError
from protocol.framing import FrameReader
from protocol.ledger import (
    Copy,
    Flag,
    Kind,
    LedgerDamaged,
    LedgerView,
    PoolRecord,
    SocketRecord,
    SocketState,
    at_message_boundary,
)
from protocol.ledger_layouts import COPY, SLOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SHOW_STATES", "SessionRow", "at_message_boundary", "session", "sessions"]

SHOW_STATES: Final[Mapping[SocketState, str]] = MappingProxyType(
    {
        SocketState.CL_FREE: "closing",
        SocketState.CL_JUSTFREE: "closing",
        SocketState.CL_LOGIN: "login",
        SocketState.CL_WAITING: "waiting",
        SocketState.CL_WAITING_LOGIN: "waiting",
        SocketState.CL_ACTIVE: "active",
        SocketState.CL_WAITING_CANCEL: "waiting_cancel_req",
        SocketState.CL_ACTIVE_CANCEL: "active_cancel_req",
        SocketState.SV_FREE: "closing",
        SocketState.SV_JUSTFREE: "closing",
        SocketState.SV_LOGIN: "new",
        SocketState.SV_BEING_CANCELED: "being_canceled",
        SocketState.SV_IDLE: "idle",
        SocketState.SV_ACTIVE: "active",
        SocketState.SV_ACTIVE_CANCEL: "active_cancel",
        SocketState.SV_USED: "used",
        SocketState.SV_TESTED: "tested",
    }
)
"""PgBouncer's word for each state; sockets that are about to be freed stand in no SHOW."""

_RETRIES: Final = 8
_AT_ONCE: Final = 256
#: The kinds of both copies of a slot.
_KIND: Final = COPY.field("kind").offset
_KINDS: Final = struct.Struct(f"={_KIND}xB{COPY.size - 1}xB{SLOT.size - COPY.size - _KIND - 1}x")
_USEC: Final = 1_000_000
_SERVER_TOKEN: Final = 1 << 63
_UNTYPED_STATES: Final = frozenset({SocketState.CL_LOGIN, SocketState.CL_WAITING_LOGIN})
_REASONS: Final = ((Flag.CONSOLE, "console"), (Flag.VOLATILE, "in-flight"))


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One client or server socket as the ledger has it.

    Attributes:
        slot: its number in the ledger.
        kind: which side of PgBouncer it is on.
        token: its name between hanger and pgbouncer; 0 where damage hides it.
        user: of the login; None while nobody has logged in.
        database: as the client named it; None while that is not known.
        state: PgBouncer's word for it, "closing", or "damaged".
        held: it would outlive pgbouncer if that died now.
        reason: why not, else None: "console", "in-flight" (holds bytes the ledger does not),
            "damaged".
        linked: token of the server or client it is linked to, or None.
        doing: what it is in the middle of, in a few words.
        outstanding: requests to which the server has not answered yet.
        message_type: type byte of a message of which only the beginning has been read, or None.
        message_left: bytes that are still to come of a message that is being forwarded or skipped.
        transaction_age: seconds since the transaction began, or None outside of one.
    """

    slot: int
    kind: Literal["client", "server"]
    token: int
    user: str | None
    database: str | None
    state: str
    held: bool
    reason: str | None
    linked: int | None
    doing: str
    outstanding: int = 0
    message_type: str | None = None
    message_left: int = 0
    transaction_age: float | None = None


def sessions(view: LedgerView, now: int) -> Iterator[SessionRow]:
    """Give a row for every client and server socket, in the order of their slots.

    `now` is the time of day in microseconds.  Raises nothing: a damaged slot has a row that says
    so.  The ledger may be written to meanwhile; each row is true for one moment.
    """
    for slot in _in_use(view):
        row = session(view, slot, now)
        if row is not None:
            yield row


def _in_use(view: LedgerView) -> Iterator[int]:
    """Leave out what is plainly free: most of a large ledger, and dear to be looked at closely."""
    for first in range(1, view.geometry.slots + 1, _AT_ONCE):
        kinds = _KINDS.iter_unpack(view.raw_slots(first, _AT_ONCE))
        yield from [slot for slot, both in enumerate(kinds, first) if any(both)]


def session(view: LedgerView, slot: int, now: int) -> SessionRow | None:
    """Give the row of one slot, None where no socket is; see `sessions`."""
    # Read again if the ledger moved on meanwhile: a blob may have been freed under us.
    copy: Copy | None = None
    for _ in range(_RETRIES):
        commit = view.commit
        try:
            copy = view.committed_copy(slot)
            if copy is None or not copy.is_socket:
                return None
            return _row(view, slot, copy, now)
        except LedgerDamaged:
            if view.commit == commit:
                break
    return _damaged_row(slot, copy)


def _damaged_row(slot: int, copy: Copy | None) -> SessionRow:
    token = copy.token if copy else 0
    return SessionRow(
        slot=slot,
        kind=_side(copy) if copy else "client",
        token=token,
        user=None,
        database=None,
        state="damaged",
        held=False,
        reason="damaged",
        linked=None,
        doing="nothing that can be told",
    )


def _side(copy: Copy) -> Literal["client", "server"]:
    """Tell the side; a closing socket is known by its token alone."""
    if copy.kind is Kind.CLOSING:
        return "server" if copy.token & _SERVER_TOKEN else "client"
    return "server" if copy.kind is Kind.SERVER else "client"


def _row(view: LedgerView, slot: int, copy: Copy, now: int) -> SessionRow:
    partner = view.committed_copy(copy.link) if copy.link else None
    reason = next((text for flag, text in _REASONS if copy.flags & flag), None)
    server = copy if copy.kind is Kind.SERVER else partner
    outstanding = len(view.requests(server, slot)) if server else 0
    began = copy.xact_start or (partner.xact_start if partner else 0)
    in_transaction = bool(began) or bool(server and server.flags & Flag.IDLE_TX)
    user, database = _names(view, slot, copy)
    message_type = _unfinished(view, copy)
    return SessionRow(
        slot=slot,
        kind=_side(copy),
        token=copy.token,
        user=user,
        database=database,
        state="closing" if copy.kind is Kind.CLOSING else SHOW_STATES[copy.state],
        held=reason is None,
        reason=reason,
        linked=partner.token if partner else None,
        doing=_doing(copy, outstanding, in_transaction, message_type),
        outstanding=outstanding,
        message_type=message_type,
        message_left=copy.pkt_remain,
        transaction_age=max(now - began, 0) / _USEC if began else None,
    )


def _names(view: LedgerView, slot: int, copy: Copy) -> tuple[str | None, str | None]:
    """Give user and database: of the pool where there is one, else as far as the login has come."""
    user: str | None = None
    database: str | None = None
    if copy.record and copy.kind is not Kind.CLOSING:
        record = view.record(copy, slot)
        if isinstance(record, SocketRecord):
            user, database = record.credentials, record.database
    if copy.pool:
        pool = view.committed_copy(copy.pool)
        if pool is not None and pool.kind is Kind.POOL:
            record = view.record(pool, copy.pool)
            if isinstance(record, PoolRecord) and not record.peer_id:
                user, database = user or record.user, record.database or database
    return user, database


def _unfinished(view: LedgerView, copy: Copy) -> str | None:
    """Find the type of a message that has been read in part and not been looked at yet.

    Only where the IOBuf holds its header: at the start of a packet, and not before the login, when
    packets have no type.
    """
    if copy.pkt_remain or copy.state in _UNTYPED_STATES or copy.kind is Kind.CLOSING:
        return None
    reader = FrameReader()
    unread = view.iobuf(copy, copy.io_parse, copy.io_recv)
    reader.feed(unread)
    try:
        for _ in reader:
            pass
    except ProtocolError:
        return None
    if not reader.buffered:
        return None
    letter = unread[-reader.buffered]
    return chr(letter) if chr(letter).isascii() and chr(letter).isalnum() else None


def _doing(copy: Copy, outstanding: int, in_transaction: bool, message_type: str | None) -> str:
    if copy.kind is Kind.CLOSING or copy.flags & Flag.DOOMED:
        text = "being disconnected"
    elif copy.state in _UNTYPED_STATES:
        text = "login"
    elif copy.state is SocketState.CL_WAITING:
        text = "waiting for a server"
    elif copy.flags & Flag.COPY_MODE:
        text = "in COPY"
    elif outstanding:
        requests = "request" if outstanding == 1 else "requests"
        text = f"in query ({outstanding} {requests} outstanding)"
    elif in_transaction:
        text = "in transaction"
    else:
        text = "idle"
    if copy.pkt_remain:
        return f"{text}, message in flight ({copy.pkt_remain} bytes to come)"
    if message_type:
        return f"{text}, message in flight (type {message_type})"
    return text
