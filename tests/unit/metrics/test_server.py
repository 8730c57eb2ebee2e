"""The HTTP server of the metrics: what it answers, and that nobody can keep it busy."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from pgkeeper.errors import PgkeeperError
from pgkeeper.metrics.server import CannotServeMetricsError, MetricsServer
from pgkeeper.options import Endpoint
from testbed.waiting import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LARGE = b"x" * 20_000_000
"""More than the kernel buffers for somebody who does not read."""


class FakeSource:
    def __init__(self) -> None:
        self.healthy = (True, "active")
        self.body = b"pgkeeper_up 1\n"
        self.error: Exception | None = None
        self.asked = 0

    def health(self) -> tuple[bool, str]:
        return self.healthy

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.body, f"text/plain; for={accept}"


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def serve(
    source: FakeSource, act: Callable[[int], Coroutine[object, object, None]], timeout: float = 10.0
) -> None:
    async def run() -> None:
        port = free_port()
        server = MetricsServer(Endpoint("127.0.0.1", port), source, timeout=timeout)
        server.start()
        try:
            await act(port)
        finally:
            await server.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (get("/metrics"), 200, b"pgkeeper_up 1\n"),
        (get("/metrics?name[]=x"), 200, b"pgkeeper_up 1\n"),
        (get("/healthz"), 200, b"active\n"),
        (b"HEAD /metrics HTTP/1.0\r\n\r\n", 200, b""),
        (get("/"), 404, b"there are /metrics and /healthz\n"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405, b"only GET and HEAD\n"),
        (b"nonsense\r\n\r\n", 400, b"not an HTTP/1 request\n"),
        (b"GET /metrics HTTP/2\r\n\r\n", 400, b"not an HTTP/1 request\n"),
        (b"\xff" * 9000 + b"\r\n\r\n", 400, b"the request is too long\n"),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else None,
)
def test_answers(request_: bytes, status: int, body: bytes) -> None:
    async def act(port: int) -> None:
        head, _, found = (await ask(port, request_)).partition(b"\r\n\r\n")
        assert head.split()[1] == str(status).encode()
        assert b"Connection: close" in head
        assert found == body

    serve(FakeSource(), act)


def test_unhealthy_is_503_with_the_reason() -> None:
    source = FakeSource()
    source.healthy = (False, "down: no pgbouncer serves")

    async def act(port: int) -> None:
        answer = await ask(port, get("/healthz"))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"\r\n\r\ndown: no pgbouncer serves\n")

    serve(source, act)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (PgkeeperError("replaced"), b"503", b"replaced\n"),
        (ZeroDivisionError("secret"), b"500", b"internal error (ZeroDivisionError); see the log\n"),
    ],
    ids=["expected", "defect"],
)
def test_an_error_of_the_source_ends_one_answer(
    error: Exception, status: bytes, text: bytes
) -> None:
    source = FakeSource()
    source.error = error

    async def act(port: int) -> None:
        answer = await ask(port, get("/metrics"))
        assert answer.split()[1] == status
        assert answer.endswith(text)
        source.error = None
        assert (await ask(port, get("/metrics"))).split()[1] == b"200"

    serve(source, act)


def test_many_scrapers_share_an_answer() -> None:
    source = FakeSource()

    async def act(port: int) -> None:
        answers = await asyncio.gather(*(ask(port, get("/metrics")) for _ in range(10)))
        assert len(set(answers)) == 1
        assert source.asked == 1

    serve(source, act)


def test_who_accepts_something_else_gets_it() -> None:
    async def act(port: int) -> None:
        for accept in (b"a", b"b"):
            request = b"GET /metrics HTTP/1.1\r\nACCEPT:  " + accept + b" \r\n\r\n"
            assert b"Content-Type: text/plain; for=" + accept in await ask(port, request)

    serve(FakeSource(), act)


def test_the_silent_and_the_slow_are_hung_up_on() -> None:
    """One says nothing, one does not read; neither keeps its connection beyond the time."""
    source = FakeSource()
    source.body = LARGE

    async def act(port: int) -> None:
        silent, silent_writer = await asyncio.open_connection("127.0.0.1", port)
        slow = socket.create_connection(("127.0.0.1", port))
        with slow:
            slow.sendall(get("/metrics"))
            assert await silent.read() == b""
            silent_writer.close()
            await silent_writer.wait_closed()
            slow.setblocking(False)
            received = await _read_all(slow)
        assert received < len(LARGE)

    serve(source, act, timeout=0.5)


async def _read_all(connection: socket.socket) -> int:
    """How many bytes come until the end, or the reset."""
    count = 0
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(connection, 1 << 20):
            count += len(data)
    except ConnectionResetError:
        pass
    return count


def test_more_than_there_may_be_at_once_are_closed() -> None:
    async def act(port: int) -> None:
        waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(16)]
        assert await asyncio.wait_for(_closed(port), 5) in (b"", None)
        for _, writer in waiting:
            writer.close()
            await writer.wait_closed()

    serve(FakeSource(), act)


async def _closed(port: int) -> bytes | None:
    try:
        return await ask(port, b"")
    except ConnectionError:
        return None


def test_an_address_in_use_is_named() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            endpoint = Endpoint("127.0.0.1", taken.getsockname()[1])
            with pytest.raises(CannotServeMetricsError) as caught:
                MetricsServer(endpoint, FakeSource()).start()
        assert str(endpoint) in caught.value.message
        assert "Address already in use" in caught.value.message

    asyncio.run(run())


def test_nowhere_is_no_server() -> None:
    async def run() -> None:
        server = MetricsServer(None, None)
        server.start()
        assert server.fileno() == -1
        await server.close()

    asyncio.run(run())
