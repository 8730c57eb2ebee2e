"""The hanger's end of the admin socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

from pgkeeper.callers import Callers
from pgkeeper.control import protocol
from pgkeeper.control.access import peer_of, set_access
from pgkeeper.control.protocol import Failure, FailureCode
from pgkeeper.errors import PgkeeperError
from pgkeeper.log import Event, get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine
    from pathlib import Path

    from pgkeeper.control.handlers import Handlers

__all__ = ["AdminServer", "AdminSocketError"]

_CONNECTIONS: Final = 32  # at once; more than any operator needs, few enough to bear
_POST_LIMIT: Final = 256 << 10  # bytes that may wait for a peer that does not read its progress


class AdminSocketError(PgkeeperError):
    """The admin socket `path` cannot be opened; `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"cannot listen on {path}: {reason}")


class AdminServer:
    """Listens on `path` for requests of `allowed_uids` and lets `handlers` carry them out.

    A peer may do what it likes, stay silent, send garbage or vanish: it gets an error if it reads,
    its connection ends, and nothing else notices.  `timeout`, in seconds, is for the request to
    arrive and for each reply to be read.
    """

    def __init__(
        self,
        path: Path,
        handlers: Handlers,
        allowed_uids: Collection[int],
        *,
        timeout: float = 10.0,
    ) -> None:
        self._path = path
        self._handlers = handlers
        self._allowed = frozenset(allowed_uids) | {0, os.geteuid()}
        self._timeout = timeout
        self._log = get_logger(socket=str(path))
        self._inode: tuple[int, int] | None = None
        self._callers = Callers(self._admit, self._log, Event.ADMIN_PAUSED)

    async def start(self) -> None:
        """Begin to listen.  A file that nobody listens on any more is replaced.

        Raises `AdminSocketError`.
        """
        try:
            listener = self._listen()
        except OSError as error:
            raise AdminSocketError(self._path, error.strerror or str(error)) from None
        status = self._path.stat()
        self._inode = (status.st_dev, status.st_ino)
        self._callers.listen(listener)

    def inherit(self, fd: int) -> None:
        """Listen on what another hanger has opened at our path; `fd` is ours from now on."""
        with contextlib.suppress(OSError):
            status = self._path.lstat()
            self._inode = (status.st_dev, status.st_ino)
        self._callers.listen(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """The listening descriptor; -1 if there is none."""
        return self._callers.fileno()

    def leave(self) -> None:
        """Another process listens on: the file stays.  Replies under way have until `close`."""
        self._inode = None
        self._callers.leave()

    async def close(self, grace: float = 2.0) -> None:
        """Stop listening; replies under way have `grace` seconds to leave."""
        self._callers.leave()
        self._unlink()
        await self._callers.end(grace)

    def _listen(self) -> socket.socket:
        name = os.fspath(self._path)
        if len(os.fsencode(name)) > 107:  # sun_path of unix(7), less its final zero
            raise OSError(0, "the name is longer than the 107 bytes of a socket address")
        if self._path.is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(self._timeout)
                try:
                    probe.connect(name)
                except ConnectionRefusedError:
                    self._path.unlink(missing_ok=True)
                else:
                    raise OSError(0, "another hanger listens there")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        umask = os.umask(0o177)  # narrow from the first moment; `set_access` widens if it must
        try:
            listener.bind(name)
            set_access(self._path, self._allowed)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(umask)
        return listener

    def _unlink(self) -> None:
        # Not if another hanger has put its own socket there meanwhile.
        with contextlib.suppress(OSError):
            status = self._path.lstat()
            if (status.st_dev, status.st_ino) == self._inode:
                self._path.unlink()
        self._inode = None

    def _admit(self, connection: socket.socket) -> Coroutine[None, None, None] | None:
        peer = peer_of(connection)
        if peer.uid in self._allowed:
            return self._serve(connection, busy=len(self._callers) >= _CONNECTIONS)
        connection.close()
        self._log.warning(Event.ADMIN_REFUSED, uid=peer.uid, pid=peer.pid)
        return None

    async def _serve(self, accepted: socket.socket, *, busy: bool) -> None:
        connection: _Connection | None = None
        try:
            reader, writer = await asyncio.open_unix_connection(
                sock=accepted, limit=protocol.REQUEST_LIMIT
            )
            connection = _Connection(writer, self._timeout)
            await self._answer(reader, connection, busy)
        finally:
            if connection is None:
                accepted.close()
            else:
                await connection.close()

    async def _answer(
        self, reader: asyncio.StreamReader, connection: _Connection, busy: bool
    ) -> None:
        # Read even if refused: a connection closed with a request in it is an error to the peer.
        request = await self._request(reader, connection)
        if request is None:
            return
        if busy:
            await connection.send(Failure(FailureCode.BUSY, "too many connections"))
            return
        self._log.debug(Event.ADMIN_REQUEST, request=type(request).__name__)
        try:
            await self._handlers.handle(request, connection)
        except Exception as error:
            # A defect in one request must not end the process that holds all sessions.
            self._log.exception(Event.INTERNAL_ERROR, request=type(request).__name__)
            text = f"internal error ({type(error).__name__}); the hanger's log says more"
            await connection.send(Failure(FailureCode.INTERNAL, text))

    async def _request(
        self, reader: asyncio.StreamReader, connection: _Connection
    ) -> protocol.Request | None:
        """The request, or None if there is none: then an error has been sent."""
        code = FailureCode.BAD_REQUEST
        try:
            async with asyncio.timeout(self._timeout):
                line = await reader.readuntil(b"\n")
            return protocol.decode_request(line)
        except protocol.VersionMismatchError as error:
            code, reason = FailureCode.VERSION, error.reason
        except protocol.ControlProtocolError as error:
            reason = error.reason
        except asyncio.LimitOverrunError:
            reason = f"longer than {protocol.REQUEST_LIMIT} bytes"
        except TimeoutError:
            reason = f"no request within {self._timeout:g} s"
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return None  # it only looked whether somebody listens
            reason = "connection ended within the request"
        except OSError:
            return None
        self._log.info(Event.ADMIN_BAD_REQUEST, reason=reason)
        await connection.send(Failure(code, reason))
        return None


class _Connection:
    """`Replies` to one peer; once it is gone or too slow they go nowhere."""

    def __init__(self, writer: asyncio.StreamWriter, timeout: float) -> None:
        self._writer = writer
        self._timeout = timeout

    async def send(self, reply: protocol.Reply) -> bool:
        if self._writer.is_closing():
            return False
        self._writer.write(protocol.encode(reply))
        try:
            async with asyncio.timeout(self._timeout):
                await self._writer.drain()
        except (TimeoutError, OSError):
            self._writer.transport.abort()
            return False
        return True

    def post(self, reply: protocol.Reply) -> None:
        transport = self._writer.transport
        if not transport.is_closing() and transport.get_write_buffer_size() < _POST_LIMIT:
            self._writer.write(protocol.encode(reply))

    async def close(self) -> None:
        try:
            self._writer.close()
            async with asyncio.timeout(self._timeout):
                await self._writer.wait_closed()
        except (TimeoutError, OSError):
            self._writer.transport.abort()
