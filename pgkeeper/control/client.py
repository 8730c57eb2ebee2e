"""The command line's end of the admin socket: blocking, with time limits."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final, TypeVar

from pgkeeper.control import protocol
from pgkeeper.control.protocol import Failure, FailureCode
from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgkeeper.control.report import HandoffReport, ReleaseReport, Session, TopQuery

__all__ = ["ControlClient", "NoHangerError", "RequestFailedError"]

_LINE_LIMIT: Final = 4 << 20  # bytes; a batch of sessions with the longest names is far below
_ANSWER_TIMEOUT: Final = 10.0  # seconds, for what the hanger knows without asking anyone
_CHANGE_TIMEOUT: Final = 60.0  # seconds without progress; no step of a handoff may take as long

_R = TypeVar("_R", bound=protocol.Reply)


class NoHangerError(PgkeeperError):
    """No hanger answers: exit status 2.  `reason` says how we know."""

    exit_code = 2

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"no hanger answers: {reason}")


class RequestFailedError(PgkeeperError):
    """The hanger answered that it could not do what was asked; `code` as it said it."""

    def __init__(self, failure: Failure) -> None:
        self.code = failure.code
        super().__init__(failure.message)


class ControlClient:
    """Asks the hanger whose `keeper_socket` this is; a connection for each request.

    All methods raise `NoHangerError` or `RequestFailedError`.
    """

    def __init__(self, keeper_socket: Path, timeout: float | None = None) -> None:
        self._path = protocol.admin_path(keeper_socket)
        self._timeout = timeout

    def status(self) -> protocol.StatusReply:
        """How things are now, and what the operator ought to change."""
        return self._final(protocol.StatusRequest(), protocol.StatusReply, _ANSWER_TIMEOUT)

    def sessions(self) -> list[Session]:
        """All sessions, clients first."""
        sessions: list[Session] = []
        for reply in self._ask(protocol.SessionsRequest(), _ANSWER_TIMEOUT):
            if isinstance(reply, protocol.SessionsBatch):
                sessions += reply.sessions
            elif isinstance(reply, protocol.SessionsEnd) and reply.count == len(sessions):
                return sessions
            else:
                break
        raise self._nonsense()

    def top(self, query: TopQuery) -> protocol.TopReply:
        """How things are, and the sessions that `query` asks for."""
        return self._final(protocol.TopRequest(query), protocol.TopReply, _ANSWER_TIMEOUT)

    def kill(self, name: str) -> None:
        """End the client of that token's name; it has gone soon after."""
        self._final(protocol.KillRequest(name), protocol.KillReply, _ANSWER_TIMEOUT)

    def handoff(
        self,
        pgbouncer: Path | None = None,
        ini: Path | None = None,
        progress: Callable[[protocol.Progress], None] | None = None,
    ) -> HandoffReport:
        """Replace pgbouncer by one with this binary and ini (absolute; None: as now)."""
        request = protocol.HandoffRequest(
            pgbouncer=None if pgbouncer is None else os.fspath(pgbouncer),
            ini=None if ini is None else os.fspath(ini),
        )
        return self._final(request, protocol.HandoffReply, _CHANGE_TIMEOUT, progress).report

    def release(self) -> ReleaseReport:
        """End all sessions for good, and the hanger."""
        return self._final(protocol.ReleaseRequest(), protocol.ReleaseReply, _CHANGE_TIMEOUT).report

    def _final(
        self,
        request: protocol.Request,
        expected: type[_R],
        timeout: float,
        progress: Callable[[protocol.Progress], None] | None = None,
    ) -> _R:
        for reply in self._ask(request, timeout):
            if isinstance(reply, expected):
                return reply
            if not isinstance(reply, protocol.Progress):
                break
            if progress is not None:
                progress(reply)
        raise self._nonsense()

    def _ask(self, request: protocol.Request, timeout: float) -> Iterator[protocol.Reply]:
        """Send `request`, yield the replies; `timeout` seconds may pass before each of them."""
        timeout = self._timeout or timeout
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            self._connect(connection, timeout)
            try:
                connection.sendall(protocol.encode(request))
                for line in self._lines(connection, timeout):
                    reply = protocol.decode_reply(line)
                    if isinstance(reply, Failure):
                        self._fail(reply)
                    yield reply
            except protocol.ControlProtocolError as error:
                raise NoHangerError(f"{self._path}: {error.message}") from None
            except TimeoutError:
                text = f"{self._path}: silent for {timeout:g} s; is the hanger stopped?"
                raise NoHangerError(text) from None
            except ConnectionError:
                raise self._closed() from None

    def _connect(self, connection: socket.socket, timeout: float) -> None:
        connection.settimeout(timeout)
        try:
            connection.connect(os.fspath(self._path))
        except PermissionError:
            text = f"{self._path}: permission denied; run as the hanger's user or see --allow-user"
            raise NoHangerError(text) from None
        except FileNotFoundError:
            raise NoHangerError(f"{self._path} does not exist") from None
        except ConnectionRefusedError:
            raise NoHangerError(f"nobody listens on {self._path}") from None
        except (OSError, ValueError) as error:
            raise NoHangerError(f"{self._path}: {error}") from None

    def _lines(self, connection: socket.socket, timeout: float) -> Iterator[bytes]:
        """Lines until the peer closes.  A line that trickles in does not move its deadline."""
        buffer = bytearray()
        while True:
            deadline = time.monotonic() + timeout
            scanned = 0
            while (end := buffer.find(b"\n", scanned)) < 0:
                scanned = len(buffer)
                if scanned > _LINE_LIMIT:
                    raise protocol.ControlProtocolError(f"a line of more than {_LINE_LIMIT} bytes")
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError
                connection.settimeout(remaining)
                chunk = connection.recv(64 << 10)
                if not chunk:
                    raise self._closed()
                buffer += chunk
            yield bytes(buffer[:end])
            del buffer[: end + 1]

    def _fail(self, failure: Failure) -> None:
        if failure.code is FailureCode.VERSION:
            # It lives, but whether it is active cannot be asked: the same to a script.
            raise NoHangerError(f"{self._path}: {failure.message}")
        raise RequestFailedError(failure)

    def _closed(self) -> NoHangerError:
        return NoHangerError(
            f"{self._path} closed the connection: the hanger ended, or does not allow this user"
            " (--allow-user)"
        )

    def _nonsense(self) -> NoHangerError:
        return NoHangerError(f"{self._path}: the replies do not belong to the request")
