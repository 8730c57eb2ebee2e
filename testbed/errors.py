"""The errors of the test bed. Each carries its facts as attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class BedError(Exception):
    """Root of everything the test bed raises itself."""


class NotFoundError(BedError):
    """A program or an account the test bed needs is not on this machine."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what} not found: {hint}")
        self.what = what
        self.hint = hint


class WaitTimeoutError(BedError):
    """A condition did not come true in time."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"not within {seconds:g} s: {what}")
        self.what = what
        self.seconds = seconds


class ProcessFailedError(BedError):
    """A process ended or answered otherwise than it should; `output` is the end of its log."""

    def __init__(self, name: str, reason: str, output: str = "") -> None:
        super().__init__(f"{name}: {reason}" + (f"\n{output}" if output else ""))
        self.name = name
        self.reason = reason
        self.output = output


class LeftBehindError(BedError):
    """Processes or descriptors were still there after everything had been stopped."""

    def __init__(self, owner: str, what: Sequence[str]) -> None:
        super().__init__(f"{owner} left behind: " + "; ".join(what))
        self.owner = owner
        self.what = tuple(what)


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
