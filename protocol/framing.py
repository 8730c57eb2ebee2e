"""Cutting a stream of bytes into frames, whatever the pieces it arrives in.

After the startup phase each message is a type byte, a length word that counts itself but not the
type byte, and the payload. Startup-phase packets lack the type byte. Source: chapter
"Frontend/Backend Protocol", sections "Messaging Overview" and "Message Formats".

This is the hot path of everything that watches a stream: it uses ``struct``, not ``construct``,
and copies each payload once.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from protocol.errors import BadLengthError, TruncatedMessageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_MESSAGE_LENGTH: Final = 0x3FFF_FFFF
"""Default cap of a length word in bytes: PostgreSQL's own ``PQ_LARGE_MESSAGE_LIMIT``."""

MAX_STARTUP_LENGTH: Final = 10_004
"""Default cap of a startup packet in bytes, length word included: PostgreSQL's
``MAX_STARTUP_PACKET_LENGTH`` of 10,000 counts only what follows that word."""

MIN_MESSAGE_LENGTH: Final = 4
MIN_STARTUP_LENGTH: Final = 8

_HEADER: Final = struct.Struct("!cI")
_STARTUP_HEADER: Final = struct.Struct("!I")


# A named tuple, not a dataclass: one is made for every message that passes, and a tuple costs a
# third of a frozen dataclass.
class Frame(NamedTuple):
    """One message whose meaning has not been looked at.

    Fields:
        type: the type byte, as ``bytes`` of length 1.
        payload: what follows the length word.
    """

    type: bytes
    payload: bytes

    def __repr__(self) -> str:
        """Name the size only: a payload may be a password."""
        return f"Frame(type={self.type!r}, payload=<{len(self.payload)} bytes>)"

    def build(self) -> bytes:
        """Give the frame as bytes, exactly as it came."""
        return _HEADER.pack(self.type, len(self.payload) + MIN_MESSAGE_LENGTH) + self.payload


class _Reader:
    """A buffer with an absolute position; the base of both readers."""

    def __init__(self, max_length: int, offset: int) -> None:
        self._buffer = bytearray()
        self._position = 0
        self._base = offset
        self._max_length = max_length

    @property
    def offset(self) -> int:
        """Absolute position in the stream, in bytes, of the first byte not yet given out."""
        return self._base + self._position

    @property
    def buffered(self) -> int:
        """Count of bytes that were fed and not yet given out."""
        return len(self._buffer) - self._position

    def feed(self, data: bytes) -> None:
        """Append what was received; any split of the stream gives the same frames."""
        if self._position:
            del self._buffer[: self._position]
            self._base += self._position
            self._position = 0
        self._buffer += data

    def take_rest(self) -> bytes:
        """Give out all buffered bytes uninterpreted, for whoever reads the stream from here.

        Used where the framing changes: after a StartupMessage, or when TLS begins.
        """
        rest = bytes(memoryview(self._buffer)[self._position :])
        self._position = len(self._buffer)
        return rest

    def end_of_stream(self) -> None:
        """Say that the peer will send no more.

        Raises:
            TruncatedMessageError: the stream ends inside a message, or behind a length that made
                the reader fail.
        """
        if self.buffered:
            raise TruncatedMessageError(
                "the stream ends inside a message", length=self.buffered, offset=self.offset
            )


class FrameReader(_Reader):
    """Typed messages out of a stream::

        reader.feed(data)
        for frame in reader:
            ...

    It does not know which type bytes exist; ``parse_frontend`` and ``parse_backend`` do.
    """

    def __init__(self, *, max_length: int = MAX_MESSAGE_LENGTH, offset: int = 0) -> None:
        """Start at a message boundary.

        Args:
            max_length: largest length word accepted, in bytes, the word itself included.
            offset: absolute position of that boundary in the stream, for error reports.
        """
        super().__init__(max_length, offset)

    def next_frame(self) -> Frame | None:
        """Give the next complete frame, or None when more bytes are needed.

        Raises:
            BadLengthError: a length below 4 or above the cap. The framing is lost for good: the
                reader stays where it is, and every later call raises the same.
        """
        buffer, position = self._buffer, self._position
        if len(buffer) - position < _HEADER.size:
            return None
        type_byte, length = _HEADER.unpack_from(buffer, position)
        if not MIN_MESSAGE_LENGTH <= length <= self._max_length:
            raise BadLengthError(
                "message length out of range",
                type_byte=type_byte,
                length=length,
                offset=self.offset,
            )
        end = position + 1 + length
        if len(buffer) < end:
            return None
        self._position = end
        return Frame(type_byte, bytes(memoryview(buffer)[position + _HEADER.size : end]))

    def __iter__(self) -> Iterator[Frame]:
        """Give all complete frames; end where more bytes are needed. Raises as `next_frame`."""
        while (frame := self.next_frame()) is not None:
            yield frame


class StartupReader(_Reader):
    """Startup-phase packets out of a frontend's stream.

    A frontend may send SSLRequest or GSSENCRequest, then a StartupMessage or CancelRequest. After
    the StartupMessage hand `take_rest` to a `FrameReader`. Bytes behind an SSLRequest or
    GSSENCRequest that is granted must not be used: they came in the clear (CVE-2021-23214).
    """

    def __init__(self, *, max_length: int = MAX_STARTUP_LENGTH, offset: int = 0) -> None:
        """Start at a packet boundary; the arguments mean what they mean for `FrameReader`."""
        super().__init__(max_length, offset)

    def next_packet(self) -> bytes | None:
        """Give what follows the length word of the next packet, or None if more is needed.

        Raises:
            BadLengthError: a length below 8 or above the cap; also what a direct TLS ClientHello
                looks like. Every later call raises the same.
        """
        buffer, position = self._buffer, self._position
        if len(buffer) - position < _STARTUP_HEADER.size:
            return None
        (length,) = _STARTUP_HEADER.unpack_from(buffer, position)
        if not MIN_STARTUP_LENGTH <= length <= self._max_length:
            raise BadLengthError(
                "startup packet length out of range", length=length, offset=self.offset
            )
        end = position + length
        if len(buffer) < end:
            return None
        self._position = end
        return bytes(memoryview(buffer)[position + _STARTUP_HEADER.size : end])
