"""The errors of the test bed. Each carries its facts as attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeeper.trial.errors import (
    LeftBehindError,
    NotFoundError,
    ProcessFailedError,
    WaitTimeoutError,
)
from pgkeeper.trial.errors import TrialError as BedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "BadLogError",
    "BedError",
    "ConnectionLostError",
    "LeftBehindError",
    "NotFoundError",
    "ProcessFailedError",
    "ServerError",
    "WaitTimeoutError",
]


class BadLogError(BedError):
    """A log holds a line that says a program is broken, whatever its sessions saw."""

    def __init__(self, path: Path, lines: Sequence[str]) -> None:
        super().__init__(f"{path.name}: " + " | ".join(lines))
        self.path = path
        self.lines = tuple(lines)


class ServerError(BedError):
    """An ErrorResponse read by `RawClient`, with its fields by their one-letter codes."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(f"{fields.get('S')} {fields.get('C')}: {fields.get('M')}")
        self.fields = fields

    @property
    def sqlstate(self) -> str:
        """The five-character SQLSTATE code."""
        return self.fields.get("C", "")


class ConnectionLostError(BedError):
    """The peer of a `RawClient` closed or reset the connection."""
