"""Messages a backend sends, except authentication requests (`protocol.authentication`).

Names and order of fields are those of section "Message Formats" of the PostgreSQL documentation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import construct as cs  # type: ignore[import-untyped, unused-ignore]

from protocol.authentication import AuthenticationRequest, parse_authentication_request
from protocol.codec import (
    Code32,
    Count16,
    Int8,
    Int16,
    Int32,
    Oid,
    String,
    Value,
    choice,
    counted,
    record,
    rest,
)
from protocol.errors import UnknownMessageTypeError
from protocol.messages import BackendMessage, CopyData, CopyDone, FormatCode, FormatCode16
from protocol.reports import ErrorResponse, NoticeResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protocol.framing import Frame

MIN_SECRET_KEY: Final = 4
"""Smallest secret key in bytes; before protocol 3.2 also the only size."""
MAX_SECRET_KEY: Final = 256
"""Largest secret key in bytes (protocol 3.2)."""


class TransactionStatus(Enum):
    """State of the transaction as ReadyForQuery tells it."""

    IDLE = b"I"
    IN_TRANSACTION = b"T"
    FAILED = b"E"


@dataclass(frozen=True, slots=True)
class BackendKeyData(BackendMessage):
    """BackendKeyData (B): what a CancelRequest must name; a key of 4 to 256 bytes."""

    TYPE = b"K"
    FORMAT = cs.Struct("process_id" / Int32, "secret_key" / rest(MIN_SECRET_KEY, MAX_SECRET_KEY))
    process_id: int
    secret_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class BindComplete(BackendMessage):
    """BindComplete (B)."""

    TYPE = b"2"
    FORMAT = cs.Struct()


@dataclass(frozen=True, slots=True)
class CloseComplete(BackendMessage):
    """CloseComplete (B)."""

    TYPE = b"3"
    FORMAT = cs.Struct()


@dataclass(frozen=True, slots=True)
class CommandComplete(BackendMessage):
    """CommandComplete (B): the command's tag, such as ``SELECT 1``."""

    TYPE = b"C"
    FORMAT = cs.Struct("tag" / String)
    tag: str


@dataclass(frozen=True, slots=True)
class CopyResponse(BackendMessage):
    """What the three Copy responses share: the overall format and one code a column."""

    FORMAT = cs.Struct(
        "overall_format" / choice(Int8, FormatCode),
        "column_formats" / counted(Count16, FormatCode16),
    )
    overall_format: FormatCode
    column_formats: tuple[FormatCode, ...]


@dataclass(frozen=True, slots=True)
class CopyInResponse(CopyResponse):
    """CopyInResponse (B): the frontend must now send COPY data."""

    TYPE = b"G"


@dataclass(frozen=True, slots=True)
class CopyOutResponse(CopyResponse):
    """CopyOutResponse (B): COPY data follows."""

    TYPE = b"H"


@dataclass(frozen=True, slots=True)
class CopyBothResponse(CopyResponse):
    """CopyBothResponse (B): COPY data in both directions, for streaming replication only."""

    TYPE = b"W"


@dataclass(frozen=True, slots=True)
class DataRow(BackendMessage):
    """DataRow (B): one value a column in the column's format; None is NULL."""

    TYPE = b"D"
    FORMAT = cs.Struct("values" / counted(Count16, Value))
    values: tuple[bytes | None, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class EmptyQueryResponse(BackendMessage):
    """EmptyQueryResponse (B): stands for CommandComplete after an empty query."""

    TYPE = b"I"
    FORMAT = cs.Struct()


@dataclass(frozen=True, slots=True)
class FunctionCallResponse(BackendMessage):
    """FunctionCallResponse (B): the function's result; None is NULL."""

    TYPE = b"V"
    FORMAT = cs.Struct("value" / Value)
    value: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class NegotiateProtocolVersion(BackendMessage):
    """NegotiateProtocolVersion (B): the newest minor version the server speaks, and the protocol
    options (``_pq_.*``) it did not recognize.

    `newest_version` is the Int32 as sent. The documentation calls it a minor version; PostgreSQL
    sends the whole number (3 in the upper 16 bits), others send only the minor. `newest_minor`
    is right for both.
    """

    TYPE = b"v"
    FORMAT = cs.Struct("newest_version" / Code32, "unrecognized_options" / counted(Code32, String))
    newest_version: int
    unrecognized_options: tuple[str, ...] = ()

    @property
    def newest_minor(self) -> int:
        """The minor version alone."""
        return self.newest_version & 0xFFFF


@dataclass(frozen=True, slots=True)
class NoData(BackendMessage):
    """NoData (B): what was described returns no rows."""

    TYPE = b"n"
    FORMAT = cs.Struct()


@dataclass(frozen=True, slots=True)
class NotificationResponse(BackendMessage):
    """NotificationResponse (B): a NOTIFY of the backend `process_id`."""

    TYPE = b"A"
    FORMAT = cs.Struct("process_id" / Int32, "channel" / String, "payload_text" / String)
    process_id: int
    channel: str
    payload_text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ParameterDescription(BackendMessage):
    """ParameterDescription (B): object IDs of the parameters' types."""

    TYPE = b"t"
    FORMAT = cs.Struct("parameter_types" / counted(Count16, Oid))
    parameter_types: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParameterStatus(BackendMessage):
    """ParameterStatus (B): a run-time parameter's current value."""

    TYPE = b"S"
    FORMAT = cs.Struct("name" / String, "value" / String)
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class ParseComplete(BackendMessage):
    """ParseComplete (B)."""

    TYPE = b"1"
    FORMAT = cs.Struct()


@dataclass(frozen=True, slots=True)
class PortalSuspended(BackendMessage):
    """PortalSuspended (B): Execute's row limit was reached."""

    TYPE = b"s"
    FORMAT = cs.Struct()


@dataclass(frozen=True, slots=True)
class ReadyForQuery(BackendMessage):
    """ReadyForQuery (B): a new query cycle can begin."""

    TYPE = b"Z"
    FORMAT = cs.Struct("status" / choice(cs.Bytes(1), TransactionStatus))
    status: TransactionStatus


@dataclass(frozen=True, slots=True)
class FieldDescription:
    """One field of a RowDescription.

    Attributes:
        name: the field's name.
        table_oid: object ID of its table, or 0.
        column_number: attribute number in that table, or 0.
        type_oid: object ID of its data type.
        type_size: ``pg_type.typlen`` in bytes; negative means variable width.
        type_modifier: ``pg_attribute.atttypmod``.
        format: format code; text where it is not yet known (Describe of a statement).
    """

    name: str
    table_oid: int
    column_number: int
    type_oid: int
    type_size: int
    type_modifier: int
    format: FormatCode


@dataclass(frozen=True, slots=True)
class RowDescription(BackendMessage):
    """RowDescription (B): the fields of the rows that follow."""

    TYPE = b"T"
    FORMAT = cs.Struct(
        "fields"
        / counted(
            Count16,
            record(
                FieldDescription,
                cs.Struct(
                    "name" / String,
                    "table_oid" / Oid,
                    "column_number" / Int16,
                    "type_oid" / Oid,
                    "type_size" / Int16,
                    "type_modifier" / Int32,
                    "format" / FormatCode16,
                ),
            ),
        )
    )
    fields: tuple[FieldDescription, ...]


BACKEND_MESSAGES: Final[Mapping[bytes, type[BackendMessage]]] = MappingProxyType(
    {
        message.TYPE: message
        for message in (
            BackendKeyData,
            BindComplete,
            CloseComplete,
            CommandComplete,
            CopyBothResponse,
            CopyData,
            CopyDone,
            CopyInResponse,
            CopyOutResponse,
            DataRow,
            EmptyQueryResponse,
            ErrorResponse,
            FunctionCallResponse,
            NegotiateProtocolVersion,
            NoData,
            NoticeResponse,
            NotificationResponse,
            ParameterDescription,
            ParameterStatus,
            ParseComplete,
            PortalSuspended,
            ReadyForQuery,
            RowDescription,
        )
    }
)
"""Backend messages by type byte; ``R`` is in `AUTHENTICATION_REQUESTS`."""


def parse_backend(frame: Frame) -> BackendMessage:
    """Read a frame that a backend sent.

    Raises:
        UnknownMessageTypeError: no backend message has this type byte.
        RemoteProtocolError: as `Message.parse`.
    """
    if frame.type == AuthenticationRequest.TYPE:
        return parse_authentication_request(frame.payload)
    message = BACKEND_MESSAGES.get(frame.type)
    if message is None:
        raise UnknownMessageTypeError("not a backend message", type_byte=frame.type)
    return message.parse(frame.payload)
