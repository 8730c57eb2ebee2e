"""Frozen dataclasses to plain JSON values and back, with every type checked.

The declarations of the dataclasses are the only description of the format.  Supported: int,
float, bool, str, enums of strings, Literal, optional values, list, dict with string keys, nested
dataclasses.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

__all__ = ["ShapeError", "from_plain", "to_plain"]

T = TypeVar("T")


class ShapeError(ValueError):
    """A value does not have the declared type: `where` is its dotted name, `reason` a phrase."""

    def __init__(self, where: str, reason: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"{where or 'message'}: {reason}")


def to_plain(value: object) -> Any:
    """`value` as dicts, lists and scalars for `json.dumps`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(inner) for inner in value]
    return value


def from_plain(cls: type[T], value: object, where: str = "") -> T:
    """The dataclass `cls` from a parsed JSON object.

    Missing keys take the declared default; unknown keys and wrong types raise `ShapeError`.
    """
    if not isinstance(value, dict):
        raise ShapeError(where, "expected an object")
    hints = _hints(cast("Any", cls))
    for key in value:
        if key not in hints:
            raise ShapeError(_join(where, ascii(key[:40])), "no such field")
    arguments = {}
    for item in fields(cast("Any", cls)):
        place = _join(where, item.name)
        if item.name in value:
            arguments[item.name] = _convert(hints[item.name], value[item.name], place)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ShapeError(place, "expected a value")
    return cls(**arguments)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _convert(hint: Any, value: object, where: str) -> object:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return _optional(arguments, value, where)
    if origin is Literal:
        return _one_of(arguments, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise ShapeError(where, "expected a list")
        return [_convert(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise ShapeError(where, "expected an object")
        return {key: _convert(arguments[1], item, f"{where}.*") for key, item in value.items()}
    if is_dataclass(hint):
        return from_plain(cast("type", hint), value, where)
    if issubclass(hint, Enum):
        return hint(_one_of(tuple(member.value for member in hint), value, where))
    return _scalar(hint, value, where)


def _optional(arguments: tuple[Any, ...], value: object, where: str) -> object:
    (hint,) = (argument for argument in arguments if argument is not NoneType)
    return None if value is None else _convert(hint, value, where)


def _one_of(choices: tuple[str, ...], value: object, where: str) -> object:
    if not isinstance(value, str) or value not in choices:
        raise ShapeError(where, f"expected one of {', '.join(choices)}")
    return value


def _scalar(hint: type, value: object, where: str) -> object:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise ShapeError(where, "expected float") from None
    # bool is an int to isinstance, but not to anybody who reads JSON
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise ShapeError(where, f"expected {hint.__name__}")
    return value
