"""Clients that may not log in: each gets an answer it can read."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from pgkeeper.hanger.refusals import Refusals
from protocol.startup import CancelRequest, GSSENCRequest, SSLRequest, StartupMessage
from tests.unit.hanger.test_farewell import the_error, unix_pair
from tests.unit.hanger.until import until

if TYPE_CHECKING:
    from collections.abc import Coroutine

ERROR = ("57P03", "not now")
LOGIN = StartupMessage(3 << 16, (("user", "joe"),)).build()


class Bed:
    """One client that is refused."""

    def __init__(self) -> None:
        self.refusals = Refusals(asyncio.get_running_loop())
        ours, self.client = unix_pair()
        self.client.setblocking(False)
        self.passed: list[int] = []
        self.refusals.refuse(ours.detach(), ERROR, self.passed.append)

    async def read(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.client, 4096)

    async def rest(self) -> bytes:
        data = b""
        while chunk := await self.read():
            data += chunk
        return data

    def close(self) -> None:
        self.refusals.close()
        self.client.close()
        for fd in self.passed:
            os.close(fd)


def run(scenario: Coroutine[None, None, None]) -> None:
    asyncio.run(scenario)


@pytest.mark.parametrize("requests", [0, 1, 2], ids=["plain", "ssl", "ssl-and-gss"])
def test_it_reads_the_reason_even_after_it_asked_for_encryption(requests: int) -> None:
    async def scenario() -> None:
        bed = Bed()
        for request in (SSLRequest(), GSSENCRequest())[:requests]:
            bed.client.send(request.build())
            assert await bed.read() == b"N"
        bed.client.send(LOGIN)
        error = the_error(await bed.rest())
        assert (error.sqlstate, bed.refusals.count, bed.passed) == ("57P03", 1, [])
        bed.close()

    run(scenario())


def test_a_cancel_request_is_passed_on_whole() -> None:
    async def scenario() -> None:
        bed = Bed()
        request = CancelRequest(7, b"1234").build()
        bed.client.send(request)
        await until(lambda: bed.passed)
        assert os.read(bed.passed[0], 100) == request
        assert bed.refusals.count == 0
        bed.close()

    run(scenario())


@pytest.mark.parametrize("data", [b"\0", b"GET / HTTP/1.0\r\n\r\n", bytes(8)])
def test_nonsense_gets_the_same_answer(data: bytes) -> None:
    async def scenario() -> None:
        bed = Bed()
        bed.client.send(data)
        assert the_error(await bed.rest()).sqlstate == "57P03"
        bed.close()

    run(scenario())


def test_one_that_leaves_is_forgotten() -> None:
    async def scenario() -> None:
        bed = Bed()
        bed.client.shutdown(socket.SHUT_WR)
        assert await bed.rest() == b""
        bed.close()

    run(scenario())


def test_one_that_says_nothing_is_closed_at_the_end() -> None:
    async def scenario() -> None:
        bed = Bed()
        bed.refusals.close()
        assert await bed.rest() == b""
        bed.close()

    run(scenario())
