"""Duplicates of what the hanger holds, with the service manager: sd_notify(3), FDSTORE=1.

What the manager keeps outlives hanger and pgbouncer together; the next hanger is started with it
(sd_listen_fds(3)).  All descriptors of a message share one name, and a name is all by which one can
be taken back, so each socket has a message of its own.  Nothing here blocks, but for `flush`.

FDPOLL=0: or the manager would let go of a socket whose peer has gone, which is pgbouncer's to see.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import re
import select
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from pgkeeper.hanger.events import HangerEvent
from pgkeeper.log import get_logger
from pgkeeper.systemd import manager_address

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Mapping

__all__ = [
    "LEDGER",
    "FdStore",
    "is_listener",
    "listener_name",
    "owner_incarnation",
    "owner_name",
    "parse_socket",
    "socket_name",
]

log = get_logger()

#: What the manager says it keeps (FileDescriptorStoreMax=), since systemd 254; else by the unit.
_LIMIT_ENVIRONMENT: Final = "FDSTORE"
#: Of these so many are for ledger, listeners and pgbouncer.
_RESERVE: Final = 32
#: Seconds until a manager that does not take a message at all is tried again.
_RETRY: Final = 0.2
#: Messages sent in one go before other events of the loop get their turn.
_BURST: Final = 256

LEDGER: Final = "pgkeeper-ledger"
_SERVER: Final = 1 << 63
_SOCKET: Final = re.compile(r"pgkeeper-(client|server)-([0-9]{1,19})-(tcp|unix)")
_OWNER: Final = re.compile(r"pgkeeper-owner-([0-9]{1,19})")
_LISTENER: Final = "pgkeeper-listener-"


def socket_name(token: int, *, unix: bool) -> str:
    """The name of a held socket: all that a next hanger has to know of it."""
    kind = "server" if token & _SERVER else "client"
    return f"pgkeeper-{kind}-{token & ~_SERVER}-{'unix' if unix else 'tcp'}"


def parse_socket(name: str) -> tuple[int, bool] | None:
    """Token, and whether it is a Unix-domain socket; None if `name` is no held socket's."""
    match = _SOCKET.fullmatch(name)
    if match is None:
        return None
    kind, number, family = match.groups()
    token = int(number)
    if not 0 < token < _SERVER:
        return None
    return token | (_SERVER if kind == "server" else 0), family == "unix"


def listener_name(number: int) -> str:
    """The name of a listening socket."""
    return f"{_LISTENER}{number}"


def is_listener(name: str) -> bool:
    """Whether `name` is a listening socket's."""
    return name.startswith(_LISTENER)


def owner_name(incarnation: int) -> str:
    """The name of the pidfd of that incarnation."""
    return f"pgkeeper-owner-{incarnation}"


def owner_incarnation(name: str) -> int | None:
    """The incarnation whose pidfd has this name."""
    match = _OWNER.fullmatch(name)
    return None if match is None else int(match[1])


@dataclass(slots=True)
class _Message:
    """Put `fd` under `name`, or take the name back (None)."""

    name: str
    fd: int | None


class FdStore:
    """Follows what is held, in the order in which it changed; `limit` is what the manager keeps."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str, limit: int) -> None:
        self._loop = loop
        self._address = address
        self._limit = limit
        self._names: set[str] = set()
        self._left_out: dict[str, int] = {}
        self._told_full = False
        self._queue: deque[_Message] = deque()
        self._waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        with contextlib.suppress(OSError):
            self._socket.connect(address)

    @classmethod
    def offered(
        cls, loop: asyncio.AbstractEventLoop, environ: Mapping[str, str] = os.environ
    ) -> Self | None:
        """The store of our service manager; None if there is none, and nothing will be kept."""
        address = manager_address(environ)
        limit = environ.get(_LIMIT_ENVIRONMENT, "")
        if address is None or not limit.isascii() or not limit.isdigit() or not int(limit):
            return None
        return cls(loop, address, int(limit))

    @property
    def queued(self) -> int:
        """How many messages the manager has not taken yet."""
        return len(self._queue)

    @property
    def left_out(self) -> int:
        """How many sockets it has no room for."""
        return len(self._left_out)

    def know(self, names: Collection[str]) -> None:
        """It has these already."""
        self._names.update(names)

    def keep_only(self, names: Collection[str]) -> None:
        """Take back whatever it has beside these."""
        for name in self._names - set(names):
            self.drop(name)

    def put(self, name: str, fd: int, *, urgent: bool = False) -> None:
        """Give it a duplicate of `fd`, which is still the caller's, to be closed after `drop`.

        `urgent`: before all that waits, and even if it is full.
        """
        if name in self._names:
            return
        if not urgent and len(self._names) >= self._limit - _RESERVE:
            self._left_out[name] = fd
            if not self._told_full:
                self._told_full = True
                log.warning(HangerEvent.FD_STORE_FULL, limit=self._limit)
            return
        self._names.add(name)
        message = _Message(name, fd)
        if urgent and all(waiting.name != name for waiting in self._queue):
            self._queue.appendleft(message)
        else:
            self._queue.append(message)
        self._go_on()

    def drop(self, name: str) -> None:
        """Take it back: its descriptor is about to be closed."""
        if self._left_out.pop(name, None) is not None or name not in self._names:
            return
        self._names.discard(name)
        for message in self._queue:
            if message.name == name and message.fd is not None:
                self._queue.remove(message)  # the manager never had it
                break
        else:
            self._queue.append(_Message(name, None))
            self._go_on()
        if self._left_out and len(self._names) < self._limit - _RESERVE:
            self.put(*self._left_out.popitem())

    def flush(self, seconds: float) -> None:
        """Send what waits; blocks up to so many seconds."""
        end = time.monotonic() + seconds
        while self._queue and (left := end - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            poll.poll(min(left, _RETRY) * 1000)
            self._send()

    def close(self) -> None:
        """Say nothing more.  What it has stays with it."""
        self._stop_waiting()
        if self._timer is not None:
            self._timer.cancel()
        self._queue.clear()
        self._socket.close()

    def _go_on(self) -> None:
        if not self._waiting and self._timer is None:
            self._send()

    def _send(self) -> None:
        self._timer = None
        for _ in range(_BURST):
            if not self._queue:
                self._stop_waiting()
                return
            try:
                self._send_one(self._queue[0])
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._stop_waiting()
                if error.errno not in (errno.ETOOMANYREFS, errno.ENOBUFS):
                    # It restarts: its socket is another one soon.
                    with contextlib.suppress(OSError):
                        self._socket.connect(self._address)
                self._timer = self._loop.call_later(_RETRY, self._send)
                return
            self._queue.popleft()
        if not self._waiting:
            self._waiting = True
            self._loop.add_writer(self._socket, self._send)

    def _send_one(self, message: _Message) -> None:
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        if message.fd is None:
            text = f"FDSTOREREMOVE=1\nFDNAME={message.name}"
            self._socket.sendmsg([text.encode("ascii")], [], flags)
        else:
            text = f"FDSTORE=1\nFDPOLL=0\nFDNAME={message.name}"
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [message.fd]))
            self._socket.sendmsg([text.encode("ascii")], [rights], flags)

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._socket)
