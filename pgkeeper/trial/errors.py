"""What keeps a trial from being held; each error carries its facts as attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "LeftBehindError",
    "NotFoundError",
    "ProcessFailedError",
    "TrialError",
    "WaitTimeoutError",
]


class TrialError(PgkeeperError):
    """The trial cannot be held, or not go on; what became of sessions is never said this way."""

    exit_code = 2


class NotFoundError(TrialError):
    """A program or an account that is needed is not on this machine."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what} not found: {hint}")
        self.what = what
        self.hint = hint


class WaitTimeoutError(TrialError):
    """A condition did not come true in time."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"not within {seconds:g} s: {what}")
        self.what = what
        self.seconds = seconds


class ProcessFailedError(TrialError):
    """A process ended or answered otherwise than it should; `output` is the end of its log."""

    def __init__(self, name: str, reason: str, output: str = "") -> None:
        text = f"{name}: {reason}"
        if output:
            text += f"\n{output}"
        super().__init__(text)
        self.args = (text,)  # with its lines, for a traceback
        self.name = name
        self.reason = reason
        self.output = output


class LeftBehindError(TrialError):
    """Processes or descriptors were still there after everything had been stopped."""

    def __init__(self, owner: str, what: Sequence[str]) -> None:
        super().__init__(f"{owner} left behind: " + "; ".join(what))
        self.owner = owner
        self.what = tuple(what)
