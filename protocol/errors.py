"""The one family of errors of this package.

Every error is either *local* (the caller asked for something the protocol cannot express) or
*remote* (the bytes of the peer are not what the "Message Formats" chapter of the PostgreSQL
documentation allows). Nothing else escapes from parsing and building.

No error carries the content of a message: a password, a key or a query text that was misread
must not reach a log by way of an exception.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Root of all errors of this package."""


class LocalProtocolError(ProtocolError):
    """The caller asked for a message that cannot be expressed on the wire.

    Attributes:
        reason: what is wrong, without the offending value.
        message: name of the message as the documentation spells it, or None.
        field: name of the field at fault, or None when it is the message as a whole.
    """

    def __init__(
        self, reason: str, *, message: str | None = None, field: str | None = None
    ) -> None:
        self.reason = reason
        self.message = message
        self.field = field
        where = ".".join(part for part in (message, field) if part)
        super().__init__(f"{where}: {reason}" if where else reason)


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that are not a valid message.

    Attributes:
        reason: what is wrong, without the offending content.
        type_byte: the message's type byte, or None for startup-phase packets and where no type
            was seen yet.
        length: the count of bytes at fault: the length word of a frame (it counts itself), the
            declared length of a field, or the size of a payload; None where no length matters.
        offset: where it was noticed, in bytes: from the start of the stream for framing errors,
            from the start of the payload for errors inside a message; None when it has no place.
        field: name of the field being read, or None.
    """

    def __init__(
        self,
        reason: str,
        *,
        type_byte: bytes | None = None,
        length: int | None = None,
        offset: int | None = None,
        field: str | None = None,
    ) -> None:
        self.reason = reason
        self.type_byte = type_byte
        self.length = length
        self.offset = offset
        self.field = field
        facts = {"type": type_byte, "length": length, "offset": offset, "field": field}
        known = ", ".join(f"{name} {fact!r}" for name, fact in facts.items() if fact is not None)
        super().__init__(f"{reason} ({known})" if known else reason)


class UnknownMessageTypeError(RemoteProtocolError):
    """A type byte, or a startup request code, that the documentation does not define."""


class UnexpectedMessageError(RemoteProtocolError):
    """A known message that cannot be understood now: a ``p`` outside any authentication."""


class BadLengthError(RemoteProtocolError):
    """A length that no valid message can have, or one above the reader's size cap."""


class TruncatedMessageError(RemoteProtocolError):
    """The frame, or the stream, ends before the message does."""


class TrailingBytesError(RemoteProtocolError):
    """The message ends before its frame does."""


class InvalidValueError(RemoteProtocolError):
    """A field holds a value outside those the documentation lists."""
