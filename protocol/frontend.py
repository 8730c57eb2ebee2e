"""Messages a frontend sends, except the answers of authentication (`protocol.authentication`).

Names and order of fields are those of section "Message Formats" of the PostgreSQL documentation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import construct as cs  # type: ignore[import-untyped, unused-ignore]

from protocol.authentication import AuthenticationResponse, Exchange, parse_authentication_response
from protocol.codec import Count16, Int32, Oid, String, Value, choice, counted
from protocol.errors import UnknownMessageTypeError
from protocol.messages import (
    CopyData,
    CopyDone,
    FormatCode,
    FormatCode16,
    FrontendMessage,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protocol.framing import Frame

_Target: Final = choice(cs.Bytes(1), Target)


@dataclass(frozen=True, slots=True)
class Bind(FrontendMessage):
    """Bind (F): make a portal of a prepared statement.

    No format code means all text, one code means all values, else there is one code a value.
    A parameter of None is NULL.
    """

    TYPE = b"B"
    FORMAT = cs.Struct(
        "portal" / String,
        "statement" / String,
        "parameter_formats" / counted(Count16, FormatCode16),
        "parameters" / counted(Count16, Value),
        "result_formats" / counted(Count16, FormatCode16),
    )
    portal: str = ""
    statement: str = ""
    parameter_formats: tuple[FormatCode, ...] = ()
    parameters: tuple[bytes | None, ...] = field(default=(), repr=False)
    result_formats: tuple[FormatCode, ...] = ()


@dataclass(frozen=True, slots=True)
class Close(FrontendMessage):
    """Close (F): close a prepared statement or a portal."""

    TYPE = b"C"
    FORMAT = cs.Struct("target" / _Target, "name" / String)
    target: Target
    name: str


@dataclass(frozen=True, slots=True)
class CopyFail(FrontendMessage):
    """CopyFail (F): the COPY stream ends in failure, for the reason given."""

    TYPE = b"f"
    FORMAT = cs.Struct("message" / String)
    message: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Describe(FrontendMessage):
    """Describe (F): describe a prepared statement or a portal."""

    TYPE = b"D"
    FORMAT = cs.Struct("target" / _Target, "name" / String)
    target: Target
    name: str


@dataclass(frozen=True, slots=True)
class Execute(FrontendMessage):
    """Execute (F): run a portal for at most `max_rows` rows; 0 means no limit."""

    TYPE = b"E"
    FORMAT = cs.Struct("portal" / String, "max_rows" / Int32)
    portal: str = ""
    max_rows: int = 0


@dataclass(frozen=True, slots=True)
class Flush(FrontendMessage):
    """Flush (F): send what is pending."""

    TYPE = b"H"
    FORMAT = cs.Struct()


@dataclass(frozen=True, slots=True)
class FunctionCall(FrontendMessage):
    """FunctionCall (F): call the function with this object ID; format codes as in Bind."""

    TYPE = b"F"
    FORMAT = cs.Struct(
        "function_oid" / Oid,
        "argument_formats" / counted(Count16, FormatCode16),
        "arguments" / counted(Count16, Value),
        "result_format" / FormatCode16,
    )
    function_oid: int
    argument_formats: tuple[FormatCode, ...]
    arguments: tuple[bytes | None, ...] = field(repr=False)
    result_format: FormatCode


@dataclass(frozen=True, slots=True)
class Parse(FrontendMessage):
    """Parse (F): prepare a statement; a parameter type of 0 is left to the server."""

    TYPE = b"P"
    FORMAT = cs.Struct(
        "statement" / String, "query" / String, "parameter_types" / counted(Count16, Oid)
    )
    statement: str
    query: str = field(repr=False)
    parameter_types: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Query(FrontendMessage):
    """Query (F): run a simple query."""

    TYPE = b"Q"
    FORMAT = cs.Struct("query" / String)
    query: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sync(FrontendMessage):
    """Sync (F): end a pipeline; answered by ReadyForQuery."""

    TYPE = b"S"
    FORMAT = cs.Struct()


@dataclass(frozen=True, slots=True)
class Terminate(FrontendMessage):
    """Terminate (F): the session ends in order."""

    TYPE = b"X"
    FORMAT = cs.Struct()


FRONTEND_MESSAGES: Final[Mapping[bytes, type[FrontendMessage]]] = MappingProxyType(
    {
        message.TYPE: message
        for message in (
            Bind,
            Close,
            CopyData,
            CopyDone,
            CopyFail,
            Describe,
            Execute,
            Flush,
            FunctionCall,
            Parse,
            Query,
            Sync,
            Terminate,
        )
    }
)
"""Frontend messages by type byte; ``p`` is in `AUTHENTICATION_RESPONSES`."""


def parse_frontend(frame: Frame, exchange: Exchange | None = None) -> FrontendMessage:
    """Read a frame that a frontend sent after its StartupMessage.

    Args:
        frame: a whole frame, as `FrameReader` gives it.
        exchange: the authentication exchange under way, if any (see `EXCHANGE_AFTER`).

    Raises:
        UnknownMessageTypeError: no frontend message has this type byte.
        UnexpectedMessageError: a ``p`` message while `exchange` is None.
        RemoteProtocolError: as `Message.parse`.
    """
    if frame.type == AuthenticationResponse.TYPE:
        return parse_authentication_response(frame.payload, exchange)
    message = FRONTEND_MESSAGES.get(frame.type)
    if message is None:
        raise UnknownMessageTypeError("not a frontend message", type_byte=frame.type)
    return message.parse(frame.payload)
