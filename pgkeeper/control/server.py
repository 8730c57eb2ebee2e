"""The hanger's end of the admin socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

from pgkeeper.control import protocol
from pgkeeper.control.access import peer_of, set_access
from pgkeeper.control.protocol import Failure, FailureCode
from pgkeeper.errors import PgkeeperError
from pgkeeper.log import Event, get_logger

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from pgkeeper.control.handlers import Handlers

__all__ = ["AdminServer", "AdminSocketError"]

_CONNECTIONS: Final = 32  # at once; more than any operator needs, few enough to bear
_PAUSE: Final = 1.0  # seconds
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
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

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
        self._listener = listener
        # Not asyncio's own server: a connection that it accepts while it closes is lost to both.
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def inherit(self, fd: int) -> None:
        """Listen on what another hanger has opened at our path; `fd` is ours from now on."""
        listener = socket.socket(fileno=fd)
        with contextlib.suppress(OSError):
            status = self._path.lstat()
            self._inode = (status.st_dev, status.st_ino)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def fileno(self) -> int:
        """The listening descriptor; -1 if there is none."""
        return -1 if self._listener is None else self._listener.fileno()

    def leave(self) -> None:
        """Another process listens on: the file stays.  Replies under way have until `close`."""
        self._inode = None
        self._stop_listening()

    async def close(self, grace: float = 2.0) -> None:
        """Stop listening; replies under way have `grace` seconds to leave."""
        self._stop_listening()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stop_listening(self) -> None:
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self._listener = None
        self._unlink()

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
            listener.setblocking(False)
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

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it left before we came
        except OSError as error:
            self._pause(listener, error)
            return
        peer = peer_of(connection)
        if peer.uid not in self._allowed:
            connection.close()
            self._log.warning(Event.ADMIN_REFUSED, uid=peer.uid, pid=peer.pid)
            return
        busy = len(self._tasks) >= _CONNECTIONS
        task = asyncio.create_task(self._serve(connection, busy))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        """No descriptor or memory is left: leave it to those who wait to try again."""
        self._log.error(Event.ADMIN_PAUSED, error=error.strerror, seconds=_PAUSE)
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)

        def go_on() -> None:
            if self._listener is listener:
                loop.add_reader(listener, self._accept, listener)

        loop.call_later(_PAUSE, go_on)

    async def _serve(self, accepted: socket.socket, busy: bool) -> None:
        connection: _Connection | None = None
        try:
            accepted.setblocking(False)
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
