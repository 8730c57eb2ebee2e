"""Runs a workload again and again, each time with a death at another point, and compares."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import BedError, WaitTimeoutError
from testbed.waiting import wait_until
from tests.sweep.syscall.console import ask_console
from tests.sweep.syscall.outcome import (
    Outcome,
    alarms,
    differences,
    server_log,
    without_order,
)
from tests.sweep.syscall.stage import Stage
from tests.sweep.syscall.talker import LostError
from tests.sweep.syscall.tracer import Death, Point, Tracer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from testbed.keeper import Keeper
    from testbed.postgres import Connection, Postgres
    from tests.sweep.syscall.stage import Workload

    #: First points, each with the second points to be tried after it; None: no second death.
    Plan = Iterable[tuple[Point, Iterable[Point | None]]]

_USERS = "usename LIKE 'sweeper%'"
_PATIENCE_S = 5.0
_GRACE_S = 1.0

# The workload is over when so many points in a row were not reached: a timer of PgBouncer's may
# make one run a few calls longer than the next.
_BEYOND = 3

# So many runs with one hanger: PgBouncer keeps the database of each for an hour, and an adoption
# deals with all of them.
_RUNS = 500

# A reference must be the same several times over.
_REHEARSALS = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a workload, the deaths in it, and the calls made up to its end.

    `adopted`: the calls of a successor that outlived the second point, up to its loop.
    """

    outcome: Outcome
    deaths: tuple[Death, ...]
    calls: int
    adopted: int | None
    log: str

    def story(self) -> str:
        """Where it died, and the pooler's and hanger's log of that."""
        return "; then ".join(map(str, self.deaths)) + "\n" + self.log


@dataclass(slots=True)
class Report:
    """What a sweep found: points tried, kills in all, and a text for each point that differed.

    `pairs` are the runs with a second death, `seconds` the points of the adoption at which it
    came, `adoptions` the calls of each that was tried to its end.
    """

    workload: str
    points: int = 0
    kills: int = 0
    pairs: int = 0
    adoptions: list[int] = field(default_factory=list)
    seconds: set[Point] = field(default_factory=set)
    differences: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        """The figures in one line."""
        pairs = ""
        if self.adoptions:
            least, most = min(self.adoptions), max(self.adoptions)
            pairs = (
                f", {self.pairs} pairs in {len(self.adoptions)} adoptions of {least}-{most} calls"
            )
            pairs += f", {len(self.missed)} points missed in all of them"
        differences = f"{len(self.differences)} differences"
        return f"{self.workload}: {self.points} points, {self.kills} kills{pairs}, {differences}"

    @property
    def missed(self) -> set[Point]:
        """The points of every adoption at which no successor died."""
        shared = 2 * min(self.adoptions, default=0)
        return set(map(_point, range(shared))) - self.seconds

    def __str__(self) -> str:
        return "\n\n".join([self.head, *self.differences])

    def count(self, run: Run) -> None:
        """Enter a run that died."""
        self.points += 1
        self.kills += len(run.deaths)
        if run.adopted is not None:
            self.adoptions.append(run.adopted)
        if len(run.deaths) > 1:
            self.pairs += 1
            self.seconds.add(run.deaths[1].point)


class Sweep:
    """One workload, run after run, each on a database and hence pools of its own.

    `make_keeper` starts a hanger; it is called again when a run has left the last one in disorder.
    """

    def __init__(
        self,
        workload: Workload,
        make_keeper: Callable[[], Keeper],
        postgres: Postgres,
        watcher: Connection,
        program: Path,
    ) -> None:
        self.workload = workload
        self._make_keeper = make_keeper
        self._postgres = postgres
        self._watcher = watcher
        self._program = program
        self._numbers = itertools.count(1)
        self._keeper = make_keeper()
        #: The calls of the shortest rehearsal: how data arrive makes a difference of several times.
        self.length = 0

    def rehearse(self) -> Outcome:
        """The reference: what happens when nobody is killed.

        Raises AssertionError if it is not the same each time, or wrong in itself.
        """
        first = self.run(None)
        assert not first.outcome.wrong, "without a kill:\n" + "\n".join(first.outcome.wrong)
        self.length = first.calls
        for _ in range(_REHEARSALS - 1):
            again = self.run(None, reference=first.outcome)
            found = differences(first.outcome, again.outcome)
            assert not found, "without a kill:\n" + "\n".join(found)
            self.length = min(self.length, again.calls)
        return first.outcome

    def over(
        self,
        plan: Plan,
        *,
        reference: Outcome | None = None,
        at_most: int = 10,
        watch: Callable[[Report], None] | None = None,
    ) -> Report:
        """Die at each point of the plan until the workload ends before one.

        Of a point's second ones those are tried that the adoption reaches. Rehearses if there is
        no `reference`. Gives up after `at_most` differences; calls `watch` after each run.
        """
        reference = reference or self.rehearse()
        report = Report(self.workload.name)
        beyond = 0
        for point, seconds in plan:
            for second in seconds:
                deaths = self._try(report, reference, point, second)
                if watch is not None:
                    watch(report)
                if deaths != 2 or len(report.differences) >= at_most:
                    break
            beyond = beyond + 1 if deaths == 0 else 0
            if beyond == _BEYOND or len(report.differences) >= at_most:
                break
        return report

    def _try(
        self, report: Report, reference: Outcome, point: Point, second: Point | None
    ) -> int | None:
        """One run, entered into the report; the deaths in it, None if there is no telling."""
        deaths: int | None = None
        try:
            run = self.run(point, second, reference=reference)
        except (BedError, LostError) as error:
            report.points += 1
            found, story = [str(error)], self._keeper.output.tail(60)
        else:
            deaths = len(run.deaths)
            if not deaths:
                return 0
            report.count(run)
            found, story = differences(reference, run.outcome), run.story()
        if found:
            head = f"== {self.workload.name}, {point}" + (f", then {second}" if second else "")
            report.differences.append("\n".join([head, *found, "-- " + story]))
            self._begin_again()
        return deaths

    def run(
        self,
        point: Point | None,
        second: Point | None = None,
        *,
        reference: Outcome | None = None,
    ) -> Run:
        """Run it once, dying at `point` unless it ends before; again at `second` of the adoption.

        With a `reference` the server is given time to do what it did then.
        """
        number = next(self._numbers)
        if number % _RUNS == 0:
            self._keeper.close()  # in order, with all that it checks
            self._keeper = self._make_keeper()
        workload, keeper = self.workload, self._keeper
        database = f"{workload.name}-{number}"
        if workload.warm is not None:
            self._warm(workload.warm, database)
        self._watcher.execute("TRUNCATE acts, bulk RESTART IDENTITY")
        log_start, output_start = self._postgres.log.size(), keeper.output.size()
        stage = Stage(keeper, self._watcher, database)
        if workload.opening is not None:
            workload.opening(stage)
        before = keeper.status().pgbouncer
        assert before.pid is not None
        wrong: list[str] = []
        with Tracer(
            self._program,
            before.pid,
            point,
            parent=keeper.hanger.pid,
            second=second,
            standby=before.standby_pid or 0,
            absence=stage.nobody_serves if workload.absences else None,
        ) as tracer:
            with _noting(wrong, "the script stopped: "):
                workload.script(stage)
            _end(stage)
        wrong += stage.failures
        if before.standby_pid and any(d.pid != before.standby_pid for d in tracer.deaths[1:]):
            wrong.append("the second to die was not the standby")
        after = keeper.wait_active(after=before.incarnation + len(tracer.deaths) - 1)
        with _noting(wrong):
            self._await_rest()
        lives = after.pgbouncer.incarnation - before.incarnation
        if lives != len(tracer.deaths):
            wrong.append(f"{len(tracer.deaths)} kills, but {lives} incarnations followed")
        if reference is not None:
            self._await_log(log_start, reference)
        tags = [str(tag) for (tag,) in self._watcher.execute("SELECT tag FROM acts ORDER BY id")]
        logged = server_log(self._postgres.log.read(log_start))
        with _noting(wrong):
            self._clear(database)
        output = keeper.output.read(output_start)
        wrong += alarms(output)
        transcripts = {talker.name: bytes(talker.transcript) for talker in stage.talkers}
        outcome = Outcome(transcripts, tuple(tags), logged, tuple(wrong))
        if not workload.ordered:
            outcome = without_order(outcome)
        return Run(outcome, tuple(tracer.deaths), tracer.count, tracer.adopted, output)

    def _warm(self, script: Callable[[Stage], None], database: str) -> None:
        stage = Stage(self._keeper, self._watcher, database)
        script(stage)
        _end(stage)
        self._await_rest()

    def _begin_again(self) -> None:
        with contextlib.suppress(BedError):
            self._keeper.close(check_descriptors=False)
        self._keeper = self._make_keeper()

    def _await_rest(self) -> None:
        """No client is left, and no server is busy."""
        self._await_keeper("all clients", lambda: self._keeper.status().sessions.clients_held == 0)
        busy = f"SELECT count(*) FROM pg_stat_activity WHERE {_USERS} AND state <> 'idle'"
        wait_until(
            lambda: self._watcher.execute(busy).fetchone() == (0,),
            what="all servers are idle",
            seconds=_PATIENCE_S,
        )

    def _await_keeper(self, what: str, condition: Callable[[], bool]) -> None:
        wait_until(condition, what=f"the hanger has let go of {what}", seconds=_PATIENCE_S)

    def _await_log(self, start: int, reference: Outcome) -> None:
        """What PgBouncer sent last may still be on its way; too much comes sooner or never."""

        def done() -> bool:
            outcome = Outcome({}, (), server_log(self._postgres.log.read(start)))
            if not self.workload.ordered:
                outcome = without_order(outcome)
            return outcome.logged == reference.logged

        with contextlib.suppress(WaitTimeoutError):
            wait_until(
                done,
                what="the server has done what it does without a kill",
                seconds=_GRACE_S,
            )

    def _clear(self, database: str) -> None:
        """End all servers and pools, so that the next run begins with none.

        An adoption would otherwise deal with those of all the runs before.
        """
        for command in ("KILL", "RESUME"):
            ask_console(self._keeper.port, f'{command} "{database}"')
        self._await_keeper("all servers", lambda: self._keeper.status().sessions.servers_held == 0)


def _end(stage: Stage) -> None:
    """End the clients that the script has left."""
    for talker in stage.talkers:
        if talker.socket.fileno() >= 0:
            talker.finish()


@contextlib.contextmanager
def _noting(wrong: list[str], before: str = "") -> Iterator[None]:
    """Note what did not come to pass instead of raising it."""
    try:
        yield
    except (LostError, WaitTimeoutError) as error:
        wrong.append(f"{before}{error}")


_ONCE: tuple[None] = (None,)


def spread(length: int, points: int) -> Plan:
    """About so many points, all over a workload of `length` calls, entries and exits in turn."""
    return every(max(1, 2 * length // points) | 1)


def every(step: int = 1, start: int = 0) -> Plan:
    """Entry and exit of every system call, or each `step`-th of these points; without end."""
    return ((_point(number), _ONCE) for number in itertools.count(start, step))


def between(step: int = 1, start: int = 0, reach: int = 3000) -> Plan:
    """Within each call's way to the next: up to `reach` instructions after it; without end."""
    for number in itertools.count(start, step):
        yield Point(number + 1, at_exit=True, steps=1 + number * 7919 % reach), _ONCE


def twice(step: int = 1, start: int = 0, stride: int = 1) -> Plan:
    """As `every`, and once more at each `stride`-th point of the adoption that follows.

    Another one is the first of them each time, so that `stride` points of the workload see deaths
    at all points of the adoption.
    """
    for turn, number in enumerate(itertools.count(start, step)):
        yield _point(number), map(_point, itertools.count(turn % stride, stride))


def _point(number: int) -> Point:
    return Point(number // 2 + 1, number % 2 == 1)
