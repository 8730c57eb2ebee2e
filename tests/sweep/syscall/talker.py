"""A client whose every received byte is kept, to be compared with another run's."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import itertools
import re
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

from testbed.rawclient import frontend, text
from testbed.waiting import wait_until
from tests.sweep.syscall.unread import unread

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION_3_0 = 196608
_SSL_REQUEST = 80877103
_CANCEL_REQUEST = 80877102
_CLIENT_NONCE = b"sweepsweepsweepsweep"
_CHUNK = 65536
# Numbers of prepared statements grow from run to run, and with them the message.
_STATEMENT = re.compile(rb"PGBOUNCER_\d+")
# A peer that has taken nothing for so long is taken to be stuck.
_STUCK_S = 0.03
_PATIENCE_S = 5.0


class LostError(Exception):
    """The peer closed or reset the connection, or did not answer in time, while we expected more.

    Never retried: the session was to survive.
    """


def startup(
    user: str, database: str, parameters: Mapping[str, str] | None = None, *, minor: int = 0
) -> bytes:
    """A StartupMessage of protocol 3.`minor`."""
    options = {"user": user, "database": database, **(parameters or {})}
    pairs = b"".join(text(name) + text(value) for name, value in options.items())
    return frontend("", struct.pack("!i", _VERSION_3_0 + minor), pairs, b"\0")


def query(statement: str) -> bytes:
    """A Query message."""
    return frontend("Q", text(statement))


def parse(name: str, statement: str) -> bytes:
    """A Parse message without parameter types."""
    return frontend("P", text(name), text(statement), struct.pack("!h", 0))


def bind(name: str, *values: str) -> bytes:
    """A Bind message of the unnamed portal, with values in text format."""
    packed = b"".join(struct.pack("!i", len(v.encode())) + v.encode() for v in values)
    head = text("") + text(name) + struct.pack("!hh", 0, len(values))
    return frontend("B", head, packed, struct.pack("!h", 0))


def describe(name: str) -> bytes:
    """A Describe message of a prepared statement."""
    return frontend("D", b"S", text(name))


def copy_data(data: bytes) -> bytes:
    """A CopyData message."""
    return frontend("d", data)


def execute(limit: int = 0) -> bytes:
    """An Execute message of the unnamed portal; `limit` rows at most, 0 for all."""
    return frontend("E", text(""), struct.pack("!i", limit))


def close_statement(name: str) -> bytes:
    """A Close message of a prepared statement."""
    return frontend("C", b"S", text(name))


SYNC = frontend("S")
FLUSH = frontend("H")
COPY_DONE = frontend("c")
TERMINATE = frontend("X")


class Talker:
    """One client socket to the pooler; it never reconnects.

    `transcript` holds what was received, byte by byte, with the random parts of four messages
    (cancel key, MD5 salt, the server's SCRAM nonce and signature), the number of a prepared
    statement in an error, the places and times in a replication stream and its own address replaced
    by dots of the same length; without keepalives, which come by the clock. `receive_buffer` and
    `send_buffer` set SO_RCVBUF and SO_SNDBUF, in bytes, before connecting. A read that brings
    nothing for `timeout` seconds raises `LostError`.
    """

    def __init__(
        self,
        name: str,
        port: int,
        *,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
        timeout: float = 5.0,
    ) -> None:
        self.name = name
        self.transcript = bytearray()
        self.key = b""
        self._buffer = bytearray()
        self._address = ("127.0.0.1", port)
        self._scram = b""
        self._replicates = False
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if send_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(self._address)
        #: Our own address, as the pooler knows it.
        self.address = "{}:{}".format(*self.socket.getsockname())

    def send(self, *data: bytes) -> None:
        """Send bytes in one piece. Raises `LostError`."""
        try:
            self.socket.sendall(b"".join(data))
        except OSError as error:
            raise LostError(f"{self.name}: sending: {error}") from None

    def send_apart(self, data: bytes, *cuts: int) -> None:
        """Send bytes in pieces that end at `cuts`, each when the pooler has read the last one.

        Raises `LostError`, or `WaitTimeoutError` if it does not read.
        """
        for start, end in itertools.pairwise([0, *cuts, len(data)]):
            self.send(data[start:end])
            self.await_read()

    def await_read(self) -> None:
        """Return when the pooler has read all we sent. Raises as `send_apart`."""
        try:
            wait_until(lambda: not unread(self.socket), what="the pooler reads", poll_s=0.0005)
        except OSError as error:
            raise LostError(f"{self.name}: {error.strerror}") from None

    def await_answer(self) -> None:
        """Return when something has come that we have not read."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except OSError as error:
            raise LostError(f"{self.name}: {error.strerror}") from None

    def stuff(self, data: bytes) -> bytes:
        """Send without reading until the pooler takes no more; what is left."""
        view = memoryview(data)
        while view and select.select([], [self.socket], [], _STUCK_S)[1]:
            view = view[self._send_some(view) :]
        return bytes(view)

    def pump(self, data: bytes) -> None:
        """Send, reading what comes meanwhile: who answers may take no more until it is read."""
        view = memoryview(data)
        while view:
            readable, writable, _ = select.select([self.socket], [self.socket], [], _PATIENCE_S)
            if readable:
                self._receive(_CHUNK)
            if writable:
                view = view[self._send_some(view) :]
            if not readable and not writable:
                raise LostError(f"{self.name}: nothing moves")

    def _send_some(self, data: memoryview) -> int:
        try:
            return self.socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LostError(f"{self.name}: sending: {error}") from None

    def ask_for_tls(self) -> None:
        """SSLRequest, which the pooler is expected to refuse with one byte."""
        self.send(struct.pack("!ii", 8, _SSL_REQUEST))
        while not self._buffer:
            self._receive(1)
        self.transcript += self._buffer
        self._buffer.clear()

    def start_up(
        self,
        user: str,
        database: str,
        parameters: Mapping[str, str] | None = None,
        *,
        minor: int = 0,
        then: bytes = b"",
    ) -> None:
        """Send the StartupMessage, and in the same segment what is `then` to follow it."""
        self._replicates = "replication" in (parameters or {})
        self.send(startup(user, database, parameters, minor=minor), then)

    def log_in(
        self,
        user: str,
        database: str,
        secret: str = "",
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        """Everything up to the first ReadyForQuery, or an error."""
        self.start_up(user, database, parameters)
        self.finish_login(user, secret)

    def finish_login(self, user: str, secret: str = "", *, then: bytes = b"") -> None:
        """Answer what is asked for up to the first ReadyForQuery, or an error.

        `then` goes out in the same piece as the last answer. Knows cleartext passwords, MD5 and
        SCRAM-SHA-256.
        """
        while True:
            kind, body = self.next_message()
            if kind == b"R":
                self._authenticate(body, user, secret, then)
            elif kind in (b"Z", b"E"):
                return

    def ready(self, times: int = 1) -> None:
        """Read up to the `times`-th ReadyForQuery."""
        for _ in range(times):
            while self.next_message()[0] != b"Z":
                pass

    def ask(self, *messages: bytes, times: int = 1) -> None:
        """Send and read up to the `times`-th ReadyForQuery."""
        self.send(*messages)
        self.ready(times)

    def until(self, wanted: bytes) -> bytes:
        """Read up to a message of the type `wanted`; its body."""
        while True:
            kind, body = self.next_message()
            if kind == wanted:
                return body

    def next_message(self, *, chunk: int = _CHUNK, pause: float = 0.0) -> tuple[bytes, bytes]:
        """The next message, type and body. `chunk` and `pause` make it a slow reader."""
        while len(self._buffer) < 5:
            self._receive(chunk, pause)
        length = 1 + int(struct.unpack_from("!i", self._buffer, 1)[0])
        while len(self._buffer) < length:
            self._receive(chunk, pause)
        message = bytes(self._buffer[:length])
        del self._buffer[:length]
        if message[:1] == b"K":
            self.key = message[5:]
        if self._replicates and message[:1] == b"d":
            self.transcript += _without_place(message)
        else:
            self.transcript += _without_randomness(message).replace(
                self.address.encode(), b"." * len(self.address)
            )
        return message[:1], message[5:]

    def cancel(self) -> None:
        """A CancelRequest with our key on a connection of its own; returns when it is closed."""
        with self._ask_to_cancel() as other, contextlib.suppress(ConnectionResetError):
            other.recv(1)

    def send_cancel(self) -> None:
        """As `cancel`, without waiting; the connection is closed by us."""
        self._ask_to_cancel().close()

    def _ask_to_cancel(self) -> socket.socket:
        other = socket.create_connection(self._address, self.socket.gettimeout())
        other.sendall(frontend("", struct.pack("!i", _CANCEL_REQUEST), self.key))
        return other

    def finish(self, *, terminate: bool = True) -> None:
        """Say Terminate, or only shut our side, and read what still comes up to the end."""
        with contextlib.suppress(OSError):
            if terminate:
                self.socket.sendall(TERMINATE)
            else:
                self.socket.shutdown(socket.SHUT_WR)
        self.drain()

    def drain(self) -> None:
        """Read up to the end that the peer makes, and close."""
        with self.socket:
            try:
                while True:
                    self.next_message()
            except LostError as error:
                self.transcript += self._buffer
                self.transcript += f"<{str(error).partition(': ')[2]}>".encode()

    def drain_cut(self, whole: bytes) -> None:
        """Read up to the end of the connection, which comes before `whole` is complete.

        Raises `LostError` if anything else than a part of it came; where it ends is left open.
        """
        came = bytes(self._buffer)
        self._buffer.clear()
        with self.socket:
            while data := self._some():
                came += data
        if not whole.startswith(came) or came == whole:
            at = next((i for i, (a, b) in enumerate(zip(came, whole, strict=False)) if a != b), -1)
            raise LostError(f"{self.name}: {len(came)} bytes, other ones at {at}: {came[-90:]!r}")

    def _some(self) -> bytes:
        try:
            return self.socket.recv(_CHUNK)
        except OSError as error:
            raise LostError(f"{self.name}: {error.strerror}") from None

    def abandon(self) -> None:
        """Close without a word, as a client that crashed; what came before is compared."""
        self.socket.close()

    def reset(self) -> None:
        """Close with an RST; what came before is compared."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _receive(self, size: int, pause: float = 0.0) -> None:
        if pause:
            time.sleep(pause)
        try:
            data = self.socket.recv(size)
        except TimeoutError:
            raise LostError(f"{self.name}: no answer") from None
        except OSError as error:
            raise LostError(f"{self.name}: {error.strerror}") from None
        if not data:
            raise LostError(f"{self.name}: end")
        self._buffer += data

    def _authenticate(self, body: bytes, user: str, secret: str, then: bytes) -> None:
        (code,) = struct.unpack_from("!i", body)
        if code == 3:
            self.send(frontend("p", text(secret)), then)
        elif code == 5:
            inner = hashlib.md5((secret + user).encode()).hexdigest()
            outer = hashlib.md5(inner.encode() + body[4:8]).hexdigest()
            self.send(frontend("p", text("md5" + outer)), then)
        elif code == 10:
            first = b"n,,n=,r=" + _CLIENT_NONCE
            head = text("SCRAM-SHA-256") + struct.pack("!i", len(first))
            self.send(frontend("p", head, first))
        elif code == 11:
            self.send(frontend("p", self._scram_proof(body[4:], secret)), then)
        elif code == 12:
            signature = base64.b64decode(body[4:].removeprefix(b"v="))
            if signature != self._scram:
                raise LostError(f"{self.name}: wrong SCRAM signature of the server")

    def _scram_proof(self, challenge: bytes, secret: str) -> bytes:
        """RFC 5802's client-final-message; keeps the signature that the server must send."""
        fields = dict(part.split(b"=", 1) for part in challenge.split(b","))
        if not fields[b"r"].startswith(_CLIENT_NONCE):
            raise LostError(f"{self.name}: the server changed our nonce")
        rounds = int(fields[b"i"])
        salt = base64.b64decode(fields[b"s"])
        salted = hashlib.pbkdf2_hmac("sha256", secret.encode(), salt, rounds)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        final = b"c=biws,r=" + fields[b"r"]
        signed = b"n=,r=" + _CLIENT_NONCE + b"," + challenge + b"," + final
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._scram = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        return final + b",p=" + base64.b64encode(proof)


def _without_randomness(message: bytes) -> bytes:
    """The message with dots where the server puts random bytes, or what follows from them."""
    if message[:1] == b"K":
        return message[:5] + b"." * (len(message) - 5)
    if message[:1] == b"E" and (cleaned := _STATEMENT.sub(b"PGBOUNCER_n", message)) != message:
        return cleaned[:1] + b"...." + cleaned[5:]
    if message[:1] == b"R":
        (code,) = struct.unpack_from("!i", message, 5)
        if code == 5:
            return message[:9] + b"." * 4
        if code == 11:
            start = message.index(_CLIENT_NONCE) + len(_CLIENT_NONCE)
            end = message.index(b",", start)
            return message[:start] + b"." * (end - start) + message[end:]
        if code == 12:
            return message[:11] + b"." * (len(message) - 11)
    return message


def _without_place(message: bytes) -> bytes:
    """A message of a replication stream without places in the log and time; no keepalive."""
    head, kind, data = message[:5], message[5:6], message[30:]
    return b"" if kind == b"k" else head + kind + b"." * 24 + data
