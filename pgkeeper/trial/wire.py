"""One session as the bytes on its connection: nothing between a socket and the verdict.

A driver would decode what it is told and pass over what it does not need; here every byte that
the server sends has to be the one that is expected.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
import time
from typing import TYPE_CHECKING, Final

from pgkeeper.trial.answer import Answer, DifferentError, LostError, error_text
from pgkeeper.trial.scram import Scram
from protocol import (
    PROTOCOL_3_0,
    PasswordMessage,
    Query,
    SASLInitialResponse,
    SASLResponse,
    StartupMessage,
    Terminate,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pgkeeper.trial.dsn import Address

__all__ = ["Wire"]

_CHUNK: Final = 65536
_FAREWELL_S: Final = 10.0
# An exchange ends with ReadyForQuery, or where the server waits for COPY's data.
_ENDS: Final = (b"Z", b"G")
_TERMINATE: Final = Terminate().build()


class Wire:
    """A session that has logged in; see `open`.

    `compared` counts the bytes that were found to be right, `longest` the longest wait for bytes
    (or for room to send) in seconds; whoever reads it sets it back to 0.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.compared = 0
        self.longest = 0.0
        self.welcome = b""
        """What came after the authentication, but for the cancel key."""

    @classmethod
    async def open(cls, address: Address) -> Wire:
        """Connect and log in. Raises `LostError` if that is refused or ends."""
        try:
            if address.host.startswith("/"):
                path = f"{address.host}/.s.PGSQL.{address.port}"
                streams = await asyncio.open_unix_connection(path)
            else:
                streams = await asyncio.open_connection(address.host, address.port)
        except OSError as error:
            raise LostError(_said(error)) from error
        wire = cls(*streams)
        try:
            await wire._log_in(address)
        except BaseException:
            wire.abort()
            raise
        return wire

    async def send(self, data: bytes) -> None:
        """Send, waiting while the peer takes nothing. Raises `LostError`."""
        began = time.perf_counter()
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise LostError(_said(error)) from error
        self.longest = max(self.longest, time.perf_counter() - began)

    async def record(self, request: bytes) -> Answer:
        """Send a request; what is answered, as the reference for others.

        Raises `LostError`, or `DifferentError` if the answer is an error.
        """
        await self.send(request)
        recorded = bytearray()
        while True:
            head, body = await self._message()
            if head[:1] == b"E":
                raise DifferentError(error_text(body)[1])
            recorded += head + body
            if head[:1] in _ENDS:
                return Answer.of(bytes(recorded))

    async def ask(self, request: bytes, expected: Answer) -> None:
        """Send a request and read its answer, which must be `expected`.

        Raises `LostError` or `DifferentError`.
        """
        await self.send(request)
        await self.expect(expected)

    async def expect(self, expected: Answer) -> None:
        """Read exactly `expected`. Raises as `ask`."""
        at, wanted = 0, memoryview(expected.data)
        while at < len(wanted):
            data = await self._receive(min(_CHUNK, len(wanted) - at))
            if data != wanted[at : at + len(data)]:
                await self._differ(expected, at, data)
            at += len(data)
            self.compared += len(data)

    async def rows(self, statement: str) -> list[tuple[str | None, ...]]:
        """Run a simple query; its rows as text. Raises as `record`."""
        answer = await self.record(Query(statement).build())
        ends = (*answer.starts[1:], len(answer.data))
        return [
            tuple(_columns(answer.data[start + 5 : end]))
            for start, end in zip(answer.starts, ends, strict=True)
            if answer.data[start : start + 1] == b"D"
        ]

    async def close(self) -> None:
        """Say goodbye. Raises `DifferentError` if anything had been said beyond the answers."""
        rest = b""
        try:
            with contextlib.suppress(OSError):
                self._writer.write(_TERMINATE)
                async with asyncio.timeout(_FAREWELL_S):
                    rest = await self._reader.read(_CHUNK)
        except TimeoutError:
            raise DifferentError("the connection was not closed after Terminate") from None
        finally:
            self.abort()
        if rest:
            raise DifferentError(f"{len(rest)} bytes more than were asked for: {rest[:16]!r}")

    def abort(self) -> None:
        """Drop the connection."""
        self._writer.transport.abort()

    async def _receive(self, most: int) -> bytes:
        began = time.perf_counter()
        try:
            data = await self._reader.read(most)
        except OSError as error:
            raise LostError(_said(error)) from error
        if not data:
            raise LostError("closed by the peer")
        self.longest = max(self.longest, time.perf_counter() - began)
        return data

    async def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            data += await self._receive(count - len(data))
        return bytes(data)

    async def _message(self) -> tuple[bytes, bytes]:
        """Type byte and length word, and the body."""
        head = await self._exactly(5)
        (length,) = struct.unpack("!I", head[1:])
        return head, await self._exactly(length - 4)

    async def _differ(self, expected: Answer, at: int, data: bytes) -> None:
        """Raise what the difference means: an error instead of the answer may end the session."""
        pairs = zip(expected.data[at : at + len(data)], data, strict=True)
        first = next(n for n, (one, other) in enumerate(pairs) if one != other)
        start = expected.start_of(at + first)
        # The message that differs is an error only if its type byte has just been read.
        if start >= at and data[start - at : start - at + 1] == b"E":
            message = bytearray(data[start - at :])
            with contextlib.suppress(LostError):
                message += await self._exactly(max(0, 5 - len(message)))
                (length,) = struct.unpack_from("!I", message, 1)
                message += await self._exactly(max(0, 1 + length - len(message)))
            severity, text = error_text(bytes(message[5:]))
            if severity in ("FATAL", "PANIC"):
                raise LostError(text)
            raise DifferentError(f"an error instead of an answer: {text}")
        raise DifferentError(expected.describe(at, data))

    async def _log_in(self, address: Address) -> None:
        parameters = (("user", address.user), ("database", address.database))
        await self.send(StartupMessage(PROTOCOL_3_0, parameters).build())
        scram = Scram(address.password)
        while True:
            head, body = await self._message()
            if head[:1] == b"R":
                await self._authenticate(body, address, scram)
            elif head[:1] == b"E":
                raise LostError(error_text(body)[1])
            elif head[:1] != b"K":
                self.welcome += head + body
                if head[:1] == b"Z":
                    return

    async def _authenticate(self, body: bytes, address: Address, scram: Scram) -> None:
        (code,) = struct.unpack_from("!I", body)
        if code in (3, 5) and not address.password:
            raise LostError("a password is asked for, and none was given")
        if code == 3:
            await self.send(PasswordMessage(address.password).build())
        elif code == 5:
            await self.send(PasswordMessage(_md5(address, body[4:8])).build())
        elif code == 10 and b"SCRAM-SHA-256" in body[4:].split(b"\0"):
            await self.send(SASLInitialResponse("SCRAM-SHA-256", scram.first).build())
        elif code == 11:
            await self.send(SASLResponse(scram.final(body[4:])).build())
        elif code == 12:
            if body[4:] != scram.signature:
                raise LostError("the server does not know the password")
        elif code != 0:
            raise LostError(f"authentication request {code} is not known")


def _md5(address: Address, salt: bytes) -> str:
    inner = hashlib.md5((address.password + address.user).encode()).hexdigest()  # noqa: S324 (protocol)
    return "md5" + hashlib.md5(inner.encode() + salt).hexdigest()  # noqa: S324


def _columns(body: bytes) -> Iterable[str | None]:
    (count,) = struct.unpack_from("!h", body)
    at = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        yield None if length < 0 else body[at : at + length].decode()
        at += max(0, length)


def _said(error: OSError) -> str:
    """What happened, without the address that asyncio names before it."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError):
        return "connection reset by peer"
    return error.strerror or type(error).__name__
