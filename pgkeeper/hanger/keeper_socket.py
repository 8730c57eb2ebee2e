"""The socket at keeper_socket, where every pgbouncer introduces itself."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer.pidfd import Pidfd, ProcessInvisibleError, peer_pidfd
from pgkeeper.control.access import Peer, peer_of, set_access
from pgkeeper.errors import PgkeeperError
from pgkeeper.hanger.binding import bind_path
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.log import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

__all__ = ["KeeperSocket", "KeeperSocketError"]

log = get_logger()

_BACKLOG: Final = 64
_PATH_MAX: Final = 107  # sun_path of unix(7), less its final zero
#: Seconds until another connection is tried for which there was no descriptor.
_EXHAUSTED_FOR: Final = 0.25


class KeeperSocketError(PgkeeperError):
    """The socket `path` cannot be opened; `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"cannot listen on {path}: {reason}")


class KeeperSocket:
    """Listens on `path` and gives connections of `allowed_uids` to `on_connection`.

    `on_connection(connection, peer, pidfd)` owns connection and pidfd.  Everybody else is closed
    at once and logged.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: Path,
        allowed_uids: Collection[int],
        on_connection: Callable[[socket.socket, Peer, Pidfd], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._allowed = frozenset(allowed_uids) | {0, os.geteuid()}
        self._on_connection = on_connection
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> bool:
        """Begin to listen; a file that nobody listens on any more is replaced.

        Returns whether there was one: the last hanger did not end, or left a pgbouncer behind.
        Raises `KeeperSocketError`.
        """
        left_behind = self._path.exists()
        if len(os.fsencode(self._path)) > _PATH_MAX:
            raise KeeperSocketError(self._path, f"the name is longer than {_PATH_MAX} bytes")
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        listener = socket.socket(socket.AF_UNIX, kind)
        umask = os.umask(0o177)  # narrow from the first moment; `set_access` widens if it must
        try:
            bind_path(listener, str(self._path))
            facts = self._path.lstat()
            self._identity = (facts.st_dev, facts.st_ino)
            set_access(self._path, self._allowed)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            self._unlink()
            reason = os.strerror(error.errno or 0)
            if error.errno == errno.EADDRINUSE:
                reason = "another hanger, or something else, is there"
            raise KeeperSocketError(self._path, reason) from None
        finally:
            os.umask(umask)
        self._listener = listener
        self._loop.add_reader(listener, self._accept)
        return left_behind

    def inherit(self, fd: int) -> None:
        """Listen on what another hanger has opened at our path; `fd` is ours from now on."""
        self._listener = socket.socket(fileno=fd)
        with contextlib.suppress(OSError):
            facts = self._path.lstat()
            self._identity = (facts.st_dev, facts.st_ino)
        self._loop.add_reader(self._listener, self._accept)

    def fileno(self) -> int:
        """The listening descriptor; -1 if there is none."""
        return -1 if self._listener is None else self._listener.fileno()

    def close(self, *, unlink: bool = True) -> None:
        """Stop listening and remove the file, unless somebody has replaced it.

        Without `unlink` the file stays, as a sign that a pgbouncer goes on without us.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            if unlink:
                self._unlink()

    def _unlink(self) -> None:
        if self._identity is None:
            return
        with contextlib.suppress(OSError):
            facts = os.lstat(self._path)
            if (facts.st_dev, facts.st_ino) == self._identity and stat.S_ISSOCK(facts.st_mode):
                Path(self._path).unlink()
        self._identity = None

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101 - only watched while there is one
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error(HangerEvent.ACCEPT_PAUSED, reason=os.strerror(error.errno or 0))
            self._loop.remove_reader(self._listener)
            self._timer = self._loop.call_later(
                _EXHAUSTED_FOR, self._loop.add_reader, self._listener, self._accept
            )
            return
        try:
            connection.setblocking(False)
            peer = peer_of(connection)
            if peer.uid not in self._allowed:
                raise KeeperSocketError(self._path, f"uid {peer.uid} may not connect")
            pidfd = peer_pidfd(connection, peer.pid)
        except (KeeperSocketError, ProcessInvisibleError) as error:
            connection.close()
            log.warning(HangerEvent.PEER_REFUSED, pid=peer.pid, uid=peer.uid, reason=error.message)
        except OSError:
            connection.close()  # it has ended already
        else:
            self._on_connection(connection, peer, pidfd)
