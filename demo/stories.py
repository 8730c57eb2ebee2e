"""The ten sessions of the demo."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from typing import TYPE_CHECKING, Any

from psycopg import sql

from demo.story import Story, expect
from testbed import AsyncpgSession, PsycopgSession

if TYPE_CHECKING:
    from testbed import Pooler, Session, Snapshot


class _PsycopgStory(Story):
    driver = "psycopg"
    session: PsycopgSession

    async def begin(self) -> None:
        self.session = await PsycopgSession.open(self.pooler, self.database)
        self.stack.push_async_callback(self.session.close)


class _AsyncpgStory(Story):
    driver = "asyncpg"
    session: AsyncpgSession

    async def begin(self) -> None:
        self.session = await AsyncpgSession.open(self.pooler, self.database)
        self.stack.push_async_callback(self.session.close)


class Settings(_PsycopgStory):
    title = "SET application_name, TimeZone; cancel key"
    database = "transaction"

    async def begin(self) -> None:
        await super().begin()
        await self.session.execute("SET application_name TO 'the same as ever'")
        await self.session.execute("SET TimeZone TO 'Asia/Kathmandu'")
        self._before = await self.session.snapshot()

    async def step(self) -> None:
        await self.session.fetch("SELECT 1")

    async def prove(self) -> None:
        await _same_identity(self.session, self._before)
        expect(await self.session.cancel_works(), "the cancel key no longer works")


class PreparedPsycopg(_PsycopgStory):
    title = "a prepared statement"
    database = "transaction"

    async def begin(self) -> None:
        await super().begin()
        self._n = 0

    async def step(self) -> None:
        self._n += 1
        cursor = await self.session.connection.execute(
            "SELECT 2 * %s::int", (self._n,), prepare=True
        )
        row = await cursor.fetchone()
        expect(row == (2 * self._n,), "the prepared statement gave another result")

    async def prove(self) -> None:
        await self.step()


class PreparedAsyncpg(_AsyncpgStory):
    title = "a prepared statement"
    database = "transaction"

    async def begin(self) -> None:
        await super().begin()
        self._n = 0
        self._statement = await self.session.connection.prepare("SELECT 3 * $1::int")

    async def step(self) -> None:
        self._n += 1
        value = await self._statement.fetchval(self._n)
        expect(value == 3 * self._n, "the prepared statement gave another result")

    async def prove(self) -> None:
        await self.step()


class OpenTransaction(_PsycopgStory):
    title = "an open transaction, a row at a time"
    database = "transaction"

    async def begin(self) -> None:
        await super().begin()
        await self.session.execute("BEGIN")
        self._backend = await self.session.fetch("SELECT pg_backend_pid()")
        self._n = 0

    async def step(self) -> None:
        self._n += 1
        await self.session.connection.execute(
            "INSERT INTO demo_rows VALUES (%s, %s)", (self.pooler.name, self._n)
        )

    async def prove(self) -> None:
        backend = await self.session.fetch("SELECT pg_backend_pid()")
        expect(backend == self._backend, "another server process")
        await self.session.execute("COMMIT")
        await _rows_are_there(self.pooler, "demo_rows", self._n)


class TempTableAndListen(_AsyncpgStory):
    title = "a temporary table and LISTEN"
    database = "session"

    async def begin(self) -> None:
        await super().begin()
        await self.session.execute("CREATE TEMP TABLE scratch (n int)")
        self._heard: asyncio.Queue[str] = asyncio.Queue()
        await self.session.connection.add_listener("demo", self._hear)
        self._before = await self.session.snapshot()
        self._n = 0

    def _hear(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        self._heard.put_nowait(payload)

    async def step(self) -> None:
        self._n += 1
        await self.session.connection.execute("INSERT INTO scratch VALUES ($1)", self._n)

    async def prove(self) -> None:
        await _same_identity(self.session, self._before)
        rows = await self.session.fetch("SELECT count(*), count(DISTINCT n), max(n) FROM scratch")
        expect(rows == [(self._n,) * 3], f"{self._n} rows went in, {rows[0]} are there")
        await asyncio.to_thread(self.pooler.postgres.sql, "NOTIFY demo, 'still there?'")
        async with asyncio.timeout(5):
            heard = await self._heard.get()
        expect(heard == "still there?" and self._heard.empty(), "other notifications than sent")


class LockAndCursor(_PsycopgStory):
    title = "an advisory lock and a cursor"
    database = "session"

    async def begin(self) -> None:
        await super().begin()
        await self.session.execute("SELECT pg_advisory_lock(4711)")
        await self.session.execute(
            "DECLARE numbers CURSOR WITH HOLD FOR SELECT generate_series(1, 100000)"
        )
        self._before = await self.session.snapshot()
        self._n = 0

    async def step(self) -> None:
        self._n += 1
        rows = await self.session.fetch("FETCH 1 FROM numbers")
        expect(rows == [(self._n,)], f"the cursor gave {rows} instead of {self._n}")

    async def prove(self) -> None:
        await self.step()
        await _same_identity(self.session, self._before)
        holder = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND granted"
        rows = await asyncio.to_thread(self.pooler.postgres.sql, holder)
        expect(rows == [(self._before.backend_pid,)], "the lock was lost")


class LongQuery(_PsycopgStory):
    title = "a query in progress"
    database = "transaction"

    _SECONDS = 1.5

    async def begin(self) -> None:
        await super().begin()
        self._began = time.perf_counter()
        self._answer = asyncio.ensure_future(self.session.fetch("SELECT 'done' FROM pg_sleep(1.5)"))
        self.stack.callback(self._answer.cancel)

    async def step(self) -> None:
        if self._answer.done():
            self._answer.result()

    async def prove(self) -> None:
        rows = await self._answer
        self.pause_s = max(0.0, time.perf_counter() - self._began - self._SECONDS)
        expect(rows == [("done",)], f"the answer was {rows}")


class BigResult(_PsycopgStory):
    title = "a result of 64 MB on its way out"
    database = "transaction"

    _ROWS = 5000

    async def begin(self) -> None:
        await super().begin()
        query = (
            "COPY (SELECT n || repeat(md5(n::text), 400) FROM generate_series(1, 5000) n) TO STDOUT"
        )
        cursor = self.session.connection.cursor()
        self._copy = await self.stack.enter_async_context(cursor.copy(query))
        self._n = 0

    async def step(self) -> None:
        # Slower than the server, so that it is still on its way when the kill comes.
        if self._n < self._ROWS // 2:
            await self._row()

    async def _row(self) -> None:
        self._n += 1
        text = str(self._n)
        digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        row = bytes(await self._copy.read())
        expect(row == f"{text}{digest * 400}\n".encode(), f"row {text} is another than was sent")

    async def prove(self) -> None:
        while self._n < self._ROWS:
            await self._row()
        expect(not await self._copy.read(), "there were more rows than were sent")


class CopyIn(_PsycopgStory):
    title = "a COPY on its way in"
    database = "transaction"

    async def begin(self) -> None:
        await super().begin()
        self._copying = contextlib.AsyncExitStack()
        self.stack.push_async_callback(self._copying.aclose)
        cursor = self.session.connection.cursor()
        self._copy = await self._copying.enter_async_context(
            cursor.copy("COPY demo_copied FROM STDIN")
        )
        self._n = 0

    async def step(self) -> None:
        self._n += 1
        await self._copy.write_row((self.pooler.name, self._n))

    async def prove(self) -> None:
        await self._copying.aclose()
        await _rows_are_there(self.pooler, "demo_copied", self._n)


class Login(_AsyncpgStory):
    title = "a login at the very moment of the kill"
    database = "transaction"

    async def begin(self) -> None:
        self._login: asyncio.Task[None] | None = None

    def knock(self) -> asyncio.Task[None]:
        self._login = asyncio.create_task(self._log_in())
        self.stack.callback(self._login.cancel)
        return self._login

    async def _log_in(self) -> None:
        began = time.perf_counter()
        await super().begin()
        self.pause_s = time.perf_counter() - began

    async def step(self) -> None:
        if self._login is not None:
            await self._login
            await self.session.fetch("SELECT 1")

    async def prove(self) -> None:
        expect(self._login is not None, "never tried")
        await self.step()


ALL: tuple[type[Story], ...] = (
    Settings,
    PreparedPsycopg,
    PreparedAsyncpg,
    OpenTransaction,
    TempTableAndListen,
    LockAndCursor,
    LongQuery,
    BigResult,
    CopyIn,
    Login,
)

TABLES = (
    "CREATE TABLE demo_rows (who text, n int)",
    "CREATE TABLE demo_copied (who text, n int)",
)


async def _same_identity(session: Session, before: Snapshot) -> None:
    after = await session.snapshot()
    expect(after.client_port == before.client_port, "another connection")
    expect(after.backend_pid == before.backend_pid, "another server process")
    expect(after == before, "other settings or another cancel key")


async def _rows_are_there(pooler: Pooler, table: str, count: int) -> None:
    """Each of the numbers up to `count` must be in the table exactly once."""
    query = sql.SQL(
        "SELECT count(*), count(DISTINCT n), coalesce(max(n), 0) FROM {} WHERE who = {}"
    ).format(sql.Identifier(table), sql.Literal(pooler.name))
    found = (await asyncio.to_thread(pooler.postgres.sql, query))[0]
    expect(found == (count,) * 3, f"{count} rows went in, {found[0]} are there")
