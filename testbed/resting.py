"""Many driver sessions that rest while the pooler under them is killed, and what each must keep.

The same functions serve the claim and its negative control: what they demand of a kept PgBouncer's
sessions an unpatched one's must fail.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg  # type: ignore[import-untyped]
import psycopg

from testbed.rawclient import send_cancel
from testbed.sessions import TRACKED, AsyncpgSession, PsycopgSession, Session, Snapshot
from testbed.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from testbed.pooler import Pooler
    from testbed.postgres import Postgres

# Beside PgBouncer's own: needs `track_extra_parameters = IntervalStyle, scram_iterations`.
EXTRA = "scram_iterations"
SHOWN = (*TRACKED, EXTRA)

# What a driver raises when the peer has closed or reset the connection, and nothing wider: a
# session that answers with any other error would still be there.
LOST = (
    psycopg.OperationalError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.InterfaceError,
    ConnectionResetError,
)
CANCELED = (psycopg.errors.QueryCanceled, asyncpg.QueryCanceledError)

_STYLES = ("ISO, DMY", "SQL, MDY", "German, DMY", "Postgres, DMY")
_INTERVALS = ("iso_8601", "sql_standard", "postgres_verbose")
_ZONES = ("Europe/Berlin", "Asia/Kolkata", "America/Lima")
_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Facts:
    """What must be equal before and after: the snapshot, and what SHOW says."""

    snapshot: Snapshot
    shown: tuple[tuple[str, str], ...]


class Resting:
    """One session, its number, and two statements that it has prepared by name.

    The statements are executed by the names that the driver gave them at the beginning; nothing is
    parsed again. One text is the session's own, one is shared with all others.
    """

    def __init__(self, session: Session, mode: str, number: int) -> None:
        self.session = session
        self.mode = mode
        self.number = number
        self.in_transaction = False
        self._own = f"SELECT {number} + $1::int"
        self._prepared: Any = None
        self._shared: Any = None

    @property
    def settings(self) -> Mapping[str, str]:
        """What this session SETs, different from its neighbours."""
        number = self.number
        # asyncpg decodes by itself and is at home in UTF8 alone.
        encoding = "LATIN1" if number % 2 and self.session.driver == "psycopg" else "UTF8"
        return {
            "application_name": f"{self.session.driver} {number}",
            "client_encoding": encoding,
            "DateStyle": _STYLES[number % len(_STYLES)],
            "IntervalStyle": _INTERVALS[number % len(_INTERVALS)],
            "standard_conforming_strings": "off" if number % 5 == 0 else "on",
            "TimeZone": _ZONES[number % len(_ZONES)],
            EXTRA: str(4096 + number),
        }

    async def prepare(self) -> None:
        """SET the parameters and prepare the statements."""
        for name, value in self.settings.items():
            await self.session.execute(f"SET {name} TO '{value}'")
        if isinstance(self.session, AsyncpgSession):
            self._prepared = await self.session.connection.prepare(self._own)
            self._shared = await self.session.connection.prepare("SELECT -$1::int")
        elif isinstance(self.session, PsycopgSession):
            # At pgconn's level, because psycopg itself would quietly prepare again.
            self._prepared, self._shared = b"own", b"shared"
            connection = self.session.connection
            await asyncio.to_thread(connection.pgconn.prepare, b"own", self._own.encode())
            await asyncio.to_thread(connection.pgconn.prepare, b"shared", b"SELECT -$1::int")
        check(await self.prepared_work(), "a statement just prepared answers")

    async def prepared_work(self) -> bool:
        """Whether both statements are still there under their names and still mean the same."""
        answers = [await self._execute(self._prepared), await self._execute(self._shared)]
        return answers == [self.number + 17, -17]

    async def _execute(self, statement: Any) -> int:
        if not isinstance(self.session, PsycopgSession):
            return int(await statement.fetchval(17))
        pgconn = self.session.connection.pgconn
        result = await asyncio.to_thread(pgconn.exec_prepared, statement, [b"17"])
        if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
            if self.session.lost:
                raise psycopg.OperationalError(result.error_message.decode(errors="replace"))
            raise AssertionError(result.error_message.decode(errors="replace"))
        return int(result.get_value(0, 0) or b"0")

    async def facts(self) -> Facts:
        """What must not change."""
        shown = []
        for name in SHOWN:
            ((value,),) = await self.session.fetch(f"SHOW {name}")
            shown.append((name, str(value)))
        return Facts(await self.session.snapshot(), tuple(shown))

    async def begin(self, table: str) -> None:
        """Begin a transaction, insert our number and stay there."""
        await self.session.execute("BEGIN")
        await self.session.execute(f"INSERT INTO {table} VALUES ({self.number})")  # noqa: S608
        self.in_transaction = True

    async def commit(self) -> None:
        """End the transaction that `begin` began."""
        await self.session.execute("COMMIT")
        self.in_transaction = False


async def open_resting(
    pooler: Pooler, counts: Mapping[str, int], *, first: int = 1
) -> list[Resting]:
    """So many sessions of each driver for each database (pool mode), prepared.

    `counts` are by database; numbers run from `first`.
    """
    numbers = itertools.count(first)
    resting: list[Resting] = []
    for mode, count in counts.items():
        for driver in (PsycopgSession, AsyncpgSession):
            opened = await in_turns(driver.open(pooler, mode) for _ in range(count))
            resting += [Resting(session, mode, next(numbers)) for session in opened]
    await in_turns(one.prepare() for one in resting)
    return resting


async def close_all(resting: Iterable[Resting]) -> None:
    """Leave with every session."""
    await in_turns(one.session.close() for one in resting)


async def in_turns(awaitables: Iterable[Any]) -> list[Any]:
    """The results in order, a few at a time: servers in a pool are fewer than sessions."""
    results: list[Any] = []
    for batch in _batches(awaitables):
        results += await asyncio.gather(*batch)
    return results


def _batches(items: Iterable[Any]) -> Iterable[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, _AT_ONCE)):
        yield batch


async def survivors(resting: Sequence[Resting]) -> list[Resting]:
    """Those whose session still answers. Raises what is no loss of the connection."""

    async def answers(one: Resting) -> bool:
        try:
            await one.session.fetch("SELECT 1")
        except LOST:
            return False
        return True

    found = await in_turns(answers(one) for one in resting)
    return [one for one, alive in zip(resting, found, strict=True) if alive]


async def cancel_each(postgres: Postgres, pooler: Pooler, resting: Sequence[Resting]) -> None:
    """Cancel each session's statement with the key from its login, and no other's.

    The first of two neighbours is canceled while the second still sleeps; then the second. Those
    whose pool mode allows it sleep inside of a transaction. All are usable afterwards. Raises
    AssertionError, or what a session raises that it should not.
    """
    for batch in _batches(resting):
        await _cancel_batch(postgres, pooler, batch)


async def _cancel_batch(postgres: Postgres, pooler: Pooler, batch: Sequence[Resting]) -> None:
    mark = secrets.token_hex(8)
    for one in batch:
        if one.mode != "statement":
            await one.session.execute("BEGIN")
    sleepers = [
        asyncio.ensure_future(one.session.execute(f"SELECT pg_sleep(60) /* {mark} */"))
        for one in batch
    ]
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"

    async def all_sleep() -> bool:
        like = f"SELECT pg_sleep%{mark}%"
        count = await asyncio.to_thread(postgres.value, running, (like,))
        return bool(count == len(batch))

    await wait_until_async(all_sleep, what="all statements to be canceled run", poll_s=0.02)
    for part in (0, 1):
        await asyncio.gather(*(_cancel(pooler, one) for one in batch[part::2]))
        ends = await asyncio.gather(*sleepers[part::2], return_exceptions=True)
        for one, end in zip(batch[part::2], ends, strict=True):
            check(isinstance(end, CANCELED), f"{one.session.driver} {one.number}: {end!r}")
        early = [one.number for one, it in zip(batch, sleepers, strict=True) if it.done()]
        check(part == 1 or early == [one.number for one in batch[::2]], f"canceled: {early}")
    for one in batch:
        if one.mode != "statement":
            await one.session.execute("ROLLBACK")
        check(await one.session.fetch("SELECT 1") == [(1,)], "it is usable after the cancel")


async def _cancel(pooler: Pooler, one: Resting) -> None:
    if isinstance(one.session, PsycopgSession):
        await one.session.connection.cancel_safe(timeout=10)
    elif isinstance(one.session, AsyncpgSession):
        protocol = one.session.connection._protocol
        key = int(protocol.backend_secret).to_bytes(4, "big", signed=True)
        await asyncio.to_thread(send_cancel, (pooler.host, pooler.port), protocol.backend_pid, key)


def check(condition: bool, text: str) -> None:
    """Raise AssertionError: an assert statement in here is not pytest's to explain."""
    if not condition:
        raise AssertionError(text)
