"""Processes by descriptor: a pidfd names one process for ever, while its number may be reused.

Source: pidfd_open(2), pidfd_send_signal(2), unix(7) and, for SO_PEERPIDFD, Linux 6.5.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from typing import TYPE_CHECKING, Final

from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Pidfd", "ProcessInvisibleError", "peer_pidfd"]

#: include/uapi/asm-generic/socket.h; Python 3.11 has no name for it.
_SO_PEERPIDFD: Final = 77


class ProcessInvisibleError(PgkeeperError):
    """The process `pid` cannot be watched: it is in a PID namespace that is not ours."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        super().__init__(
            "the process cannot be watched from here: let pgbouncer and pgkeeper share a PID"
            " namespace, or use Linux 6.5"
        )


class Pidfd:
    """Owns one pidfd.  The process is alive until `ended` says otherwise."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(cls, pid: int) -> Pidfd:
        """For a process that cannot be reaped meanwhile: a child, or the peer of a connection.

        Raises ProcessLookupError if there is none, OSError as pidfd_open(2) does.
        """
        return cls(os.pidfd_open(pid))

    def fileno(self) -> int:
        """The descriptor, which polls as readable once the process has ended; -1 if closed."""
        return self._fd

    @property
    def ended(self) -> bool:
        """Whether the process has ended, all threads of it: its descriptors are closed."""
        return self.ends_within(0)

    def ends_within(self, ms: int) -> bool:
        """Whether it has ended, or does within so many milliseconds; blocks until then."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(ms))

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; False if the process has ended, or may not or cannot be signalled."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._fd, number)
            return True
        return False

    def close(self) -> None:
        """Close the descriptor; a second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Pidfd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def peer_pidfd(connection: socket.socket, pid: int) -> Pidfd:
    """The process that made `connection`, whose SO_PEERCRED says `pid` (0: not in our namespace).

    Raises `ProcessInvisibleError`, ProcessLookupError if it has ended and been reaped.
    """
    try:
        fd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # what kernels say that do not know the option
            raise ProcessLookupError(error.errno, "the peer has ended") from None
    else:
        os.set_inheritable(fd, False)
        return Pidfd(fd)
    if pid == 0:
        raise ProcessInvisibleError(pid)
    return Pidfd.open(pid)
