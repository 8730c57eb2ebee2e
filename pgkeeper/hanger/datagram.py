"""Datagrams with descriptors: one sendmsg or recvmsg, nothing blocks, no descriptor is lost.

Kernel facts: unix(7); net/core/scm.c: a message carries 253 descriptors at most; those that find
no free descriptor number, or no room in the control buffer, are dropped and MSG_CTRUNC is set, and
those that arrived are the first ones of the message.
"""

from __future__ import annotations

import array
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from protocol.control import BATCH, MESSAGE_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Datagram", "close_all", "receive", "send"]

_INT: Final = array.array("i").itemsize
# One more than a message may have, so that too many are seen as such and not as MSG_CTRUNC.
_CONTROL: Final = socket.CMSG_SPACE((BATCH + 1) * _INT)
# Plain numbers, put together once: those of `socket` are enumerations, whose operators are Python
# and take as long as the system call.
_SENDING: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVING: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_TRUNC)
_RIGHTS_CUT: Final = int(socket.MSG_CTRUNC)
_LEVEL: Final = int(socket.SOL_SOCKET)
_RIGHTS: Final = int(socket.SCM_RIGHTS)


@dataclass(frozen=True, slots=True)
class Datagram:
    """One received message; whoever gets it owns `fds`, which have CLOEXEC set.

    `cut` says that bytes, `fds_cut` that descriptors did not arrive.
    """

    data: bytes
    fds: tuple[int, ...]
    cut: bool
    fds_cut: bool

    @property
    def ended(self) -> bool:
        """The peer has closed the connection; empty messages do not exist."""
        return not self.data and not self.fds


def receive(connection: socket.socket) -> Datagram:
    """Take one message.  Raises BlockingIOError if there is none, OSError as recvmsg(2) does."""
    data, ancillary, got, _ = connection.recvmsg(MESSAGE_MAX + 1, _CONTROL, _RECEIVING)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == _LEVEL and kind == _RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % _INT])
    return Datagram(
        data,
        tuple(fds),
        cut=bool(got & _CUT),
        fds_cut=bool(got & _RIGHTS_CUT),
    )


def send(connection: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message whole.

    Raises BlockingIOError if the peer's queue is full, OSError as sendmsg(2) does: ETOOMANYREFS if
    too many descriptors are under way, EPIPE or ECONNRESET if the peer is gone.
    """
    rights = [(_LEVEL, _RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([data], rights, _SENDING)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that arrived and that nobody wants."""
    for fd in fds:
        os.close(fd)
