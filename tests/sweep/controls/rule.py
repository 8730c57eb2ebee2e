"""What a broken rule is, and how it is hunted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.sweep.syscall.sweep import every
from tests.sweep.syscall.tracer import Point

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.sweep.controls.mutants import Change
    from tests.sweep.syscall.stage import Workload
    from tests.sweep.syscall.sweep import Plan

#: The folder of our own files in the source tree.
KEEPER = "src/keeper"


@dataclass(frozen=True, slots=True)
class Hunt:
    """The workload during which a broken rule shows, and the points at which to kill.

    A `plan` without an end stops with the workload. A `slow` hunt belongs to the long form, as
    does one for a rule that is covered. `settings` go to [pgbouncer].
    """

    workload: Workload
    plan: Callable[[], Plan] = every
    settings: Mapping[str, str | int] = field(default_factory=dict)
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule of the ledger and the `changes` that break it.

    `why` says what then goes wrong. With `covered_by` nothing does, because of what that says:
    the `hunt` is the likeliest one, in vain.
    """

    name: str
    changes: tuple[Change, ...]
    hunt: Hunt
    why: str
    covered_by: str = ""


def again(points: range, calls: range) -> Plan:
    """Entry and exit of the calls `points`, each with an exit of each of the adoption's `calls`."""
    for number in points:
        for leaving in (False, True):
            yield Point(number, leaving), [Point(call, True) for call in calls]
