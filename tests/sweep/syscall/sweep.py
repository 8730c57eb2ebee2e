"""Runs a workload again and again, each time with a death at another point, and compares."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import BedError, WaitTimeoutError
from testbed.waiting import wait_until
from tests.sweep.syscall.outcome import Outcome, alarms, differences, server_log
from tests.sweep.syscall.talker import LostError
from tests.sweep.syscall.tracer import Death, Point, Tracer
from tests.sweep.syscall.workloads import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from testbed.keeper import Keeper
    from testbed.postgres import Connection, Postgres
    from tests.sweep.syscall.workloads import Workload

_USERS = "usename LIKE 'sweeper%'"
_PATIENCE_S = 5.0
_GRACE_S = 1.0

# The workload is over when so many points in a row were not reached: a timer of PgBouncer's may
# make one run a few calls longer than the next.
_BEYOND = 3

# A reference must be the same several times over.
_REHEARSALS = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a workload, the deaths in it, and the calls made up to its end."""

    outcome: Outcome
    deaths: tuple[Death, ...]
    calls: int
    log: str

    def story(self) -> str:
        """Where it died, and the pooler's and hanger's log of that."""
        return "; then ".join(map(str, self.deaths)) + "\n" + self.log


@dataclass(slots=True)
class Report:
    """What a sweep found: points tried, kills in all, and a text for each point that differed."""

    workload: str
    points: int = 0
    kills: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.workload}: {self.points} points, {len(self.differences)} differences"
        return "\n\n".join([head, *self.differences])


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

    def rehearse(self) -> Outcome:
        """The reference: what happens when nobody is killed.

        Raises AssertionError if it is not the same each time, or wrong in itself.
        """
        reference = self.run(None).outcome
        for _ in range(_REHEARSALS - 1):
            found = differences(reference, self.run(None, reference=reference).outcome)
            assert not found, "without a kill:\n" + "\n".join(found)
        return reference

    def over(
        self,
        plan: Iterable[tuple[Point, Point | None]],
        *,
        at_most: int = 10,
        watch: Callable[[Report], None] | None = None,
    ) -> Report:
        """Die at each point of the plan until the workload ends before one.

        Gives up after `at_most` differences; calls `watch` after each point.
        """
        reference = self.rehearse()
        report = Report(self.workload.name)
        beyond = 0
        for point, second in plan:
            try:
                run = self.run(point, second, reference=reference)
            except BedError as error:
                found, story = [str(error)], self._keeper.output.tail(60)
            else:
                if not run.deaths:
                    beyond += 1
                    if beyond == _BEYOND:
                        break
                    continue
                found, story = differences(reference, run.outcome), run.story()
                report.kills += len(run.deaths)
            beyond = 0
            report.points += 1
            if found:
                head = f"== {self.workload.name}, {point}" + (f", then {second}" if second else "")
                report.differences.append("\n".join([head, *found, "-- " + story]))
                self._begin_again()
            if watch is not None:
                watch(report)
            if len(report.differences) >= at_most:
                break
        return report

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
        workload, keeper = self.workload, self._keeper
        database = f"{workload.name}-{next(self._numbers)}"
        if workload.warm is not None:
            self._play(workload.warm, database)
            self._await_rest()
        self._watcher.execute("TRUNCATE acts RESTART IDENTITY")
        log_start, output_start = self._postgres.log.size(), keeper.output.size()
        before = keeper.status().pgbouncer
        assert before.pid is not None
        wrong: list[str] = []
        with Tracer(
            self._program, before.pid, point, parent=keeper.hanger.pid, second=second
        ) as tracer:
            transcripts = self._play(workload.script, database, wrong)
        after = keeper.wait_active(after=before.incarnation + len(tracer.deaths) - 1)
        with _noting(wrong):
            self._await_rest()
        lives = after.pgbouncer.incarnation - before.incarnation
        if lives != len(tracer.deaths):
            wrong.append(f"{len(tracer.deaths)} kills, but {lives} incarnations followed")
        if reference is not None:
            self._await_log(log_start, reference.logged)
        tags = [str(tag) for (tag,) in self._watcher.execute("SELECT tag FROM acts ORDER BY id")]
        logged = server_log(self._postgres.log.read(log_start))
        with _noting(wrong):
            self._clear()
        output = keeper.output.read(output_start)
        outcome = Outcome(transcripts, tuple(tags), logged, (*wrong, *alarms(output)))
        return Run(outcome, tuple(tracer.deaths), tracer.count, output)

    def _play(
        self, script: Callable[[Stage], None], database: str, wrong: list[str] | None = None
    ) -> dict[str, bytes]:
        """Run a script and end what it left open; the transcripts."""
        stage = Stage(self._keeper.port, database, self._await_sleep)
        try:
            script(stage)
        except LostError as error:
            if wrong is None:
                raise
            wrong.append(f"the script stopped: {error}")
        for talker in stage.talkers:
            if talker.socket.fileno() >= 0:
                talker.finish()
        return {talker.name: bytes(talker.transcript) for talker in stage.talkers}

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

    def _await_log(self, start: int, wanted: tuple[str, ...]) -> None:
        """What PgBouncer sent last may still be on its way; too much comes sooner or never."""
        with contextlib.suppress(WaitTimeoutError):
            wait_until(
                lambda: server_log(self._postgres.log.read(start)) == wanted,
                what="the server has done what it does without a kill",
                seconds=_GRACE_S,
            )

    def _await_sleep(self) -> None:
        asleep = f"SELECT count(*) FROM pg_stat_activity WHERE {_USERS} AND wait_event = 'PgSleep'"
        wait_until(
            lambda: self._watcher.execute(asleep).fetchone() != (0,),
            what="a server sleeps",
            seconds=_PATIENCE_S,
        )

    def _clear(self) -> None:
        """End all servers, so that the next run begins with none."""
        end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_USERS}"
        self._watcher.execute(end)
        self._await_keeper("all servers", lambda: self._keeper.status().sessions.servers_held == 0)


@contextlib.contextmanager
def _noting(wrong: list[str]) -> Iterator[None]:
    """Note what did not come to pass in time instead of raising it."""
    try:
        yield
    except WaitTimeoutError as error:
        wrong.append(str(error))


def every(step: int = 1, start: int = 0) -> Iterator[tuple[Point, Point | None]]:
    """Entry and exit of every system call, or each `step`-th of these points; without end."""
    for number in itertools.count(start, step):
        yield Point(number // 2 + 1, number % 2 == 1), None


def between(step: int = 1, start: int = 0, reach: int = 3000) -> Iterator[tuple[Point, None]]:
    """Within each call's way to the next: up to `reach` instructions after it; without end."""
    for number in itertools.count(start, step):
        yield Point(number + 1, at_exit=True, steps=1 + number * 7919 % reach), None


def twice(step: int = 1, start: int = 0, reach: int = 60) -> Iterator[tuple[Point, Point]]:
    """As `every`, and once more at another of the first `reach` calls of the adoption."""
    for number in itertools.count(start, step):
        first = Point(number // 2 + 1, number % 2 == 1)
        yield first, Point(1 + number * 13 % reach, number // 2 % 2 == 1)
