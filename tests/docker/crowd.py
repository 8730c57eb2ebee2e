"""Fifty sessions of psql, psycopg and asyncpg, and the proof that nothing happened to them.

Each has a temporary table, which lives in its server process, and adds one row whenever it is
asked. The answer says how many rows there were and which server process it is: a session that was
replaced, or a statement that ran twice or not at all, shows.
"""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, Self

import asyncpg  # type: ignore[import-untyped]
import psycopg

from testbed.pginstall import pg_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from types import TracebackType

PASSWORD = "pgkeeper"
SIZE = 50
#: Seconds for an answer: a restart by Docker on a busy machine takes some.
_PATIENCE = 60.0

_SETUP = "CREATE TEMPORARY TABLE kept (ask integer PRIMARY KEY)"
_ASK = (
    "WITH added AS (INSERT INTO kept VALUES ({number}) RETURNING 1)"
    " SELECT format('%s %s', count(*), pg_backend_pid()) FROM kept"
)


class Session(Protocol):
    """A session that answers one text."""

    def ask(self, statement: str) -> str: ...

    def close(self) -> None: ...


class _Psql:
    def __init__(self, port: int) -> None:
        program = pg_tool("psql")
        assert program is not None
        self._process = subprocess.Popen(
            [program, "-XqAt", "-v", "ON_ERROR_STOP=1", _conninfo(port)],
            env={**os.environ, "PGPASSWORD": PASSWORD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._seen = b""

    def ask(self, statement: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{statement};\n\\echo done\n".encode())
        self._process.stdin.flush()
        deadline = time.monotonic() + _PATIENCE
        while not self._seen.endswith(b"done\n"):
            left = deadline - time.monotonic()
            poll = select.poll()
            poll.register(self._process.stdout, select.POLLIN)
            if left < 0 or not poll.poll(left * 1000):
                raise TimeoutError(f"psql said only {self._seen!r}")
            read = os.read(self._process.stdout.fileno(), 65536)
            if not read:
                raise ConnectionError(f"psql ended: {self._seen!r}")
            self._seen += read
        answer, self._seen = self._seen.removesuffix(b"done\n").decode().strip(), b""
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class _Psycopg:
    def __init__(self, port: int) -> None:
        self._connection = psycopg.connect(
            _conninfo(port), password=PASSWORD, autocommit=True, connect_timeout=int(_PATIENCE)
        )

    def ask(self, statement: str) -> str:
        cursor = self._connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return "" if row is None else str(row[0])

    def close(self) -> None:
        self._connection.close()


class _Asyncpg:
    def __init__(self, port: int) -> None:
        self._runner = asyncio.Runner()
        try:
            self._connection = self._runner.run(self._connect(port))
        except BaseException:
            self._runner.close()
            raise

    @staticmethod
    async def _connect(port: int) -> Any:
        return await asyncpg.connect(
            host="127.0.0.1",
            port=port,
            user="postgres",
            database="postgres",
            password=PASSWORD,
            timeout=_PATIENCE,
            ssl=False,
        )

    def ask(self, statement: str) -> str:
        return self._runner.run(self._ask(statement))

    async def _ask(self, statement: str) -> str:
        return str(await self._connection.fetchval(statement, timeout=_PATIENCE) or "")

    def close(self) -> None:
        self._runner.run(self._leave())
        self._runner.close()

    async def _leave(self) -> None:
        self._connection.terminate()


_DRIVERS: Sequence[Callable[[int], Session]] = (_Psql, _Psycopg, _Asyncpg)


class _Member:
    """One session and what is known of it."""

    def __init__(self, driver: Callable[[int], Session], port: int) -> None:
        self._session = driver(port)
        self._asked = 0
        self._turn = threading.Lock()
        try:
            self._session.ask(_SETUP)
            self._server = self._session.ask("SELECT pg_backend_pid()")
        except BaseException:
            self._session.close()
            raise

    def intact(self) -> None:
        """Ask once more. Raises whatever shows that it is not what it was."""
        with self._turn:
            answer = self._session.ask(_ASK.format(number=self._asked))
            assert answer == f"{self._asked} {self._server}"
            self._asked += 1

    def close(self) -> None:
        self._session.close()


class Crowd:
    """`size` sessions at a port of 127.0.0.1, asked all at once, each in a thread of its own."""

    def __init__(self, port: int, size: int = SIZE) -> None:
        self._pool = ThreadPoolExecutor(size)
        drivers = [_DRIVERS[number % len(_DRIVERS)] for number in range(size)]
        opening = [self._pool.submit(_Member, driver, port) for driver in drivers]
        self._members = [one.result() for one in opening if one.exception() is None]
        if len(self._members) < size:
            self.close()
            raise next(error for one in opening if (error := one.exception()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all sessions."""
        for member in self._members:
            member.close()
        self._pool.shutdown()

    def ask(self) -> list[Future[None]]:
        """Ask all, without waiting for the answers."""
        return [self._pool.submit(member.intact) for member in self._members]

    def intact(self) -> int:
        """How many of them are what they were."""
        return count(self.ask())


def count(asked: Sequence[Future[Any]]) -> int:
    """How many answers were right; what was wrong with the others is printed."""
    right = 0
    for number, future in enumerate(asked):
        error = future.exception()
        if error is None:
            right += 1
        else:
            print(f"session {number}: {type(error).__name__}: {' '.join(str(error).split())}")
    return right


def _conninfo(port: int) -> str:
    return f"host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable"
