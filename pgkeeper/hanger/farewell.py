"""Ending sessions that no pgbouncer carries: an error where it can be read, then the end.

An ErrorResponse is only sent where it cannot land inside another message: `at_message_boundary`
of the ledger, corrected by what the kernel says has left beyond the last commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pgkeeper.hanger.figures import bytes_written
from pgkeeper.hanger.vault import Held, is_server
from protocol import fatal_error
from protocol.ledger import LedgerDamaged, at_message_boundary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pgkeeper.hanger.vault import Vault
    from protocol.ledger import Copy, LedgerView

__all__ = ["ADMIN_SHUTDOWN", "HOLD_TIMEOUT", "Ended", "end_session", "end_sessions"]

#: SQLSTATE and text (appendix "PostgreSQL Error Codes": admin_shutdown, cannot_connect_now); the
#: former as patches/keeper/ends.c says it.
ADMIN_SHUTDOWN: Final = (
    "57P01",
    "terminating connection: pgbouncer and pgkeeper are shut down",
)
HOLD_TIMEOUT: Final = ("57P03", "pgbouncer has been gone for longer than hold_timeout")

_BURST: Final = 32  # sessions between two turns of the event loop
_UNREAD: Final = 1 << 16  # bytes of input that are thrown away in one go,
_UNREAD_TIMES: Final = 16  # and how often; one that sends faster gets RST in the end


@dataclass(frozen=True, slots=True)
class Ended:
    """How many clients got the error and how many were closed in the middle of a message."""

    told: int
    cut: int


async def end_sessions(vault: Vault, view: LedgerView | None, error: tuple[str, str]) -> Ended:
    """Send `error` (SQLSTATE, text) to every client now held, then close all sockets now held.

    Only to be called while no pgbouncer may touch them, and none may be activated until it is
    done.  `view` is their ledger; a client it does not know is new, and nothing was ever
    sent to it.
    Nothing blocks: a client whose socket takes no more is closed without a word.
    """
    message = fatal_error(*error)
    clients = [held for held in vault.held() if not is_server(held.token)]
    tokens = [held.token for held in vault.held()]
    slots = dict(_slots(view)) if view is not None else {}
    told = 0
    for number, held in enumerate(clients):
        if vault.get(held.token) is held:  # the number of a closed descriptor may be another's now
            told += _end(held, view, slots.get(held.token), message)
        if number % _BURST == _BURST - 1:
            await asyncio.sleep(0)
    for token in tokens:
        vault.release(token)
    return Ended(told, len(clients) - told)


def end_session(
    vault: Vault, view: LedgerView, slot: int | None, tokens: Iterable[int], error: tuple[str, str]
) -> bool:
    """Send `error` to the client among `tokens`, if any, and close the sockets of all of them.

    On the same conditions as `end_sessions`.  `slot` is that client's, None if the ledger does not
    know it.  Says whether the client could be told.
    """
    told = False
    for token in tokens:
        held = vault.get(token)
        if held is None:
            continue
        if is_server(token):
            _hang_up(held)
        else:
            told = _end(held, view, slot, fatal_error(*error))
        vault.release(token)
    return told


def _hang_up(held: Held) -> None:
    connection = socket.socket(fileno=held.fd)
    try:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    finally:
        connection.detach()


def _slots(view: LedgerView) -> Iterator[tuple[int, int]]:
    """Token and slot of every socket; a damaged slot gives none, and is passed over."""
    damaged: list[LedgerDamaged] = []
    for slot, copy in view.iter_slots(damaged):
        if copy.is_socket:
            yield copy.token, slot


def _end(held: Held, view: LedgerView | None, slot: int | None, message: bytes) -> bool:
    connection = socket.socket(fileno=held.fd)
    try:
        boundary = _is_new(view, held) if slot is None else _at_boundary(view, slot, connection)
        if not boundary:
            return False
        # Input that nobody has read would make the kernel answer close() with RST.
        with contextlib.suppress(OSError):
            for _ in range(_UNREAD_TIMES):
                if len(connection.recv(_UNREAD, socket.MSG_DONTWAIT)) < _UNREAD:
                    break
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        sent = connection.send(message, flags) == len(message)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    else:
        return sent
    finally:
        connection.detach()


def _is_new(view: LedgerView | None, held: Held) -> bool:
    """Whether pgbouncer has never seen this client, so that nothing was ever sent to it."""
    if view is None:
        return True
    try:
        return held.token > view.act().watermark
    except LedgerDamaged:
        return False


def _at_boundary(view: LedgerView | None, slot: int, connection: socket.socket) -> bool:
    assert view is not None  # noqa: S101 - slots come from it
    try:
        copy = view.committed_copy(slot)
        sent = None if copy is None else _beyond(view, slot, copy, connection)
    except LedgerDamaged:
        return False
    return sent is not None and at_message_boundary(view, slot, sent)


def _beyond(view: LedgerView, slot: int, copy: Copy, connection: socket.socket) -> int | None:
    """Bytes written since the last commit; None where it cannot be told."""
    figures = view.figures(slot)
    if connection.family == socket.AF_UNIX:
        return None if figures.unix_busy else figures.unix_tx - copy.tx
    return bytes_written(connection) - figures.base_tx - copy.tx
