"""Everything that one scrape shows, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgkeeper.control.report import Record, Status
    from pgkeeper.ledger.tally import Tally

__all__ = ["Figures", "Fill", "Own"]


@dataclass(frozen=True, slots=True)
class Fill:
    """How large the ledger is, and how much of it is used; `heap` in bytes."""

    format: int
    bytes: int
    slots: int
    slots_used: int
    iobufs: int
    iobufs_used: int
    heap: int
    heap_used: int


@dataclass(frozen=True, slots=True)
class Own:
    """The hanger's process: start (seconds since 1970), CPU time in seconds, memory in bytes."""

    started: float
    cpu: float
    resident: int


@dataclass(frozen=True, slots=True)
class Figures:
    """One scrape.

    - `vacancy`: seconds for which nobody has served; 0 while somebody does.
    - `standby_wanted`: whether one ought to stand by; `hold_timeout` as `Settings` has it.
    - `fill`: None while there is no ledger.
    """

    status: Status
    record: Record
    sessions: Tally
    vacancy: float
    standby_wanted: bool
    hold_timeout: float
    own: Own
    fill: Fill | None = None
    unheld: dict[str, int] = field(default_factory=dict)
