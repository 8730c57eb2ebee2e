"""Runs a workload with a broken pgbouncer until somebody can tell."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from testbed.errors import BedError
from tests.sweep.syscall.outcome import differences
from tests.sweep.syscall.talker import LostError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sweep.syscall.outcome import Outcome
    from tests.sweep.syscall.sweep import Plan, Sweep
    from tests.sweep.syscall.tracer import Point


def first_difference(sweep: Sweep, reference: Outcome, plan: Plan) -> str | None:
    """What differs first from the `reference`, after how many runs; None if nothing does.

    The first run is one that nobody kills: some rules are needed even then. The plan ends with
    the workload.
    """
    for number, (point, second) in enumerate(itertools.chain([(None, None)], _each(plan)), 1):
        try:
            run = sweep.run(point, second, reference=reference)
        except (BedError, LostError) as error:
            return f"run {number}, {point}: {error}"
        found = differences(reference, run.outcome)
        if found:
            return "\n".join([f"run {number}:", *found, "-- " + run.story()])
        if point is not None and not run.deaths:
            break
    return None


def _each(plan: Plan) -> Iterator[tuple[Point, Point | None]]:
    return ((point, second) for point, seconds in plan for second in seconds)
