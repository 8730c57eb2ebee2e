"""What a trial has found, and the verdict on it."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PATCHED", "UNPATCHED", "Books", "Kill", "Report", "Result", "Spread"]

PATCHED = "patched"
UNPATCHED = "unpatched"


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds: the median of many waits, the 99th percentile (nearest rank), and the longest."""

    median: float
    p99: float
    longest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None if there are no values."""
        if not values:
            return None
        ordered = sorted(values)
        rank = math.ceil(0.99 * len(ordered)) - 1
        return cls(statistics.median(ordered), ordered[rank], ordered[-1])


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill and what was seen of it; all in seconds.

    - `at_s`: since the sessions were all at work.
    - `down_s`: until the next pgbouncer served (a container: until it ran again), if known.
    - `first_s`: until the first answer to anything that was asked after the kill, if one came.
    - `pauses_s`: the longest wait of each session that went on.
    - `quiet_s`: that of all sessions in a round without a kill right before.
    - `surviving`: sessions that still had the connection they began with.
    """

    at_s: float
    down_s: float | None
    first_s: float | None
    pauses_s: tuple[float, ...]
    quiet_s: tuple[float, ...]
    surviving: int


@dataclass(frozen=True, slots=True)
class Books:
    """Rows that sessions inserted, compared with what they were told.

    - `told`: inserts whose success was answered; `doubtful`: those whose answer never came.
    - `missing`: told and not there; `duplicates`: rows beyond the one that each may have;
      `foreign`: rows that nobody asked for.
    """

    told: int = 0
    doubtful: int = 0
    missing: int = 0
    duplicates: int = 0
    foreign: int = 0

    @property
    def right(self) -> bool:
        """Whether every insert happened as it was told, once."""
        return not (self.missing or self.duplicates or self.foreign)


@dataclass(frozen=True, slots=True)
class Result:
    """One mode on one side.

    - `sessions` began, `survived` are those that never lost their connection and never were told
      anything wrong; in a login storm those none of whose logins failed.
    - `lost`: connections that ended without being asked to; in a login storm logins that failed.
    - `different`: answers that were not, to the byte, what an unkilled session gets.
    - `answers`, `bytes_compared`: those found right.
    - `books`: None if no rows were counted, as after an interruption.
    - `reasons`: how often sessions ended, by what was said; `differences`: the first, in words.
    - `cut_short`: it was interrupted before all kills had happened.
    """

    mode: str
    side: str
    sessions: int
    survived: int
    lost: int
    different: int
    answers: int
    bytes_compared: int
    kills: tuple[Kill, ...]
    books: Books | None = None
    reasons: tuple[tuple[str, int], ...] = ()
    differences: tuple[str, ...] = ()
    cut_short: bool = False

    @property
    def pause(self) -> Spread | None:
        """The waits of all sessions that went on, over all kills."""
        return Spread.of([pause for kill in self.kills for pause in kill.pauses_s])

    @property
    def quiet(self) -> Spread | None:
        """What the same sessions wait without a kill."""
        return Spread.of([pause for kill in self.kills for pause in kill.quiet_s])

    @property
    def first_answer(self) -> Spread | None:
        """From a kill to the first answer of any session."""
        return Spread.of([kill.first_s for kill in self.kills if kill.first_s is not None])

    @property
    def down(self) -> Spread | None:
        """From a kill until the next pgbouncer served."""
        return Spread.of([kill.down_s for kill in self.kills if kill.down_s is not None])

    @property
    def sound(self) -> bool:
        """Whether all survived and nothing was lost, repeated or different."""
        books = self.books is None or self.books.right
        return self.survived == self.sessions and not self.lost and not self.different and books


@dataclass(frozen=True, slots=True)
class Report:
    """All results in the order in which they came about."""

    results: tuple[Result, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def held(self) -> bool:
        """Whether every patched session survived and nothing differed."""
        patched = [result for result in self.results if result.side == PATCHED]
        return bool(patched) and all(result.sound for result in patched)

    def plain(self) -> dict[str, Any]:
        """The report as JSON values; seconds are rounded to microseconds."""
        return {
            **self.meta,
            "held": self.held,
            "interrupted": self.interrupted,
            "results": [_plain(result) for result in self.results],
        }


def _plain(result: Result) -> dict[str, Any]:
    spreads = {
        name: None if spread is None else asdict(spread)
        for name, spread in (
            ("pause_s", result.pause),
            ("quiet_s", result.quiet),
            ("first_answer_s", result.first_answer),
            ("down_s", result.down),
        )
    }
    plain = {**asdict(result), "sound": result.sound, **spreads, "reasons": dict(result.reasons)}
    rounded: dict[str, Any] = _rounded(plain)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return value
