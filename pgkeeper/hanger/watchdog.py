"""Notices that the pgbouncer which serves hangs, and has it killed so that another one goes on.

It writes a heartbeat into the ledger once an event loop, and its janitor turns that loop three
times a second.  One that stands still says nothing by itself, though: the whole machine may have
been suspended, or we may not have run.  So time is not measured but counted, in looks that we
really took: whatever kept us from looking counts as one look's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from pgkeeper.bouncer.inspection import Sighting, inspect
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.log import get_logger
from pgkeeper.states import ProcessState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from pgkeeper.hanger.process import Process

__all__ = ["WATCHED", "Pulse", "Watchdog", "excuse"]

log = get_logger()

#: Looks that make a hang, and the longest time between two of them, seconds.
_LOOKS: Final = 10
_LONGEST_INTERVAL: Final = 0.5
#: One that could run and used less than this part of the time was not given the processor.
_STARVED_BELOW: Final = 0.02

#: States in which a pgbouncer has sessions and turns its event loop; LEAVING has a deadline.
WATCHED: Final = frozenset(
    {
        ProcessState.ADOPTING,
        ProcessState.RETURNING,
        ProcessState.ACTIVE,
        ProcessState.FREEZING,
        ProcessState.FROZEN,
    }
)


class Pulse:
    """For how long a heartbeat has stood still; pure, times in seconds.

    `interval` is the time between two looks.  A look that comes later than that counts as if it
    had come in time, because nobody knows what else stood still meanwhile.
    """

    def __init__(self, interval: float) -> None:
        self._still = 0
        self._interval = interval
        self._seen: tuple[object, int] | None = None

    def look(self, whose: object, beat: int) -> float:
        """Note what the heartbeat of `whose` is now; for how long it has been that."""
        if self._seen == (whose, beat):
            self._still += 1
        else:
            self._still = 0
            self._seen = (whose, beat)
        return self._still * self._interval

    def forgive(self) -> None:
        """Begin again: it may stand still for as long as one that has just been seen to move."""
        self._still = 0

    def rest(self) -> None:
        """There is nobody to look at."""
        self._still = 0
        self._seen = None


@dataclass(frozen=True, slots=True)
class _Began:
    """What a process had used when its heartbeat was first seen to stand still."""

    pid: int
    sighting: Sighting | None


def excuse(began: Sighting | None, now: Sighting | None, seconds: float) -> str | None:
    """Why a process whose heartbeat stood still for `seconds` is to be left alone; None: it hangs.

    - A debugger stops it: whoever looks into a process does not want it killed.
    - It wants to run and is not let: where the processor is so scarce a successor would only
      be one more that waits.
    """
    if now is None:
        return None  # not ours to look into, but ours to replace
    if now.traced:
        return "a debugger has stopped it"
    if began is None or not now.runnable:
        return None
    if now.cpu_s - began.cpu_s < _STARVED_BELOW * seconds:
        return "it is not given the processor"
    return None


class OnHang(Protocol):
    """What is done about a pgbouncer that hangs."""

    def __call__(self, process: Process, sighting: Sighting | None, *, again: bool) -> None:
        """`sighting`: what the kernel says of it; `again`: it is the same hang as last time."""
        ...


class Watchdog:
    """Looks at the heartbeat of the owner; `on_hang` is called when it hangs.

    It is called again, with `again`, each time that the same heartbeat has stood still for as long
    once more: then it could not be helped.

    `timeout`: seconds a heartbeat may stand still; 0: nobody looks.  `owner` and `heartbeat` are
    asked at each look; the latter gives None while there is no ledger.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        owner: Callable[[], Process | None],
        heartbeat: Callable[[], int | None],
        on_hang: OnHang,
    ) -> None:
        self._loop = loop
        self._timeout = timeout
        self._interval = min(timeout / _LOOKS, _LONGEST_INTERVAL)
        self._owner = owner
        self._heartbeat = heartbeat
        self._on_hang = on_hang
        self._pulse = Pulse(self._interval)
        self._began: _Began | None = None
        self._excused: str | None = None
        self._hung = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look from now on, if there is a timeout."""
        if self._timeout and self._timer is None:
            self._timer = self._loop.call_later(self._interval, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._look)
        process, beat = self._owner(), self._heartbeat()
        if process is None or beat is None or process.state not in WATCHED:
            self._pulse.rest()
            return
        # An incarnation's own time begins with its activation, whatever its predecessor left.
        still = self._pulse.look((process.pid, process.incarnation), beat)
        if not still:
            self._began = None
            self._excused = None
            self._hung = False
        elif self._began is None or self._began.pid != process.pid:
            self._began = _Began(process.pid, inspect(process.pid))
        if still < self._timeout:
            return
        self._judge(process, still)

    def _judge(self, process: Process, still: float) -> None:
        now = inspect(process.pid)
        reason = excuse(self._began.sighting if self._began else None, now, still)
        if reason is None:
            again, self._hung = self._hung, True
            self._pulse.forgive()
            self._on_hang(process, now, again=again)
            return
        if reason != self._excused:
            log.warning(
                HangerEvent.BOUNCER_STANDS_STILL,
                pid=process.pid,
                incarnation=process.incarnation,
                reason=reason,
            )
        self._excused = reason
        self._began = None
        self._pulse.forgive()
