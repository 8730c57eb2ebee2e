"""C structs declared once with construct, read and written at the speed of `struct`.

`Layout` turns a `construct.Struct` without implicit padding into the table of its fields (which
a test compares with what the C compiler says of the same struct) and into one `struct.Struct`:
construct's own parser takes some 2 microseconds a field, and `pgkeeper status` reads thousands of
slots.  All integers are in the machine's own byte order, because neither the ledger nor a control
message ever leaves the machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import construct  # type: ignore[import-untyped, unused-ignore]

__all__ = ["U8", "U16", "U32", "U64", "Buffer", "Field", "Layout", "array", "bytes_", "record"]

Buffer = bytes | bytearray | memoryview

U8: Final[Any] = construct.Int8un
U16: Final[Any] = construct.Int16un
U32: Final[Any] = construct.Int32un
U64: Final[Any] = construct.Int64un


def bytes_(count: int) -> Any:
    """Declare `uint8_t x[count]` or `char x[count]`, read as one bytes object."""
    return construct.Bytes(count)


def array(count: int, item: Any) -> Any:
    """Declare an array of integers, or of structs (a `Layout`)."""
    if isinstance(item, Layout):
        return construct.Array(count, item.declaration)
    return construct.Array(count, item)


def record(**fields: Any) -> Any:
    """Declare a struct; the order of the keywords is the order in memory."""
    return construct.Struct(
        *(construct.Renamed(item, newname=name) for name, item in fields.items())
    )


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a C struct: its name, and offset and size in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Step:
    """How one member becomes `struct` codes and values."""

    name: str
    codes: str
    count: int
    zero: int | bytes | tuple[int, ...]

    @classmethod
    def of(cls, name: str, item: Any) -> _Step:
        if isinstance(item, construct.FormatField):
            return cls(name, item.fmtstr[1:], 1, 0)
        if isinstance(item, construct.Array) and isinstance(item.subcon, construct.FormatField):
            codes = item.subcon.fmtstr[1:] * item.count
            return cls(name, codes, item.count, (0,) * item.count)
        return cls(name, f"{item.sizeof()}s", 1, bytes(item.sizeof()))


class Layout:
    """A C struct by name: its size and fields, and how to read and write it.

    `name` is the struct's tag in C.  Members that are structs themselves are read as raw bytes;
    their own Layout reads those.
    """

    __slots__ = ("_codec", "_names", "_steps", "declaration", "fields", "name", "size")

    def __init__(self, name: str, declaration: Any) -> None:
        self.name = name
        self.declaration = declaration
        fields: list[Field] = []
        steps: list[_Step] = []
        offset = 0
        for member in declaration.subcons:
            item = member.subcon
            fields.append(Field(member.name, offset, item.sizeof()))
            steps.append(_Step.of(member.name, item))
            offset += item.sizeof()
        self.fields = tuple(fields)
        self.size = offset
        self._steps = tuple(steps)
        self._codec = struct.Struct("=" + "".join(step.codes for step in steps))
        # Where each member is one number its values need no looking after.
        plain = all(isinstance(step.zero, int) for step in steps)
        self._names = tuple(step.name for step in steps) if plain else ()

    def field(self, name: str) -> Field:
        """Find a member by name; KeyError if the struct has none of that name."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)

    def parse(self, data: Buffer, offset: int = 0) -> dict[str, Any]:
        """Read the struct at `offset` bytes; struct.error if `data` ends before it does."""
        values = self._codec.unpack_from(data, offset)
        if self._names:
            return dict(zip(self._names, values, strict=True))
        fields: dict[str, Any] = {}
        position = 0
        for step in self._steps:
            if isinstance(step.zero, tuple):
                fields[step.name] = values[position : position + step.count]
            else:
                fields[step.name] = values[position]
            position += step.count
        return fields

    def read(self, data: Buffer) -> tuple[Any, ...]:
        """The numbers at the start of `data`, in the order of the fields."""
        return self._codec.unpack_from(data)

    def build(self, **values: Any) -> bytes:
        """Write the struct; members not named are zero, bytes are padded with zeros.

        struct.error if a value does not fit its member, KeyError if there is no such member.
        """
        if self._names:
            numbers = [values.pop(name, 0) for name in self._names]
            if values:
                raise KeyError(", ".join(values))
            return self._codec.pack(*numbers)
        flat: list[Any] = []
        for step in self._steps:
            value = values.pop(step.name, step.zero)
            if isinstance(step.zero, tuple):
                if len(value) != step.count:
                    raise struct.error(f"{self.name}.{step.name} takes {step.count} values")
                flat.extend(value)
                continue
            if isinstance(step.zero, bytes) and len(value) > len(step.zero):
                raise struct.error(f"{self.name}.{step.name} takes {len(step.zero)} bytes")
            flat.append(value)
        if values:
            raise KeyError(", ".join(values))
        return self._codec.pack(*flat)
