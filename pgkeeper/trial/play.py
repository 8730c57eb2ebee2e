"""One mode on one side: sessions at work, so many kills, and what each session saw."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from pgkeeper.trial.answer import DifferentError, LostError
from pgkeeper.trial.books import balance, read_rows
from pgkeeper.trial.errors import TrialError, WaitTimeoutError
from pgkeeper.trial.figures import Books, Kill, Result
from pgkeeper.trial.waiting import wait_until_async
from pgkeeper.trial.wire import Wire
from pgkeeper.trial.workers import KINDS, Moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeeper.trial.dsn import Address
    from pgkeeper.trial.options import Mode, TrialOptions
    from pgkeeper.trial.sides import Side
    from pgkeeper.trial.workers import Material, Worker

__all__ = ["Play"]

# The next kill comes within this time after all sessions have had an answer since the last one.
_SPREAD_S: Final = 0.05
_POLL_S: Final = 0.002
# What a session may take to begin, on top of the patience for all.
_LOGIN_S: Final = 0.1
_DIFFERENCES_SHOWN: Final = 5


class Play:
    """Sessions of one mode on one side; `run` may be cancelled, `result` tells what was seen.

    `first` is the number before the first session's: rows say whose they are for a whole trial.
    """

    def __init__(
        self,
        side: Side,
        name: str,
        mode: Mode,
        material: Material,
        options: TrialOptions,
        first: int,
    ) -> None:
        self._side = side
        self._name = name
        self._mode = mode
        self._options = options
        self._moment = Moment()
        kind = KINDS[mode]
        self._workers: list[Worker] = [
            kind(first + number, material, self._moment)
            for number in range(1, options.sessions + 1)
        ]
        self._tables = material.tables
        self._tasks: dict[Worker, asyncio.Task[None]] = {}
        self._kills: list[Kill] = []
        self._books: Books | None = None
        self._done = False

    async def run(self, home: Address, killed: Callable[[], None], watch_s: float | None) -> None:
        """Play to the end; `home` is where rows are counted, `killed` is called after each kill.

        With `watch_s` nobody here kills: one round lasts that long. Raises `TrialError` if the
        sessions cannot begin or the side does not come back.
        """
        try:
            await self._begin()
            began = time.perf_counter()
            if watch_s is None:
                chance = random.Random(self._options.seed)  # noqa: S311 (no secret)
                for _ in range(self._options.kills):
                    await asyncio.sleep(chance.uniform(0, _SPREAD_S))
                    await self._round(began)
                    killed()
            else:
                await self._watch(began, watch_s)
                killed()
            await self._finish()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        rows = await self._rows(home)
        self._books = balance(
            rows,
            [(one.number, turn) for one in self._workers for turn in one.told],
            [(one.number, turn) for one in self._workers for turn in one.doubtful],
        )
        self._done = True

    def result(self) -> Result:
        """What has been seen so far."""
        reasons: Counter[str] = Counter()
        for worker in self._workers:
            reasons += worker.lost
        differences = [text for worker in self._workers for text in worker.differences]
        return Result(
            mode=self._mode.value,
            side=self._name,
            sessions=len(self._workers),
            survived=self._surviving(),
            lost=reasons.total(),
            different=len(differences),
            answers=sum(worker.answers for worker in self._workers),
            bytes_compared=sum(worker.compared for worker in self._workers),
            kills=tuple(self._kills),
            books=self._books,
            reasons=tuple(reasons.most_common()),
            differences=tuple(differences[:_DIFFERENCES_SHOWN]),
            cut_short=not self._done,
        )

    async def _begin(self) -> None:
        """Start the sessions and wait until all are at work."""
        for worker in self._workers:
            self._tasks[worker] = asyncio.create_task(worker.run())
        await self._until(
            # Who is told something wrong at once has no more to show.
            lambda worker: worker.ready.is_set() or bool(worker.differences),
            f"all sessions of {self._mode.value} are at work",
        )

    async def _round(self, began: float) -> None:
        """The time until all have had an answer, once without a kill and once with one."""
        self._begin_round()
        self._moment.strike(time.perf_counter())
        await self._answered()
        quiet = tuple(worker.pause for worker in self._workers)
        self._begin_round()
        at = time.perf_counter() - began
        self._moment.strike(await asyncio.to_thread(self._side.kill))
        down = await asyncio.to_thread(self._side.recover)
        await self._answered()
        firsts = [worker.first for worker in self._workers if worker.first is not None]
        self._note(at, down, min(firsts, default=None), quiet)

    def _begin_round(self) -> None:
        # Until the next strike no answer is one to what was asked after it.
        self._moment.struck = None
        for worker in self._workers:
            worker.begin_round()

    async def _watch(self, began: float, watch_s: float) -> None:
        """One long round; who rests is asked once a second."""
        at = time.perf_counter() - began
        self._begin_round()
        deadline = time.perf_counter() + watch_s
        while time.perf_counter() < deadline:
            self._moment.strike(time.perf_counter())
            await asyncio.sleep(min(1.0, watch_s))
        await self._answered()
        self._note(at, None, None, ())

    def _note(
        self, at: float, down: float | None, first: float | None, quiet: tuple[float, ...]
    ) -> None:
        self._kills.append(
            Kill(
                at_s=at,
                down_s=down,
                first_s=first,
                pauses_s=tuple(worker.pause for worker in self._workers if worker.survived),
                quiet_s=quiet,
                surviving=self._surviving(),
            )
        )

    async def _answered(self) -> None:
        """Wait until each session has been answered since the kill; who is not, is lost."""
        try:
            await self._until(lambda worker: worker.first is not None, "an answer to each session")
        except WaitTimeoutError:
            for worker in self._workers:
                if worker.first is None and not self._tasks[worker].done():
                    worker.give_up(f"no answer within {self._options.patience_s:g} s")
                    self._tasks[worker].cancel()

    async def _until(
        self, condition: Callable[[Worker], bool], what: str, more_s: float = 0.0
    ) -> None:
        """Wait for a condition of all sessions that still run. Raises `WaitTimeoutError`."""

        async def all_true() -> bool:
            for worker, task in self._tasks.items():
                if task.done():
                    self._check(worker, task)
                elif not condition(worker):
                    return False
            return True

        seconds = self._options.patience_s + more_s
        await wait_until_async(all_true, what=what, seconds=seconds, poll_s=_POLL_S)

    async def _finish(self) -> None:
        """Let every session finish what it does and say goodbye."""
        self._moment.stop()
        _, hanging = await asyncio.wait(self._tasks.values(), timeout=self._options.patience_s)
        for worker, task in self._tasks.items():
            if task in hanging:
                worker.give_up(f"no end within {self._options.patience_s:g} s")
            else:
                self._check(worker, task)

    async def _rows(self, home: Address) -> dict[tuple[int, int], int]:
        try:
            wire = await Wire.open(home)
            try:
                numbers = [worker.number for worker in self._workers]
                return await read_rows(wire, self._tables, range(numbers[0], numbers[-1] + 1))
            finally:
                wire.abort()
        except (LostError, DifferentError) as error:
            raise TrialError(f"counting rows: {error.reason}") from error

    def _check(self, worker: Worker, task: asyncio.Task[None]) -> None:
        """A session that ended by itself did not even begin, or there is a defect here."""
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, (LostError, DifferentError)):
            raise TrialError(f"{self._name}: session {worker.number} cannot begin: {error.reason}")
        if error is not None:
            raise error

    def _surviving(self) -> int:
        return sum(worker.survived for worker in self._workers)
