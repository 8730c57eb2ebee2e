"""Serves `/metrics` and `/healthz` over HTTP, in the hanger's event loop.

Small on purpose: GET and HEAD, one request a connection.  A client may do what it likes, stay
silent, send garbage, read slowly or vanish: it has `timeout` seconds, and nothing else notices.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from pgkeeper.callers import Callers
from pgkeeper.errors import PgkeeperError
from pgkeeper.log import Event, get_logger

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from pgkeeper.options import Endpoint

__all__ = ["CannotServeMetricsError", "MetricsServer", "Source"]

_CONNECTIONS: Final = 16  # at once; more than there are scrapers, few enough to bear
_HEAD_LIMIT: Final = 8 << 10  # bytes of a request
_FRESH: Final = 1.0  # seconds; whoever asks within them shares an answer
_PLAIN: Final = "text/plain; charset=utf-8"
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class CannotServeMetricsError(PgkeeperError):
    """The address of `--metrics` cannot be listened on; `reason` says why."""

    def __init__(self, endpoint: Endpoint, reason: str) -> None:
        self.endpoint = endpoint
        self.reason = reason
        super().__init__(f"cannot serve metrics on {endpoint}: {reason} (--metrics)")


class Source(Protocol):
    """Where answers come from.  Errors leave as `PgkeeperError`."""

    def health(self) -> tuple[bool, str]:
        """Whether all is well, and a line about it."""
        ...

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics for a scraper that accepts `accept`, and their content type."""
        ...


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = _PLAIN

    @classmethod
    def line(cls, status: int, text: str) -> _Answer:
        return cls(status, f"{text}\n".encode())

    def head(self) -> bytes:
        return (
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\n"
            f"Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n"
            "Cache-Control: no-store\r\n"
            "Connection: close\r\n\r\n"
        ).encode("latin-1")


class MetricsServer:
    """Listens on `endpoint` and answers from `source`; without them it does nothing."""

    def __init__(
        self, endpoint: Endpoint | None, source: Source | None, *, timeout: float = 10.0
    ) -> None:
        self.endpoint = endpoint
        self._source = source
        self._timeout = timeout
        self._log = get_logger()
        self._callers = Callers(self._admit, self._log, Event.METRICS_PAUSED)
        self._fresh = _Shared(source)

    def start(self) -> None:
        """Begin to listen, if there is an endpoint.  Raises `CannotServeMetricsError`."""
        if self.endpoint is None or self._callers.listening:
            return
        try:
            listener = _listen(self.endpoint)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CannotServeMetricsError(self.endpoint, reason) from None
        self._callers.listen(listener)

    def inherit(self, fd: int) -> None:
        """Listen on what another hanger has opened at our endpoint; `fd` is ours from now on."""
        self._callers.listen(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """The listening descriptor; -1 if there is none."""
        return self._callers.fileno()

    def leave(self) -> None:
        """Listen no more; answers under way have until `close`."""
        self._callers.leave()

    async def close(self) -> None:
        """End everything at once: a scraper comes again."""
        self.leave()
        await self._callers.end()

    def _admit(self, connection: socket.socket) -> Coroutine[None, None, None] | None:
        if len(self._callers) < _CONNECTIONS:
            return self._serve(connection)
        connection.close()
        return None

    async def _serve(self, connection: socket.socket) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            # One limit for all of it: nobody who reads slowly may keep a connection for ever.
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_connection(sock=connection, limit=_HEAD_LIMIT)
                await self._answer(reader, writer)
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if writer is None:
                connection.close()
            else:
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.LimitOverrunError:
            answer, wants_body = _Answer.line(400, "the request is too long"), True
        else:
            method = head.partition(" ")[0]
            answer, wants_body = await self._answer_to(head), method != "HEAD"
        writer.write(answer.head() + (answer.body if wants_body else b""))
        await writer.drain()

    async def _answer_to(self, head: str) -> _Answer:
        line, *fields = head.split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _Answer.line(400, "not an HTTP/1 request")
        if words[0] not in ("GET", "HEAD"):
            return _Answer.line(405, "only GET and HEAD")
        path = words[1].partition("?")[0]
        try:
            if path == "/healthz" and self._source is not None:
                healthy, text = self._source.health()
                return _Answer.line(200 if healthy else 503, text)
            if path == "/metrics":
                body, content_type = await self._fresh.get(_accept_header(fields))
                return _Answer(200, body, content_type)
        except PgkeeperError as error:
            return _Answer.line(503, error.message)
        except Exception as error:
            # A defect in one answer must not end the process that holds all sessions.
            self._log.exception(Event.INTERNAL_ERROR, request=path)
            return _Answer.line(500, f"internal error ({type(error).__name__}); see the log")
        return _Answer.line(404, "there are /metrics and /healthz")


class _Shared:
    """Makes an answer at most once a second, however many ask for it."""

    def __init__(self, source: Source | None) -> None:
        self._source = source
        self._lock = asyncio.Lock()
        self._answers: dict[str, tuple[float, tuple[bytes, str]]] = {}

    async def get(self, accept: str) -> tuple[bytes, str]:
        async with self._lock:
            now = asyncio.get_running_loop().time()
            made, answer = self._answers.get(accept, (-_FRESH, (b"", "")))
            if now - made >= _FRESH:
                assert self._source is not None  # noqa: S101 - who listens has one
                answer = await self._source.exposition(accept)
                self._answers = {accept: (now, answer)}  # one: what they accept is the same
        return answer


def _accept_header(fields: list[str]) -> str:
    for field in fields:
        name, _, value = field.partition(":")
        if name.strip().lower() == "accept":
            return value.strip()
    return ""


def _listen(endpoint: Endpoint) -> socket.socket:
    found = socket.getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, number, _, address = found[0]
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener
