"""What has happened to pgbouncers and sessions so far, by cause: for the metrics.

A takeover hands it to the next hanger, so that counters go on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from pgkeeper.control.report import Record
from pgkeeper.states import ProcessState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgkeeper.hanger.process import Process

__all__ = ["PAUSES", "Cause", "History", "cause_of"]

#: Upper bounds of the pauses that are counted together, in seconds: handoffs and kills with a
#: standby take milliseconds, a start without one tenths of a second, a mended ini minutes.
PAUSES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)


class Cause(StrEnum):
    """Why a pgbouncer ended; the values are labels of metrics."""

    HANDOFF = "handoff"
    """It was replaced on purpose."""
    CRASH = "crash"
    """It ended by itself: SIGSEGV, an error status."""
    KILLED = "killed"
    """SIGKILL or the like from outside: an operator, the kernel for want of memory."""
    STOPPED = "stopped"
    """It was asked to end, and left its sessions with the hanger."""
    UNRESPONSIVE = "unresponsive"
    """The hanger killed it: no heartbeat, or something else took it too long."""
    FAREWELL = "farewell"
    """It ended its sessions on purpose: `release`, SHUTDOWN."""
    STANDBY = "standby"
    """It stood by, and served nobody."""
    START = "start"
    """It never got that far."""
    UNKNOWN = "unknown"
    """Nobody told: another process started it."""


def cause_of(process: Process, was: ProcessState, *, served: bool, died_of: int) -> Cause:
    """Why a process that was in the state `was` has ended.

    `served`: it may have touched the sessions.  `died_of`: the signal of a crash, as the ledger
    has it, 0 if none.
    """
    if not served:
        return Cause.STANDBY if was is ProcessState.STANDBY else Cause.START
    if process.said_farewell or was is ProcessState.LEAVING:
        return Cause.FAREWELL
    if process.dismissed:
        return Cause.HANDOFF
    if process.faulty:
        return Cause.UNRESPONSIVE
    end = process.end
    if end is None or not end.known:
        return Cause.CRASH if died_of else Cause.UNKNOWN
    if end.by_itself:
        return Cause.CRASH
    return Cause.KILLED if end.signal is not None else Cause.STOPPED


class History:
    """Counters since the first hanger of this line started."""

    def __init__(self) -> None:
        self._deaths: Counter[str] = Counter()
        self._takeovers: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._pauses = [0] * (len(PAUSES) + 1)
        self._pause_sum = 0.0
        self._cause: str = Cause.UNKNOWN

    def died(self, cause: Cause) -> None:
        """A pgbouncer has ended; not one that stood by and was not needed any more."""
        self._deaths[cause] += 1
        if cause not in (Cause.STANDBY, Cause.START):
            self._cause = cause

    def lost(self, reasons: Mapping[str, int]) -> None:
        """So many sessions have been lost, by reason."""
        self._lost.update(reasons)

    def taken_over(self, pause: float) -> None:
        """The next one serves, after so many seconds in which nobody did."""
        self._takeovers[self._cause] += 1
        self._cause = Cause.UNKNOWN
        self._pauses[bisect_left(PAUSES, pause)] += 1
        self._pause_sum += pause

    def record(self) -> Record:
        """All of it."""
        return Record(
            dict(self._deaths),
            dict(self._takeovers),
            dict(self._lost),
            list(self._pauses),
            self._pause_sum,
            self._cause,
        )

    def inherit(self, record: Record) -> None:
        """Go on where another hanger was."""
        self._deaths.update(record.deaths)
        self._takeovers.update(record.takeovers)
        self._lost.update(record.lost)
        if len(record.pauses) == len(self._pauses):
            self._pauses = list(record.pauses)
            self._pause_sum = record.pause_sum
        self._cause = record.cause
