"""A session notices every byte that is not the one it should be told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from pgkeeper.trial.answer import Answer, DifferentError, LostError
from pgkeeper.trial.dsn import Address
from pgkeeper.trial.wire import Wire
from protocol import (
    AuthenticationOk,
    BackendKeyData,
    CommandComplete,
    DataRow,
    ErrorResponse,
    ParameterStatus,
    ReadyForQuery,
    TransactionStatus,
    fatal_error,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

READY = ReadyForQuery(TransactionStatus.IDLE).build()
WELCOME = ParameterStatus("server_version", "17").build() + READY
LOGIN = AuthenticationOk().build() + BackendKeyData(1, b"1234").build() + WELCOME
ANSWER = DataRow((b"abc",)).build() + CommandComplete("SELECT 1").build() + READY
ERROR = ErrorResponse((("S", "ERROR"), ("V", "ERROR"), ("C", "42P01"), ("M", "no table"))).build()


def talk(said: bytes, use: Callable[[Wire], Awaitable[None]], *, login: bytes = LOGIN) -> None:
    """Give `use` a session with a server that says `said` when it has been asked, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(1000)
            writer.write(login)
            if await reader.read(1000):
                writer.write(said)
                await writer.drain()
                writer.write_eof()
                await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        served.set()

    served = asyncio.Event()

    async def meet() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            try:
                wire = await Wire.open(Address(host, port, "u", "d"))
                try:
                    await use(wire)
                finally:
                    wire.abort()
            finally:
                await served.wait()

    asyncio.run(meet())


async def ask(wire: Wire) -> None:
    await wire.ask(b"Q\0\0\0\5\0", Answer.of(ANSWER))


def test_the_right_answer_is_counted() -> None:
    async def use(wire: Wire) -> None:
        assert wire.welcome == WELCOME
        await ask(wire)
        assert wire.compared == len(ANSWER)

    talk(ANSWER, use)


@pytest.mark.parametrize("at", range(len(ANSWER)))
def test_every_changed_byte_is_noticed(at: int) -> None:
    changed = bytearray(ANSWER)
    changed[at] ^= 2
    with pytest.raises(DifferentError, match=f"byte {at} of {len(ANSWER)}"):
        talk(bytes(changed), ask)


def test_a_message_twice_is_noticed() -> None:
    with pytest.raises(DifferentError, match="became"):
        talk(DataRow((b"abc",)).build() + ANSWER, ask)


def test_bytes_beyond_the_answer_are_noticed_at_the_end() -> None:
    async def use(wire: Wire) -> None:
        await ask(wire)
        await wire.close()

    with pytest.raises(DifferentError, match="6 bytes more"):
        talk(ANSWER + READY, use)


@pytest.mark.parametrize("kept", range(len(ANSWER)))
def test_an_answer_cut_short_is_a_loss(kept: int) -> None:
    with pytest.raises(LostError, match="closed by the peer"):
        talk(ANSWER[:kept], ask)


@pytest.mark.parametrize("kept", [0, len(DataRow((b"abc",)).build())])
def test_a_fatal_error_between_messages_is_a_loss(kept: int) -> None:
    with pytest.raises(LostError, match="FATAL 57P03: gone"):
        talk(ANSWER[:kept] + fatal_error("57P03", "gone"), ask)


def test_an_error_is_a_difference() -> None:
    with pytest.raises(DifferentError, match="42P01: no table"):
        talk(ERROR + READY, ask)


def test_a_reference_is_no_error() -> None:
    async def use(wire: Wire) -> None:
        await wire.record(b"Q\0\0\0\5\0")

    with pytest.raises(DifferentError, match="42P01: no table"):
        talk(ERROR + READY, use)


def test_rows_are_read_as_text() -> None:
    async def use(wire: Wire) -> None:
        assert await wire.rows("SELECT") == [("1", None, "")]

    talk(DataRow((b"1", None, b"")).build() + CommandComplete("SELECT 1").build() + READY, use)


def test_a_refused_login_says_why() -> None:
    async def use(wire: Wire) -> None:
        raise AssertionError

    with pytest.raises(LostError, match="FATAL 28000: who are you"):
        talk(b"", use, login=fatal_error("28000", "who are you"))


def test_nobody_listening_is_a_loss() -> None:
    async def meet() -> None:
        await Wire.open(Address("127.0.0.1", 1, "u", "d"))

    with pytest.raises(LostError, match="connection refused"):
        asyncio.run(meet())
