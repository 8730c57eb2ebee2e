"""Clients that may not log in at the moment: answered here, so that pgbouncer never sees them.

A cancel request is no login and belongs to a session that is held: it is passed on.  Who asks for
encryption first is told that there is none, because only then does he read our reason.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Final

from protocol import fatal_error
from protocol.startup import CancelRequest, GSSENCRequest, SSLRequest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Refusals"]

#: Seconds that a client has to say what it wants.
_PATIENCE: Final = 5.0
#: So many at once are listened to; others are closed without a word.
_AT_ONCE: Final = 256
#: Bytes of a StartupMessage that are thrown away in one go, so that close() sends no RST.
_UNREAD: Final = 1 << 16
#: PgBouncer and PostgreSQL alike: length and code.
_HEAD: Final = struct.Struct("!ii")
_ENCRYPTION: Final = (SSLRequest.CODE, GSSENCRequest.CODE)


class Refusals:
    """Those who wait for their answer.

    `count`: how many were refused.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.count = 0
        self._loop = loop
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}

    def refuse(self, fd: int, error: tuple[str, str], pass_on: Callable[[int], None]) -> None:
        """Answer a new client with `error` (SQLSTATE, text) and close it; `fd` is ours.

        One that only wants to cancel goes to `pass_on`, whose the descriptor is then.
        """
        connection = socket.socket(fileno=fd)
        if len(self._waiting) >= _AT_ONCE:
            self.count += 1
            connection.close()
            return
        self._waiting[connection] = self._loop.call_later(_PATIENCE, self._close, connection)
        self._loop.add_reader(connection, self._hear, connection, error, pass_on)

    def close(self) -> None:
        """Close all of them."""
        for connection in tuple(self._waiting):
            self._close(connection)

    def _hear(
        self, connection: socket.socket, error: tuple[str, str], pass_on: Callable[[int], None]
    ) -> None:
        try:
            head = connection.recv(_HEAD.size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            head = b""
        code = _HEAD.unpack(head)[1] if len(head) == _HEAD.size else None
        if code == CancelRequest.CODE:
            self._forget(connection)
            pass_on(connection.detach())
            return
        if code in _ENCRYPTION:
            with contextlib.suppress(OSError):
                connection.recv(_HEAD.size, socket.MSG_DONTWAIT)
                connection.send(b"N", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return
        self.count += 1
        if head:
            with contextlib.suppress(OSError):
                connection.recv(_UNREAD, socket.MSG_DONTWAIT)
                flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                connection.send(fatal_error(*error), flags)
                connection.shutdown(socket.SHUT_WR)
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._forget(connection)
        connection.close()

    def _forget(self, connection: socket.socket) -> None:
        self._loop.remove_reader(connection)
        self._waiting.pop(connection).cancel()
