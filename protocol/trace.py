"""Messages as lines of text, in the manner of libpq's ``PQtrace`` (``fe-trace.c``)::

    F  27  Query          "SSSS"
    B  5   ReadyForQuery  I

Direction, length word, name and fields, separated by tabs. Three rules decide what is seen:

* secrets (passwords, SASL and GSS data, salts, keys) are never shown, nor is a password's length;
* content (query texts, parameter values, rows, COPY data, error texts, which quote all of these)
  is shown only when asked for;
* regress mode hides what changes from run to run (process and object IDs, source positions in
  errors), as libpq's ``PQTRACE_REGRESS_MODE`` does, so that lines can be compared.

What is hidden reads ``"SSSS"`` (text), ``'BBBB'`` (bytes), ``NNNN`` or ``NN`` (number), as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from protocol import authentication as auth
from protocol import backend, frontend, messages, reports, startup
from protocol.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Direction(Enum):
    """Who sent a message."""

    FRONTEND = "F"
    BACKEND = "B"


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What a trace shows.

    Attributes:
        regress: hide what changes from run to run.
        show_content: show query texts, values, rows, COPY data and error texts. Never switched on
            by default: these are the users' own.
    """

    regress: bool = False
    show_content: bool = False


Traceable: TypeAlias = messages.Message | startup.StartupPacket
_Show: TypeAlias = Callable[[Any, TraceOptions], str]

_HIDDEN_TEXT: Final = ' "SSSS"'
_HIDDEN_BYTES: Final = " 'BBBB'"
_HIDDEN_NUMBER: Final = " NNNN"

# Error fields that hold no free text: severity, SQLSTATE, positions, names of objects.
_PLAIN_REPORT_FIELDS: Final = frozenset("SVCPpFLRstcdn")
_SOURCE_REPORT_FIELDS: Final = frozenset("FLR")


def _printable(data: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in data)


def _text(value: str, _options: TraceOptions) -> str:
    return f' "{_printable(value.encode("utf-8", "surrogateescape"))}"'


def _content_text(value: str, options: TraceOptions) -> str:
    return _text(value, options) if options.show_content else _HIDDEN_TEXT


def _secret_text(_value: str, _options: TraceOptions) -> str:
    return _HIDDEN_TEXT


def _content_bytes(value: bytes, options: TraceOptions) -> str:
    return f" '{_printable(value)}'" if options.show_content else _HIDDEN_BYTES


def _secret_bytes(_value: bytes, _options: TraceOptions) -> str:
    return _HIDDEN_BYTES


def _nullable(show: _Show) -> _Show:
    def show_nullable(value: bytes | None, options: TraceOptions) -> str:
        return " -1" if value is None else f" {len(value)}{show(value, options)}"

    return show_nullable


def _number(value: int, _options: TraceOptions) -> str:
    return f" {int(value)}"


def _changing_number(value: int, options: TraceOptions) -> str:
    return _HIDDEN_NUMBER if options.regress else _number(value, options)


def _letter(value: Enum, _options: TraceOptions) -> str:
    return f" {_printable(value.value)}"


def _counted(show: _Show) -> _Show:
    def show_counted(values: tuple[Any, ...], options: TraceOptions) -> str:
        return f" {len(values)}" + "".join(show(value, options) for value in values)

    return show_counted


def _mechanisms(names: tuple[str, ...], options: TraceOptions) -> str:
    return "".join(_text(name, options) for name in (*names, ""))


def _row_field(item: backend.FieldDescription, options: TraceOptions) -> str:
    return "".join(show(getattr(item, name), options) for name, show in _ROW_FIELD)


def _report_fields(items: tuple[tuple[str, str], ...], options: TraceOptions) -> str:
    shown = []
    for code, value in items:
        plain = code in _PLAIN_REPORT_FIELDS
        hidden = options.regress and code in _SOURCE_REPORT_FIELDS
        text = _text if plain else _content_text
        shown.append(f" {_printable(code.encode('latin-1'))}")
        shown.append(_HIDDEN_TEXT if hidden else text(value, options))
    return "".join(shown) + " \\x00"


def _version(value: int, options: TraceOptions) -> str:
    return _number(value >> 16, options) + _number(value & 0xFFFF, options)


def _startup_parameters(pairs: tuple[tuple[str, str], ...], options: TraceOptions) -> str:
    # ``options`` is free text: any setting may be in it.
    return "".join(
        _text(name, options) + (_content_text if name == "options" else _text)(value, options)
        for name, value in pairs
    )


_codes: Final = _counted(_number)
_values: Final = _counted(_nullable(_content_bytes))
_oids: Final = _counted(_changing_number)
_copy_formats: Final = (("overall_format", _number), ("column_formats", _codes))
_secret_data: Final = (("data", _secret_bytes),)
_report: Final = (("fields", _report_fields),)
_target: Final = (("target", _letter), ("name", _text))

_ROW_FIELD: Final[tuple[tuple[str, _Show], ...]] = (
    ("name", _text),
    ("table_oid", _changing_number),
    ("column_number", _number),
    ("type_oid", _changing_number),
    ("type_size", _number),
    ("type_modifier", _number),
    ("format", _number),
)

_SHOWN: Final[Mapping[type, tuple[tuple[str, _Show], ...]]] = MappingProxyType(
    {
        auth.AuthenticationOk: (),
        auth.AuthenticationKerberosV5: (),
        auth.AuthenticationCleartextPassword: (),
        auth.AuthenticationMD5Password: (("salt", _secret_bytes),),
        auth.AuthenticationGSS: (),
        auth.AuthenticationGSSContinue: _secret_data,
        auth.AuthenticationSSPI: (),
        auth.AuthenticationSASL: (("mechanisms", _mechanisms),),
        auth.AuthenticationSASLContinue: _secret_data,
        auth.AuthenticationSASLFinal: _secret_data,
        auth.PasswordMessage: (("password", _secret_text),),
        auth.SASLInitialResponse: (("mechanism", _text), ("data", _nullable(_secret_bytes))),
        auth.SASLResponse: _secret_data,
        auth.GSSResponse: _secret_data,
        messages.CopyData: (("data", _content_bytes),),
        messages.CopyDone: (),
        frontend.Bind: (
            ("portal", _text),
            ("statement", _text),
            ("parameter_formats", _codes),
            ("parameters", _values),
            ("result_formats", _codes),
        ),
        frontend.Close: _target,
        frontend.CopyFail: (("message", _content_text),),
        frontend.Describe: _target,
        frontend.Execute: (("portal", _text), ("max_rows", _number)),
        frontend.Flush: (),
        frontend.FunctionCall: (
            ("function_oid", _changing_number),
            ("argument_formats", _codes),
            ("arguments", _values),
            ("result_format", _number),
        ),
        frontend.Parse: (
            ("statement", _text),
            ("query", _content_text),
            ("parameter_types", _oids),
        ),
        frontend.Query: (("query", _content_text),),
        frontend.Sync: (),
        frontend.Terminate: (),
        backend.BackendKeyData: (
            ("process_id", _changing_number),
            ("secret_key", _secret_bytes),
        ),
        backend.BindComplete: (),
        backend.CloseComplete: (),
        backend.CommandComplete: (("tag", _text),),
        backend.CopyBothResponse: _copy_formats,
        backend.CopyInResponse: _copy_formats,
        backend.CopyOutResponse: _copy_formats,
        backend.DataRow: (("values", _values),),
        backend.EmptyQueryResponse: (),
        reports.ErrorResponse: _report,
        backend.FunctionCallResponse: (("value", _nullable(_content_bytes)),),
        backend.NegotiateProtocolVersion: (
            ("newest_version", _number),
            ("unrecognized_options", _counted(_text)),
        ),
        backend.NoData: (),
        reports.NoticeResponse: _report,
        backend.NotificationResponse: (
            ("process_id", _changing_number),
            ("channel", _text),
            ("payload_text", _content_text),
        ),
        backend.ParameterDescription: (("parameter_types", _oids),),
        backend.ParameterStatus: (("name", _text), ("value", _text)),
        backend.ParseComplete: (),
        backend.PortalSuspended: (),
        backend.ReadyForQuery: (("status", _letter),),
        backend.RowDescription: (("fields", _counted(_row_field)),),
        startup.StartupMessage: (
            ("protocol_version", _version),
            ("parameters", _startup_parameters),
        ),
        startup.CancelRequest: (
            ("CODE", _version),
            ("process_id", _changing_number),
            ("secret_key", _secret_bytes),
        ),
        startup.SSLRequest: (("CODE", _version),),
        startup.GSSENCRequest: (("CODE", _version),),
    }
)

_SENDS: Final[Mapping[Direction, tuple[type, ...]]] = MappingProxyType(
    {
        Direction.FRONTEND: (messages.FrontendMessage, startup.StartupPacket),
        Direction.BACKEND: (messages.BackendMessage,),
    }
)
_LENGTH_HIDDEN: Final = (auth.PasswordMessage,)
# Source positions differ in length too.
_LENGTH_CHANGES: Final = (reports.ErrorResponse, reports.NoticeResponse)


def _length(message: Traceable, size: int, options: TraceOptions) -> str:
    hidden = isinstance(message, _LENGTH_HIDDEN) or (
        options.regress and isinstance(message, _LENGTH_CHANGES)
    )
    return "NN" if hidden else str(size)


def trace_message(
    direction: Direction, message: Traceable, options: TraceOptions = TraceOptions()
) -> str:
    """Give one line of text, without a line end, for a message or startup packet.

    All but printable ASCII is escaped, so a message cannot forge another line.

    Raises:
        LocalProtocolError: a message that cannot be built, or that this side does not send.
    """
    name = type(message).__name__
    if not isinstance(message, _SENDS[direction]):
        raise LocalProtocolError(f"not sent by a {direction.name.lower()}", message=name)
    # The type byte is not part of the length.
    size = len(message.build()) - isinstance(message, messages.Message)
    fields = _SHOWN[type(message)]
    body = "".join(show(getattr(message, field), options) for field, show in fields)
    line = f"{direction.value}\t{_length(message, size, options)}\t{name}"
    return f"{line}\t{body}" if body else line


def trace_encryption_reply(
    request: startup.SSLRequest | startup.GSSENCRequest, reply: startup.EncryptionReply
) -> str:
    """Give one line of text for the single byte that answers `request`."""
    name = type(request).__name__.replace("Request", "Response")
    return f"{Direction.BACKEND.value}\t1\t{name}\t{_letter(reply, TraceOptions())}"
