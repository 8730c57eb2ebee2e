"""Traffic of two drivers that checks every byte and counts every statement, while kills happen.

A worker runs one kind of work again and again in a session of its own until it is told to stop,
and raises at the first wrong byte or error. What it has been told is done stands in `done`, to be
compared with what PostgreSQL has.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from typing import TYPE_CHECKING, Any, Protocol

from testbed.sessions import AsyncpgSession, PsycopgSession
from testbed.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    import psycopg

    from testbed.keeper import Keeper
    from testbed.pooler import Pooler
    from testbed.postgres import Postgres

_ROWS = 4000
# A prime, so that the pattern's phase differs at every power of two, such as a buffer's size.
_PATTERN = bytes(17 * n % 251 for n in range(251))


def pattern(start: int, length: int) -> bytes:
    """Bytes that tell their position: byte `start` of an endless stream and `length` on."""
    first = start % len(_PATTERN)
    return (_PATTERN * (length // len(_PATTERN) + 2))[first : first + length]


class Progress:
    """What all workers have done together, and whether they are to stop."""

    def __init__(self) -> None:
        self.steps = 0
        self.stopping = False

    async def wait(self, steps: int, seconds: float = 60.0) -> None:
        """Return when `steps` more have been done. Raises `WaitTimeoutError`: all hang."""
        target = self.steps + steps

        async def reached() -> bool:
            return self.steps >= target

        await wait_until_async(
            reached, what=f"{steps} more steps of work", seconds=seconds, poll_s=0
        )


class Worker:
    """One session and its work; subclasses say which."""

    kind = ""
    mode = "transaction"
    #: Whether each turn inserts (number, turn) into the table `counted`.
    writes_counted = False

    def __init__(self, pooler: Pooler, number: int, progress: Progress) -> None:
        self.pooler = pooler
        self.number = number
        self.progress = progress
        self.done: list[int] = []
        self.opened: PsycopgSession | AsyncpgSession | None = None

    async def run(self) -> None:
        """Open, work until told to stop, close. Errors say whose they are."""
        try:
            async with self.session() as connection:
                for turn in itertools.count(1):
                    if self.progress.stopping:
                        break
                    await self.turn(connection, turn)
                    self.done.append(turn)
                    self.progress.steps += 1
        except Exception as error:
            error.add_note(f"{self.kind} {self.number}, turn {len(self.done) + 1}")
            self.progress.stopping = True
            raise

    def session(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """The driver's connection."""
        raise NotImplementedError

    async def turn(self, connection: Any, turn: int) -> None:
        """One piece of work, which counts as done when this returns."""
        raise NotImplementedError


class PsycopgWorker(Worker):
    """A worker with an autocommit psycopg connection."""

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
        """The driver's connection."""
        session = self.opened = await PsycopgSession.open(self.pooler, self.mode)
        try:
            yield session.connection
        finally:
            await session.close()


class AsyncpgWorker(Worker):
    """A worker with an asyncpg connection."""

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Any]:
        """The driver's connection."""
        session = self.opened = await AsyncpgSession.open(self.pooler, self.mode)
        try:
            yield session.connection
        except BaseException:
            # Not `close`, which waits for the answers that a failed session still owes.
            session.connection.terminate()
            await asyncio.sleep(0)
            raise
        await session.close()


class SingleInserts(PsycopgWorker):
    """An INSERT a turn, as a prepared statement, each its own transaction."""

    kind = "single inserts"
    writes_counted = True

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        statement = "INSERT INTO counted VALUES (%s, %s)"
        cursor = await connection.execute(statement, (self.number, turn), prepare=True)
        check(cursor.rowcount == 1, "one row was inserted")


class SimpleInserts(PsycopgWorker):
    """Like `SingleInserts`, as simple queries in a pool by statement."""

    kind = "simple inserts"
    writes_counted = True
    mode = "statement"

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        row = f"({self.number}, {turn})"
        cursor = await connection.execute(f"INSERT INTO counted VALUES {row}")  # noqa: S608
        check(cursor.rowcount == 1, "one row was inserted")


class Transactions(AsyncpgWorker):
    """A transaction a turn, which reads what it has written before it commits."""

    kind = "transactions"
    writes_counted = True

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        async with connection.transaction():
            await connection.execute("INSERT INTO counted VALUES ($1, $2)", self.number, turn)
            query = "SELECT count(*), max(n) FROM counted WHERE worker = $1"
            count, last = await connection.fetchrow(query, self.number)
            check((count, last) == (turn, turn), f"{count} rows up to {last} in turn {turn}")


class Pipelines(PsycopgWorker):
    """Twenty statements at once, sent before any answer is read."""

    kind = "pipelines"
    writes_counted = True

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        async with connection.pipeline():
            cursors = [
                await connection.execute("SELECT %s::int * 3", (turn * 20 + n,)) for n in range(20)
            ]
            insert = "INSERT INTO counted VALUES (%s, %s)"
            await connection.execute(insert, (self.number, turn))
        for n, cursor in enumerate(cursors):
            check(await cursor.fetchone() == ((turn * 20 + n) * 3,), f"answer {n}")


class PsycopgRows(PsycopgWorker):
    """A long result, each row of which tells its place."""

    kind = "psycopg rows"

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        expected = 1
        async with connection.cursor() as cursor:
            async for n, value in cursor.stream(ROWS_QUERY % _ROWS):
                check(n == expected and value == row_text(n), f"row {expected} is {n}")
                expected += 1
        check(expected == _ROWS + 1, f"{expected - 1} rows")


class AsyncpgRows(AsyncpgWorker):
    """Like `PsycopgRows`, through a cursor that fetches a part at a time, in its own server."""

    kind = "asyncpg rows"
    mode = "session"

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        expected = 1
        async with connection.transaction():
            async for n, value in connection.cursor(ROWS_QUERY % _ROWS, prefetch=700):
                check(n == expected and value == row_text(n), f"row {expected} is {n}")
                expected += 1
        check(expected == _ROWS + 1, f"{expected - 1} rows")


class Echoes(AsyncpgWorker):
    """Large values both ways, each byte of which tells its place; the size changes."""

    kind = "echoes"

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        sent = pattern(turn * 1009 + self.number, 1 + turn * 7919 % 400_000)
        got = await connection.fetchval("SELECT $1::bytea", sent)
        check(
            got == sent, f"{len(sent)} bytes came back as {len(got)}, {first_difference(sent, got)}"
        )


class CopyIn(PsycopgWorker):
    """COPY FROM STDIN of rows that tell their place."""

    kind = "copy in"

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        rows = 1 + turn * 613 % 3000
        async with connection.cursor() as cursor:
            async with cursor.copy("COPY copied FROM STDIN") as copy:
                for part in batches(range(1, rows + 1), 250):
                    lines = (f"{self.number}\t{turn}\t{n}\t{row_text(n)}\n" for n in part)
                    await copy.write("".join(lines))
            check(cursor.rowcount == rows, f"{cursor.rowcount} rows were copied, not {rows}")


class CopyOut(AsyncpgWorker):
    """COPY TO STDOUT, whose text is known."""

    kind = "copy out"

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        got = bytearray()

        async def take(data: bytes) -> None:
            got.extend(data)

        rows = 1 + turn * 613 % _ROWS
        await connection.copy_from_query(ROWS_QUERY % rows, output=take)
        sent = "".join(f"{n}\t{row_text(n)}\n" for n in range(1, rows + 1)).encode()
        check(bytes(got) == sent, f"{len(sent)} bytes, {first_difference(sent, bytes(got))}")


class CountedWorker(Protocol):
    """What `kill_under` and `check_books` need of a worker's class."""

    def __call__(self, pooler: Pooler, number: int, progress: Progress) -> Worker: ...


EVERY_KIND: tuple[CountedWorker, ...] = (
    *(SingleInserts, SimpleInserts, Transactions, Pipelines),
    *(PsycopgRows, AsyncpgRows, Echoes, CopyIn, CopyOut),
)

# The text of row n has a length of its own, so that nothing is aligned with anything.
ROWS_QUERY = "SELECT n, repeat(chr(97 + n %% 26), 20 + n %% 97) FROM generate_series(1, %d) AS n"


def row_text(n: int) -> str:
    """The second column of row `n` of `ROWS_QUERY`."""
    return chr(97 + n % 26) * (20 + n % 97)


def check(condition: bool, text: str) -> None:
    """Raise AssertionError: an assert statement in here is not pytest's to explain."""
    if not condition:
        raise AssertionError(text)


def first_difference(sent: bytes, got: bytes) -> str:
    """Where two byte strings part, for a message."""
    pairs = enumerate(zip(sent, got, strict=False))
    at = next((n for n, (one, other) in pairs if one != other), min(len(sent), len(got)))
    return f"first different at {at}: {sent[at : at + 8]!r} became {got[at : at + 8]!r}"


def batches(items: range, size: int) -> Iterator[range]:
    """Parts of `items` of at most `size`."""
    for at in range(0, len(items), size):
        yield items[at : at + size]


def make_tables(postgres: Postgres) -> None:
    """The tables that the workers write to, empty and without any key: nothing hides a double."""
    postgres.sql("DROP TABLE IF EXISTS counted, copied")
    postgres.sql("CREATE TABLE counted (worker int, n int)")
    postgres.sql("CREATE TABLE copied (worker int, turn int, n int, value text)")


async def work(
    pooler: Pooler, kinds: Sequence[CountedWorker], disturb: Callable[[Progress], Any]
) -> list[Worker]:
    """Run a worker of each of `kinds` while `disturb(progress)` does its worst; the workers.

    Raises what a worker raises, as an ExceptionGroup.
    """
    progress = Progress()
    workers = [kind(pooler, number, progress) for number, kind in enumerate(kinds, 1)]
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker.run())
        try:
            # Everyone is at work before it begins.
            await wait_until_async(
                lambda: _all_began(workers), what="every worker has begun", seconds=30
            )
            await disturb(progress)
        except BaseException:
            # One that got half an answer would wait for the rest of it, even to be canceled.
            for worker in workers:
                if worker.opened is not None:
                    worker.opened.cut()
            raise
        finally:
            progress.stopping = True
    return workers


async def _all_began(workers: Sequence[Worker]) -> bool:
    return all(worker.done for worker in workers)


async def kill_at_random(keeper: Keeper, progress: Progress, kills: int, seed: int) -> None:
    """So many kills, each after a random number of steps of work since the one before.

    Raises `WaitTimeoutError` if no work is done any more.
    """
    chance = random.Random(seed)  # noqa: S311 (no secret)
    for _ in range(kills):
        await progress.wait(chance.randint(1, 40))
        await asyncio.to_thread(keeper.kill_bouncer)
    await progress.wait(50)


def check_books(postgres: Postgres, workers: Sequence[Worker]) -> None:
    """Each turn that a worker was told is done has been done exactly once, and no other.

    Raises AssertionError.
    """
    counted = postgres.sql("SELECT worker, n FROM counted ORDER BY worker, n")
    expected = [
        (worker.number, turn) for worker in workers if worker.writes_counted for turn in worker.done
    ]
    check(counted == expected, difference("counted", expected, counted))
    copied = postgres.sql("SELECT worker, turn, n, value FROM copied ORDER BY worker, turn, n")
    wanted = [
        (worker.number, turn, n, row_text(n))
        for worker in workers
        if isinstance(worker, CopyIn)
        for turn in worker.done
        for n in range(1, 2 + turn * 613 % 3000)
    ]
    check(copied == wanted, difference("copied", wanted, copied))


def difference(name: str, expected: Sequence[Any], found: Sequence[Any]) -> str:
    """What is missing and what is too much, shortly."""
    missing = sorted(set(expected) - set(found))[:5]
    extra = sorted(set(found) - set(expected))[:5]
    counts = f"{name}: {len(expected)} rows expected, {len(found)} found"
    return f"{counts}; missing {missing}, extra {extra}"
