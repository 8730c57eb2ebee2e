"""The connection between two hangers: datagrams with descriptors, waited for up to a deadline."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final, TypeVar

from pgkeeper.errors import PgkeeperError
from pgkeeper.takeover.messages import (
    BATCH,
    SIZE,
    Message,
    Refusal,
    TakeoverProtocolError,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Channel", "ChannelLostError", "RefusedError"]

_INT: Final = array.array("i").itemsize
# One more than a message may have, so that too many are seen as such and not as MSG_CTRUNC.
_CONTROL: Final = socket.CMSG_SPACE((BATCH + 1) * _INT)
#: Seconds until descriptors under way are thought to have been taken.
_RETRY: Final = 0.002

_M = TypeVar("_M", bound=Message)


class ChannelLostError(PgkeeperError):
    """The other hanger has gone, or says nothing in time; `reason` says which."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the other hanger {reason}")


class RefusedError(PgkeeperError):
    """The other hanger refuses; its text is the message."""


class Channel:
    """Owns `connection` (SOCK_SEQPACKET); blocks up to `deadline`, of CLOCK_MONOTONIC."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = time.monotonic()

    def fileno(self) -> int:
        """The connection's descriptor, readable when a message is there or the end."""
        return self._connection.fileno()

    def give(self, seconds: float) -> None:
        """What follows may take so many seconds, all together."""
        self.deadline = time.monotonic() + seconds

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send one message with duplicates of `fds`.  Raises `ChannelLostError`."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        data = encode(message)
        while True:
            try:
                self._connection.sendmsg([data], rights, flags)
            except (BlockingIOError, InterruptedError):
                self._wait(select.POLLOUT)
            except OSError as error:
                if error.errno not in (errno.ETOOMANYREFS, errno.ENOBUFS):
                    raise ChannelLostError("is gone") from None
                # Counts as writable all the while, so only time can tell.
                if time.monotonic() > self.deadline:
                    raise ChannelLostError("does not read") from None
                time.sleep(_RETRY)
            else:
                return

    def receive(self, expected: type[_M], fds: int = 0) -> tuple[_M, tuple[int, ...]]:
        """The next message, which must be an `expected` one, and its descriptors.

        `fds` is how many must come, -1 for any number; they are the caller's.  Raises
        `ChannelLostError`, `RefusedError`, `TakeoverProtocolError`.
        """
        while True:
            try:
                flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                data, ancillary, got, _ = self._connection.recvmsg(SIZE + 1, _CONTROL, flags)
                break
            except (BlockingIOError, InterruptedError):
                self._wait(select.POLLIN)
            except OSError:
                raise ChannelLostError("is gone") from None
        arrived = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                arrived.frombytes(content[: len(content) - len(content) % _INT])
        try:
            return self._check(expected, data, got, tuple(arrived), fds), tuple(arrived)
        except PgkeeperError:
            for fd in arrived:
                os.close(fd)
            raise

    def close(self) -> None:
        """Hang up; a second time does nothing."""
        self._connection.close()

    def _check(
        self, expected: type[_M], data: bytes, got: int, arrived: tuple[int, ...], fds: int
    ) -> _M:
        if not data:
            raise ChannelLostError("has hung up")
        if got & socket.MSG_CTRUNC:
            raise TakeoverProtocolError("descriptors did not arrive (descriptor limit reached)")
        if got & socket.MSG_TRUNC or len(data) > SIZE:
            raise TakeoverProtocolError("a message longer than any can be")
        message = decode(data)
        if isinstance(message, Refusal):
            raise RefusedError(" ".join(message.text.split()))
        if not isinstance(message, expected):
            raise TakeoverProtocolError(f"{type(message).__name__}, not {expected.__name__}")
        if fds not in (-1, len(arrived)):
            raise TakeoverProtocolError(f"{expected.__name__} with {len(arrived)} descriptors")
        return message

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._connection, events)
        left = self.deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise ChannelLostError("does not read" if events == select.POLLOUT else "is silent")
