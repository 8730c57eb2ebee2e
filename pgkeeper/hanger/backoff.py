"""Waiting longer and longer before the next start, where starts end in crashes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgkeeper.states import CrashHistory

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from pgkeeper.hanger.process import Process

__all__ = ["Backoff"]

#: Seconds to wait, at least, when a process could not even be started.
_NOT_STARTED: Final = 0.1


class Backoff:
    """A `CrashHistory` and its timer; `on_due` is called when the wait for a start is over."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._history = CrashHistory()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Whether nothing may be started yet."""
        return self._timer is not None

    @property
    def looping(self) -> bool:
        """Whether the last deaths make a crash loop."""
        return self._history.looping

    @property
    def short_lives(self) -> int:
        """How many crashes have come in a row, each soon after its start."""
        return self._history.short_lives

    def died(self, process: Process) -> None:
        """Count the death of a process that was started."""
        self._wait(self._history.died(process.lifetime, crashed=process.crashed))

    def not_started(self) -> None:
        """Count a start that was not even possible, so that no death will follow it."""
        self._wait(max(self._history.died(0.0, crashed=True), _NOT_STARTED))

    def forgive(self) -> None:
        """What the last ones died of is gone: the next one starts at once."""
        self.cancel()
        self._history.short_lives = 0

    def cancel(self) -> None:
        """Wait no longer, and do not call `on_due`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, seconds: float) -> None:
        self.cancel()
        if seconds:
            self._timer = self._loop.call_later(seconds, self._due)

    def _due(self) -> None:
        self._timer = None
        self._on_due()
