"""What all messages share, and those that both sides send.

`FrontendMessage` and `BackendMessage` are directions as the PostgreSQL documentation uses the
words: from the client program, and from the server process (or a pooler speaking as one).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum, IntEnum
from typing import ClassVar, Final, Self

import construct as cs  # type: ignore[import-untyped, unused-ignore]

from protocol.codec import Format, Int16, choice, decode, encode, rest
from protocol.errors import LocalProtocolError
from protocol.framing import MIN_MESSAGE_LENGTH, Frame

_INT32_MAX: Final = 0x7FFF_FFFF


class FormatCode(IntEnum):
    """How a value is written, in Bind, RowDescription and the Copy responses."""

    TEXT = 0
    BINARY = 1


class Target(Enum):
    """What Close and Describe name."""

    STATEMENT = b"S"
    PORTAL = b"P"


FormatCode16: Final = choice(Int16, FormatCode)


@dataclass(frozen=True, slots=True)
class Message:
    """One message with a type byte.

    Subclasses name their type byte in `TYPE` and declare their payload in `FORMAT`, whose fields
    have the names of the dataclass's. Fields with secrets or with what users typed and read
    (query texts, values, rows) are left out of ``repr``.
    """

    TYPE: ClassVar[bytes]
    FORMAT: ClassVar[Format]

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Read the payload of a frame of this type.

        Raises:
            RemoteProtocolError: the payload is truncated, too long, or holds values that the
                documentation does not list.
        """
        values = decode(cls.FORMAT, payload, type_byte=cls.TYPE)
        return cls(**{item.name: values[item.name] for item in fields(cls)})

    def payload(self) -> bytes:
        """Give the message without type byte and length word.

        Raises:
            LocalProtocolError: a field holds what the format cannot express.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return encode(self.FORMAT, values, message=type(self).__name__)

    def build(self) -> bytes:
        """Give the whole message as bytes.

        Raises:
            LocalProtocolError: a field holds what the format cannot express, or the message is
                longer than its Int32 length can say.
        """
        payload = self.payload()
        if len(payload) > _INT32_MAX - MIN_MESSAGE_LENGTH:
            raise LocalProtocolError("longer than 2 GiB", message=type(self).__name__)
        return Frame(self.TYPE, payload).build()


@dataclass(frozen=True, slots=True)
class FrontendMessage(Message):
    """A message that a frontend sends (F)."""


@dataclass(frozen=True, slots=True)
class BackendMessage(Message):
    """A message that a backend sends (B)."""


@dataclass(frozen=True, slots=True)
class CopyData(FrontendMessage, BackendMessage):
    """CopyData (F & B): a piece of a COPY stream, cut anywhere by a frontend, one row a message
    by a backend."""

    TYPE = b"d"
    FORMAT = cs.Struct("data" / rest())
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CopyDone(FrontendMessage, BackendMessage):
    """CopyDone (F & B): the COPY stream is complete."""

    TYPE = b"c"
    FORMAT = cs.Struct()
