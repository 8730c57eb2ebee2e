"""The bricks of which message formats are declared, and the edge at which ``construct`` ends.

The data types are those of section "Message Data Types" of the PostgreSQL documentation. What
``construct`` raises becomes one of our errors in `decode` and `encode`, raised outside the
``except`` block: a chained ``construct`` error would show the offending bytes in a traceback.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import construct as cs  # type: ignore[import-untyped, unused-ignore]

from protocol.errors import (
    BadLengthError,
    InvalidValueError,
    LocalProtocolError,
    RemoteProtocolError,
    TrailingBytesError,
    TruncatedMessageError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import Enum

Format: TypeAlias = Any
"""A ``construct`` declaration; that library is untyped."""

Int8: Final = cs.Int8ub
Int16: Final = cs.Int16sb
Int32: Final = cs.Int32sb
# The server reads counts and object IDs as unsigned, whatever the documentation's "Int" says:
# 65,535 parameters are allowed, and object IDs run to 2^32 - 1.
Count16: Final = cs.Int16ub
Oid: Final = cs.Int32ub
Code32: Final = cs.Int32ub


class _LengthError(cs.ConstructError):  # type: ignore[misc]
    """A length that is wrong in itself, as opposed to bytes that are missing."""


class _String(cs.Construct):  # type: ignore[misc]
    """String: bytes up to a zero byte, as ``str``.

    The encoding is the client's and unknown here: UTF-8 with surrogate escapes keeps every byte.
    """

    def _parse(self, stream: io.BytesIO, _context: Any, path: str) -> str:
        # construct's CString reads byte by byte; queries are long.
        data, start = stream.getvalue(), stream.tell()
        end = data.find(b"\0", start)
        if end < 0:
            stream.seek(len(data))
            raise cs.StreamError("a string without its zero byte", path=path)
        stream.seek(end + 1)
        return data[start:end].decode("utf-8", "surrogateescape")

    def _build(self, text: Any, stream: io.BytesIO, _context: Any, path: str) -> Any:
        if not isinstance(text, str) or "\0" in text:
            raise cs.StringError("needs a str without zero bytes", path=path)
        stream.write(text.encode("utf-8", "surrogateescape") + b"\0")
        return text


class _Value(cs.Construct):  # type: ignore[misc]
    """Int32 length and that many bytes, or -1 for NULL, as ``bytes | None``."""

    def _parse(self, stream: io.BytesIO, context: Any, path: str) -> bytes | None:
        length = Int32._parsereport(stream, context, path)
        if length == -1:
            return None
        if length < -1:
            raise _LengthError("negative length of a value", path=path)
        value = stream.read(length)
        if len(value) < length:
            raise cs.StreamError("a value ends early", path=path)
        return value

    def _build(self, value: Any, stream: io.BytesIO, context: Any, path: str) -> Any:
        if value is not None and not isinstance(value, bytes):
            raise cs.ConstructError("needs bytes or None", path=path)
        Int32._build(-1 if value is None else len(value), stream, context, path)
        stream.write(value or b"")
        return value


class _Rest(cs.Construct):  # type: ignore[misc]
    """Byte*n* up to the end of the message."""

    def __init__(self, least: int, most: int | None) -> None:
        super().__init__()
        self._least = least
        self._most = most

    def _fits(self, length: int) -> bool:
        return length >= self._least and (self._most is None or length <= self._most)

    def _parse(self, stream: io.BytesIO, _context: Any, path: str) -> bytes:
        rest = stream.read()
        if not self._fits(len(rest)):
            raise _LengthError("a field of a size that is not allowed", path=path)
        return rest

    def _build(self, data: Any, stream: io.BytesIO, _context: Any, path: str) -> Any:
        if not isinstance(data, bytes) or not self._fits(len(data)):
            raise cs.ConstructError("needs bytes of an allowed size", path=path)
        stream.write(data)
        return data


class _UntilZero(cs.Construct):  # type: ignore[misc]
    """Items up to a zero byte where the next item would begin, as a tuple."""

    def __init__(self, item: Format) -> None:
        super().__init__()
        self._item = item

    def _parse(self, stream: io.BytesIO, context: Any, path: str) -> tuple[Any, ...]:
        items = []
        while (head := stream.read(1)) != b"\0":
            if not head:
                raise cs.StreamError("a list without its zero byte", path=path)
            stream.seek(-1, io.SEEK_CUR)
            items.append(self._item._parsereport(stream, context, path))
        return tuple(items)

    def _build(self, items: Any, stream: io.BytesIO, context: Any, path: str) -> Any:
        for item in items:
            start = stream.tell()
            self._item._build(item, stream, context, path)
            if stream.getbuffer()[start] == 0:
                raise cs.ConstructError("an empty name would end the list", path=path)
        stream.write(b"\0")
        return items


String: Final = _String()
Value: Final = _Value()


def rest(least: int = 0, most: int | None = None) -> Format:
    """Declare Byte*n* that ends with the message and has `least` to `most` bytes."""
    return _Rest(least, most)


def until_zero(item: Format) -> Format:
    """Declare a list that a zero byte ends; the value is a tuple."""
    return _UntilZero(item)


def counted(count: Format, item: Format) -> Format:
    """Declare a list behind its count; the value is a tuple."""
    return cs.ExprAdapter(
        cs.PrefixedArray(count, item), lambda items, _: tuple(items), lambda items, _: items
    )


def pair(first: Format, second: Format) -> Format:
    """Declare two values in a row; the value is a tuple of both."""
    return cs.ExprAdapter(
        cs.Sequence(first, second), lambda items, _: tuple(items), lambda items, _: items
    )


class _Choice(cs.Adapter):  # type: ignore[misc]
    def __init__(self, raw: Format, values: type[Enum]) -> None:
        super().__init__(raw)
        self._values = values

    def _decode(self, value: Any, _context: Any, path: str) -> Enum:
        try:
            return self._values(value)
        except ValueError:
            raise cs.MappingError("not one of the documented values", path=path) from None

    def _encode(self, member: Any, _context: Any, path: str) -> Any:
        if not isinstance(member, self._values):
            raise cs.MappingError(f"needs a {self._values.__name__}", path=path)
        return member.value


def choice(raw: Format, values: type[Enum]) -> Format:
    """Declare a value that must be one of an enumeration's (construct's own Enum lets any by)."""
    return _Choice(raw, values)


class _Record(cs.Adapter):  # type: ignore[misc]
    def __init__(self, cls: type, fields: Format) -> None:
        super().__init__(fields)
        self._cls = cls
        self._names = tuple(member.name for member in fields.subcons)

    def _decode(self, values: Any, _context: Any, _path: str) -> Any:
        return self._cls(**{name: values[name] for name in self._names})

    def _encode(self, item: Any, _context: Any, path: str) -> dict[str, Any]:
        if not isinstance(item, self._cls):
            raise cs.ConstructError(f"needs a {self._cls.__name__}", path=path)
        return {name: getattr(item, name) for name in self._names}


def record(cls: type, fields: Format) -> Format:
    """Declare a repeated group of fields; the value is an instance of the dataclass `cls`."""
    return _Record(cls, fields)


_FAULTS: Final[tuple[tuple[type[Exception], type[RemoteProtocolError], str], ...]] = (
    (_LengthError, BadLengthError, "a field's length is out of range"),
    (cs.StreamError, TruncatedMessageError, "the frame ends inside the message"),
    (cs.ConstructError, InvalidValueError, "a field's value is not allowed"),
)


def _field_of(error: Exception) -> str | None:
    # "(parsing) -> field -> ...": construct's parts of a field say nothing to our callers.
    names = (getattr(error, "path", None) or "").split(" -> ")[1:]
    return names[0] if names else None


def decode(declared: Format, payload: bytes, *, type_byte: bytes | None) -> Any:
    """Take `payload` apart as `declared`; the result is a mapping of field names.

    Raises:
        TruncatedMessageError, TrailingBytesError, BadLengthError, InvalidValueError: as named;
            offset is the place in the payload at which reading stopped.
    """
    stream = io.BytesIO(payload)
    field = None
    try:
        values = declared.parse_stream(stream)
    except cs.ConstructError as error:
        fault, reason = next((f, why) for kind, f, why in _FAULTS if isinstance(error, kind))
        field = _field_of(error)
    else:
        if stream.tell() == len(payload):
            return values
        fault, reason = TrailingBytesError, "bytes follow the end of the message"
    raise fault(reason, type_byte=type_byte, length=len(payload), offset=stream.tell(), field=field)


def encode(declared: Format, values: Mapping[str, Any], *, message: str) -> bytes:
    """Put field values together as `declared`.

    Raises:
        LocalProtocolError: a value the format cannot hold, or of the wrong type.
    """
    try:
        built: bytes = declared.build(values)
    # The others are what a value of the wrong type makes construct stumble over.
    except (cs.ConstructError, AttributeError, LookupError, TypeError, ValueError) as error:
        field = _field_of(error)
    else:
        return built
    raise LocalProtocolError(
        "a value that the message format cannot hold", message=message, field=field
    )
