"""Runs a workload with a broken pgbouncer until somebody can tell."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from testbed.errors import BedError
from tests.sweep.syscall.outcome import differences

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.sweep.syscall.outcome import Outcome
    from tests.sweep.syscall.sweep import Sweep
    from tests.sweep.syscall.tracer import Point


def first_difference(
    sweep: Sweep, reference: Outcome, plan: Iterable[tuple[Point, Point | None]]
) -> tuple[str | None, int]:
    """What differs first from the `reference`, None if nothing does, and how many runs it took.

    The first run is one that nobody kills: some rules are needed even then. The plan ends with
    the workload.
    """
    runs: Iterable[tuple[Point | None, Point | None]] = itertools.chain([(None, None)], plan)
    for number, (point, second) in enumerate(runs, 1):
        try:
            run = sweep.run(point, second, reference=reference)
        except BedError as error:
            return f"{point}: {error}", number
        found = differences(reference, run.outcome)
        if found:
            return "\n".join([*found, "-- " + run.story()]), number
        if point is not None and not run.deaths:
            break
    return None, number
