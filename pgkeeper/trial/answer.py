"""What a session must be told, to the byte, and what it means to be told something else."""

from __future__ import annotations

import bisect
import struct
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Answer", "DifferentError", "LostError", "error_text"]

_HEAD: Final = struct.Struct("!cI")


class LostError(Exception):
    """The session has ended: reset, closed, refused, or a FATAL said so. `reason` is for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DifferentError(Exception):
    """The session was told something else than an unkilled one; `reason` says where they part."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """The bytes of whole messages, and at which offsets they begin."""

    data: bytes = field(repr=False)
    starts: tuple[int, ...] = field(repr=False)

    @classmethod
    def of(cls, data: bytes) -> Answer:
        """Cut `data` at its messages. Raises ValueError if they are not whole."""
        starts = []
        at = 0
        while at < len(data):
            starts.append(at)
            if len(data) - at < _HEAD.size:
                raise ValueError("the last message has no length")
            (_, length) = _HEAD.unpack_from(data, at)
            at += 1 + length
        if at != len(data):
            raise ValueError("the last message is not whole")
        return cls(bytes(data), tuple(starts))

    def start_of(self, offset: int) -> int:
        """Where the message begins that holds the byte at `offset`."""
        return self.starts[bisect.bisect_right(self.starts, offset) - 1]

    def describe(self, offset: int, got: bytes) -> str:
        """Where the answer `got` from `offset` on differs; it does."""
        wanted = self.data[offset : offset + len(got)]
        pairs = enumerate(zip(wanted, got, strict=False))
        at = next((n for n, (one, other) in pairs if one != other), min(len(wanted), len(got)))
        shown = f"{wanted[at : at + 8]!r} became {got[at : at + 8]!r}"
        return f"byte {offset + at:,} of {len(self.data):,}: {shown}"


def error_text(body: bytes) -> tuple[str, str]:
    """Severity and text of an ErrorResponse's body, as a person reads it."""
    parts = body.rstrip(b"\0").split(b"\0")
    fields = {chr(part[0]): part[1:].decode(errors="replace") for part in parts if part}
    severity = fields.get("V") or fields.get("S", "")
    return severity, f"{severity} {fields.get('C', '')}: {fields.get('M', '')}"
