"""One pgbouncer's connection to the hanger: messages in, messages out, nothing blocks."""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Final

from pgkeeper.hanger import datagram
from pgkeeper.log import get_logger
from protocol.control import Register, decode, descriptors, encode
from protocol.errors import RemoteProtocolError

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from protocol.control import Message

    #: Makes a message and its descriptors when its turn comes; None: there is nothing to send.
    Builder = Callable[[], tuple[Message, tuple[int, ...]] | None]

__all__ = ["BouncerLink", "DescriptorsLostError"]

log = get_logger()

#: Messages read in one go before other events of the loop get their turn.
_BURST: Final = 64
#: Seconds until descriptors under way are thought to have been taken.
_RETRY: Final = 0.005


class DescriptorsLostError(RemoteProtocolError):
    """A message came without its descriptors: the kernel had no numbers left for them."""


class BouncerLink:
    """A SOCK_SEQPACKET connection with a queue of its own.

    `on_message(link, message, fds)` owns `fds`, even if it raises.  `on_end(link, error)` comes
    once, when the peer has closed the connection (None) or has broken the protocol; the link counts
    as closed by then.  `pid` is the peer's in our PID namespace, 0 if it has none there.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        *,
        pid: int,
        uid: int,
        on_message: Callable[[BouncerLink, Message, tuple[int, ...]], None],
        on_end: Callable[[BouncerLink, RemoteProtocolError | None], None],
    ) -> None:
        self.pid = pid
        self.uid = uid
        self._loop = loop
        self._connection = connection
        self._on_message = on_message
        self._on_end = on_end
        self._queue: deque[Builder] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._writing = False
        self.closed = False
        loop.add_reader(connection, self._readable)

    @property
    def queued(self) -> int:
        """How many messages wait for the peer to read."""
        return len(self._queue)

    def fileno(self) -> int:
        """The connection's descriptor; -1 once it is closed."""
        return self._connection.fileno()

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Send now or as soon as the peer has room; `fds` stay the caller's and must stay open."""
        self.send_later(lambda: (message, fds))

    def send_now(self, datagram_: bytes, fd: int) -> bool:
        """Send a message that is encoded already; False if that is not possible at once.

        Then nothing has been sent, and `send_later` is for it.
        """
        if self.closed or self._queue:
            return False
        try:
            datagram.send(self._connection, datagram_, (fd,))
        except OSError:
            return False
        return True

    def send_later(self, builder: Builder) -> None:
        """Like `send`, with a message that is made when its turn comes.

        What is sent much later is so made of what is true then: sockets closed meanwhile are left
        out, and their descriptors' new owners are not given away.
        """
        if self.closed:
            return
        self._queue.append(builder)
        if len(self._queue) == 1:
            self._flush()

    def drain(self) -> None:
        """Read all that the peer has sent; for one that is dead, so that nothing is overlooked."""
        while not self.closed and self._read_one():
            pass

    def close(self) -> None:
        """Close the connection and forget what is queued; no callback comes any more."""
        if self.closed:
            return
        self.closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        self._queue.clear()
        if self._retry is not None:
            self._retry.cancel()
        self._stop_writing()
        self._loop.remove_reader(self._connection)
        self._connection.close()

    def _readable(self) -> None:
        for _ in range(_BURST):
            if self.closed or not self._read_one():
                return

    def _read_one(self) -> bool:
        """Handle one message; False if there is none now or ever again."""
        try:
            packet = datagram.receive(self._connection)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            # ECONNRESET: the peer closed with messages of ours unread.
            self._end(None)
            return False
        if packet.ended:
            self._end(None)
            return False
        try:
            message = self._open(packet)
        except RemoteProtocolError as error:
            datagram.close_all(packet.fds)
            self._end(error)
            return False
        try:
            self._on_message(self, message, packet.fds)
        except RemoteProtocolError as error:
            self._end(error)
            return False
        return True

    def _open(self, packet: datagram.Datagram) -> Message:
        if packet.cut:
            raise RemoteProtocolError("a message longer than any can be")
        message = decode(packet.data)
        if packet.fds_cut and not isinstance(message, Register):
            raise DescriptorsLostError("descriptors did not arrive (descriptor limit reached)")
        expected = descriptors(message)
        if len(packet.fds) >= expected.stop or (
            len(packet.fds) < expected.start and not packet.fds_cut
        ):
            raise RemoteProtocolError(
                f"{message.TYPE.name} with {len(packet.fds)} descriptors", field="descriptors"
            )
        return message

    def _end(self, error: RemoteProtocolError | None) -> None:
        if self.closed:
            return
        self.closed = True
        # Whoever hears of it may have more urgent things to do than what is left here.
        try:
            self._on_end(self, error)
        finally:
            self._hang_up()

    def _flush(self) -> None:
        self._retry = None
        while self._queue:
            made = self._queue[0]()
            if made is not None:
                message, fds = made
                try:
                    datagram.send(self._connection, encode(message), fds)
                except (BlockingIOError, InterruptedError):
                    self._start_writing()
                    return
                except OSError as error:
                    if error.errno == errno.ETOOMANYREFS:
                        # Too many descriptors under way.  The connection counts as writable all
                        # the while, so only a timer can wait for them to be taken.
                        self._stop_writing()
                        self._retry = self._loop.call_later(_RETRY, self._flush)
                        return
                    # The peer is gone; reading tells so too, and what it sent last is still there.
                    self._queue.clear()
                    break
            self._queue.popleft()
        self._stop_writing()

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._connection, self._flush)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._connection)
