"""Sessions of the drivers people use, and snapshots of what must not change over a kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypedDict

import asyncpg  # type: ignore[import-untyped]
import psycopg

from testbed.rawclient import send_cancel
from testbed.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.pooler import Pooler
    from testbed.postgres import Postgres

Row = tuple[Any, ...]

# PgBouncer restores these for each client on whatever server it gets: its five cached variables
# and the default of track_extra_parameters.
TRACKED = (
    "application_name",
    "client_encoding",
    "DateStyle",
    "IntervalStyle",
    "standard_conforming_strings",
    "TimeZone",
)
# The server process keeps these; a client sees them unchanged only while it keeps the server.
SERVER_SIDE = ("extra_float_digits", "lock_timeout", "search_path", "statement_timeout", "work_mem")

_VISIBLE = "SELECT name::text, setting::text, pg_backend_pid() FROM pg_catalog.pg_settings"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a session can see of its own identity; two are equal if nothing changed.

    `client_port` is the driver's own TCP port. `login_pid` and `cancel_key` are what
    BackendKeyData said at login (PgBouncer's own figures); psycopg hides its key, so None.
    `backend_pid` is the server process, None unless the session keeps it (session pooling), and
    without it `settings` are `TRACKED` alone.
    """

    client_port: int
    login_pid: int
    cancel_key: int | None
    backend_pid: int | None
    settings: tuple[tuple[str, str], ...]


class _Visible(TypedDict):
    backend_pid: int | None
    settings: tuple[tuple[str, str], ...]


class Session(Protocol):
    """An asynchronous session through a pooler, of whichever driver.

    `pinned` says that it keeps its server process: session pooling.
    """

    driver: str
    pinned: bool

    @property
    def client_port(self) -> int:
        """Our own TCP port."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the driver has noticed that the connection has ended."""
        ...

    async def execute(self, statement: str) -> None:
        """Run statements that return no rows, as a simple query."""
        ...

    async def fetch(self, statement: str) -> list[Row]:
        """Run one statement and return its rows."""
        ...

    async def snapshot(self) -> Snapshot:
        """What must not change."""
        ...

    async def cancel_works(self) -> bool:
        """Whether a statement of this session can be canceled with the key from its login."""
        ...

    async def close(self) -> None:
        """Leave, in order if the peer still listens."""
        ...


class PsycopgSession:
    """A `psycopg.AsyncConnection`, reachable as `connection`."""

    driver = "psycopg"

    def __init__(
        self, connection: psycopg.AsyncConnection[Row], pooler: Pooler, *, pinned: bool
    ) -> None:
        self.connection = connection
        self.pinned = pinned
        self._postgres = pooler.postgres

    @classmethod
    async def open(cls, pooler: Pooler, database: str, **options: str) -> Self:
        """Log in through `pooler`; `database` names the pool mode. Autocommit is on."""
        connection = await psycopg.AsyncConnection.connect(
            pooler.conninfo(dbname=database, **options), autocommit=True
        )
        return cls(connection, pooler, pinned=database == "session")

    @property
    def client_port(self) -> int:
        """Our own TCP port."""
        return _local_port(self.connection.fileno())

    @property
    def lost(self) -> bool:
        """Whether the driver has noticed that the connection has ended."""
        return self.connection.closed

    async def execute(self, statement: str) -> None:
        """Run statements that return no rows, as a simple query."""
        await self.connection.execute(statement)

    async def fetch(self, statement: str) -> list[Row]:
        """Run one statement and return its rows."""
        cursor = await self.connection.execute(statement)
        return await cursor.fetchall()

    async def snapshot(self) -> Snapshot:
        """What must not change."""
        return Snapshot(
            self.client_port,
            self.connection.info.backend_pid,
            None,
            **_visible(await self.fetch(_visible_query(self.pinned)), self.pinned),
        )

    async def cancel_works(self) -> bool:
        """Whether a statement of this session can be canceled with the key from its login."""
        statement = _sleep_statement()
        sleeper = asyncio.ensure_future(self.execute(statement))
        await _until_running(self._postgres, statement)
        await self.connection.cancel_safe(timeout=5)
        try:
            await sleeper
        except psycopg.errors.QueryCanceled:
            return True
        return False

    async def close(self) -> None:
        """Leave, in order if the peer still listens."""
        await self.connection.close()

    def cut(self) -> None:
        """End the connection under the driver, and with it all that waits for an answer."""
        if not self.connection.closed:
            duplicate = socket.socket(fileno=os.dup(self.connection.fileno()))
            with duplicate, contextlib.suppress(OSError):
                duplicate.shutdown(socket.SHUT_RDWR)


class AsyncpgSession:
    """An `asyncpg.Connection`, reachable as `connection`."""

    driver = "asyncpg"

    def __init__(self, connection: Any, pooler: Pooler, *, pinned: bool) -> None:
        self.connection = connection
        self.pinned = pinned
        self._postgres = pooler.postgres
        self._address = (pooler.host, pooler.port)

    @classmethod
    async def open(cls, pooler: Pooler, database: str, **settings: str) -> Self:
        """Log in through `pooler`; `database` names the pool mode, `settings` its parameters."""
        connection = await asyncpg.connect(
            host=pooler.host,
            port=pooler.port,
            user="postgres",
            database=database,
            timeout=10,
            ssl=False,
            server_settings=settings,
        )
        return cls(connection, pooler, pinned=database == "session")

    @property
    def client_port(self) -> int:
        """Our own TCP port."""
        return int(self.connection._transport.get_extra_info("sockname")[1])

    @property
    def lost(self) -> bool:
        """Whether the driver has noticed that the connection has ended."""
        return bool(self.connection.is_closed())

    async def execute(self, statement: str) -> None:
        """Run statements that return no rows, as a simple query."""
        await self.connection.execute(statement)

    async def fetch(self, statement: str) -> list[Row]:
        """Run one statement, prepared as asyncpg does by itself, and return its rows."""
        return [tuple(row) for row in await self.connection.fetch(statement)]

    async def snapshot(self) -> Snapshot:
        """What must not change."""
        return Snapshot(
            self.client_port,
            int(self.connection._protocol.backend_pid),
            int(self.connection._protocol.backend_secret),
            **_visible(await self.fetch(_visible_query(self.pinned)), self.pinned),
        )

    async def cancel_works(self) -> bool:
        """Whether a statement of this session can be canceled with the key from its login."""
        statement = _sleep_statement()
        sleeper = asyncio.ensure_future(self.execute(statement))
        await _until_running(self._postgres, statement)
        protocol = self.connection._protocol
        key = struct.pack("!i", protocol.backend_secret)
        await asyncio.to_thread(send_cancel, self._address, protocol.backend_pid, key)
        try:
            await sleeper
        except asyncpg.QueryCanceledError:
            return True
        return False

    async def close(self) -> None:
        """Leave, in order if the peer still listens."""
        await self.connection.close(timeout=5)

    def cut(self) -> None:
        """End the connection under the driver, and with it all that waits for an answer."""
        self.connection.terminate()


def snapshot(connection: psycopg.Connection[Row], *, pinned: bool) -> Snapshot:
    """The snapshot of a synchronous psycopg connection; `pinned`: it keeps its server process."""
    rows = connection.execute(_visible_query(pinned)).fetchall()
    return Snapshot(
        _local_port(connection.fileno()),
        connection.info.backend_pid,
        None,
        **_visible(rows, pinned),
    )


def _visible_query(pinned: bool) -> str:
    names = ", ".join(f"'{name}'" for name in (*TRACKED, *(SERVER_SIDE if pinned else ())))
    return f"{_VISIBLE} WHERE name IN ({names}) ORDER BY 1"


def _visible(rows: Sequence[Row], pinned: bool) -> _Visible:
    return {
        "backend_pid": int(rows[0][2]) if pinned else None,
        "settings": tuple((str(name), str(setting)) for name, setting, _ in rows),
    }


def _local_port(descriptor: int) -> int:
    # A second descriptor: closing the Python object must not close the driver's socket.
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        return int(duplicate.getsockname()[1])


def _sleep_statement() -> str:
    # Long enough to be found and canceled, unmistakable in pg_stat_activity.
    return f"SELECT pg_sleep(5) /* {secrets.token_hex(8)} */"


async def _until_running(postgres: Postgres, statement: str) -> None:
    async def running() -> bool:
        return await asyncio.to_thread(postgres.runs, statement)

    await wait_until_async(running, what="the statement to be canceled runs")
