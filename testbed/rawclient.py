"""A PostgreSQL client of a few lines that hides nothing: bytes, messages, keys.

Written against the chapter "Frontend/Backend Protocol" of PostgreSQL's documentation, version 3.0,
and independent of `protocol/`, so that neither can hide a mistake of the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import ConnectionLostError, ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

_VERSION_3_0 = 196608
_CANCEL_CODE = 80877102


@dataclass(frozen=True, slots=True)
class Message:
    """A backend message: its type byte as a character, and what follows the length."""

    kind: str
    body: bytes

    @property
    def encoded(self) -> bytes:
        """The bytes that it came as."""
        return frontend(self.kind, self.body)

    def error_fields(self) -> dict[str, str]:
        """The fields of an ErrorResponse or NoticeResponse by their one-letter codes."""
        parts = self.body.rstrip(b"\0").split(b"\0")
        return {chr(part[0]): part[1:].decode(errors="replace") for part in parts if part}

    def row(self) -> tuple[str | None, ...]:
        """The columns of a DataRow in text format."""
        (count,) = struct.unpack_from("!h", self.body)
        values: list[str | None] = []
        offset = 2
        for _ in range(count):
            (length,) = struct.unpack_from("!i", self.body, offset)
            offset += 4
            if length < 0:
                values.append(None)
            else:
                values.append(self.body[offset : offset + length].decode())
                offset += length
        return tuple(values)


def frontend(kind: str, *parts: bytes) -> bytes:
    """A frontend message with its length; an empty `kind` for the start-up messages."""
    body = b"".join(parts)
    return kind.encode() + struct.pack("!i", len(body) + 4) + body


def text(value: str) -> bytes:
    """A zero-terminated string, the protocol's String."""
    return value.encode() + b"\0"


class RawClient:
    """One session on a blocking socket; every read gives up after `timeout` seconds.

    The constructor only connects the socket: `start_up` sends the StartupMessage and
    `finish_login` reads on, so a test can stop between the two. `login` does both. Knows trust,
    cleartext and MD5 passwords. `receive_buffer` is SO_RCVBUF: little of it, and who sends to a
    client that does not read must soon wait. `source` is an address of this machine to come from.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeout: float = 10.0,
        receive_buffer: int = 0,
        source: str = "",
    ) -> None:
        self.address = (host, port)
        self.timeout = timeout
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if receive_buffer:
            # Before the connection: its window is agreed on then.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.source = source
        try:
            if source:
                self.socket.bind((source, 0))
            self.socket.connect(self.address)
        except BaseException:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.parameters: dict[str, str] = {}
        self.backend_pid = 0
        self.cancel_key = b""
        self.transaction_status = ""
        self.notices: list[dict[str, str]] = []
        self.user = ""
        self._buffer = bytearray()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def client_port(self) -> int:
        """Our own TCP port, which tells whether it is still the same connection."""
        port = self.socket.getsockname()[1]
        return int(port)

    def start_up(
        self, *, user: str, database: str, parameters: Mapping[str, str] | None = None
    ) -> None:
        """Send the StartupMessage."""
        self.user = user
        options = {"user": user, "database": database, **(parameters or {})}
        pairs = b"".join(text(name) + text(value) for name, value in options.items())
        self.send(frontend("", struct.pack("!i", _VERSION_3_0), pairs, b"\0"))

    def finish_login(self, secret: str = "") -> None:
        """Answer the password request, if any, and read up to the first ReadyForQuery.

        Raises `ServerError` if the login is refused, `ConnectionLostError`, or TimeoutError.
        """
        while True:
            message = self.read()
            if message.kind == "R":
                self._authenticate(message.body, secret)
            elif message.kind == "Z":
                return

    def answer(self, secret: str) -> None:
        """Wait to be asked for the password, and answer; `finish_login` reads what comes of it."""
        message = self.read()
        while message.kind != "R":
            message = self.read()
        self._authenticate(message.body, secret)

    def login(
        self,
        *,
        user: str = "postgres",
        database: str = "transaction",
        secret: str = "",
        parameters: Mapping[str, str] | None = None,
    ) -> RawClient:
        """`start_up` and `finish_login`; returns self."""
        self.start_up(user=user, database=database, parameters=parameters)
        self.finish_login(secret)
        return self

    def _authenticate(self, body: bytes, secret: str) -> None:
        (code,) = struct.unpack_from("!i", body)
        if code == 0:
            return
        if code == 3:
            answer = secret
        elif code == 5:
            inner = hashlib.md5((secret + self.user).encode()).hexdigest()  # noqa: S324 (protocol)
            outer = hashlib.md5(inner.encode() + body[4:8]).hexdigest()  # noqa: S324
            answer = "md5" + outer
        else:
            raise ServerError({"S": "FATAL", "C": "0A000", "M": f"authentication request {code}"})
        self.send(frontend("p", text(answer)))

    def send(self, data: bytes) -> None:
        """Send bytes as they are. Raises `ConnectionLostError`."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ConnectionLostError(str(error)) from error

    def read_bytes(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises `ConnectionLostError` at the end, TimeoutError."""
        while len(self._buffer) < count:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError as error:
                raise ConnectionLostError(str(error)) from error
            if not data:
                raise ConnectionLostError("closed by the peer")
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def read_any(self) -> Message:
        """The next message whatever it is, an ErrorResponse too, with its facts noted."""
        head = self.read_bytes(5)
        (length,) = struct.unpack("!i", head[1:])
        message = Message(chr(head[0]), self.read_bytes(length - 4))
        if message.kind == "S":
            name, value, _ = message.body.split(b"\0")
            self.parameters[name.decode()] = value.decode()
        elif message.kind == "K":
            (self.backend_pid,) = struct.unpack_from("!i", message.body)
            self.cancel_key = message.body[4:]
        elif message.kind == "Z":
            self.transaction_status = message.body.decode()
        elif message.kind == "N":
            self.notices.append(message.error_fields())
        return message

    def read(self) -> Message:
        """The next message. Raises `ServerError` for an ErrorResponse."""
        message = self.read_any()
        if message.kind == "E":
            raise ServerError(message.error_fields())
        return message

    def until_ready(self) -> Iterator[Message]:
        """The messages up to and with the next ReadyForQuery, errors as messages."""
        while True:
            message = self.read_any()
            yield message
            if message.kind == "Z":
                return

    def query(self, statement: str) -> list[tuple[str | None, ...]]:
        """Run a simple query to its ReadyForQuery; the rows. Raises `ServerError`."""
        self.send(frontend("Q", text(statement)))
        messages = list(self.until_ready())
        for message in messages:
            if message.kind == "E":
                raise ServerError(message.error_fields())
        return [message.row() for message in messages if message.kind == "D"]

    def cancel(self) -> None:
        """Send a CancelRequest with this session's key; see `send_cancel`."""
        send_cancel(
            self.address,
            self.backend_pid,
            self.cancel_key,
            timeout=self.timeout,
            source=self.source,
        )

    def close(self) -> None:
        """Send Terminate, if the peer still listens, and close."""
        with contextlib.suppress(ConnectionLostError, OSError):
            self.send(frontend("X"))
        self.socket.close()


def send_cancel(
    address: tuple[str, int],
    pid: int,
    key: bytes,
    *,
    timeout: float = 10.0,
    source: str = "",
) -> None:
    """Send a CancelRequest on a connection of its own and wait until the peer has closed it.

    PostgreSQL gives no answer to it; the canceled statement's session gets the error.
    """
    with socket.create_connection(address, timeout, (source, 0) if source else None) as other:
        other.sendall(frontend("", struct.pack("!ii", _CANCEL_CODE, pid) + key))
        with contextlib.suppress(ConnectionResetError):
            other.recv(1)
