"""The negative control: what SIGKILL does to the sessions of an unpatched PgBouncer.

Every claim that a kept session survives is worth something only because here, with the same
drivers, the same settings and the same kill, none does.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest

from testbed import (
    AsyncpgSession,
    PsycopgSession,
    RawClient,
    Session,
    snapshot,
    wait_until,
)
from testbed.errors import ConnectionLostError
from testbed.rawclient import frontend, text

if TYPE_CHECKING:
    from testbed import Bouncer, Postgres

# What the drivers raise when the peer has closed or reset the connection, and nothing wider: a
# session that answers with any other error would still be there.
LOST = (
    psycopg.OperationalError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.InterfaceError,
    ConnectionResetError,
)

POOL_MODES = ["session", "transaction"]
DRIVERS = [PsycopgSession, AsyncpgSession]


@pytest.mark.parametrize("mode", POOL_MODES)
@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.driver)
def test_idle_session_is_lost(
    vanilla_bouncer: Bouncer, driver: type[PsycopgSession | AsyncpgSession], mode: str
) -> None:
    async def scenario() -> None:
        session: Session = await driver.open(vanilla_bouncer, mode)
        await session.execute("SET application_name TO 'kept'")
        before = await session.snapshot()
        assert before == await session.snapshot()
        assert dict(before.settings)["application_name"] == "kept"

        vanilla_bouncer.kill()
        vanilla_bouncer.start()

        with pytest.raises(LOST):
            await session.fetch("SELECT 1")
        assert session.lost
        await session.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", POOL_MODES)
@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.driver)
def test_open_transaction_is_rolled_back(
    vanilla_bouncer: Bouncer,
    postgres: Postgres,
    driver: type[PsycopgSession | AsyncpgSession],
    mode: str,
) -> None:
    postgres.sql("DROP TABLE IF EXISTS baseline")
    postgres.sql("CREATE TABLE baseline (n int)")

    async def scenario() -> None:
        session: Session = await driver.open(vanilla_bouncer, mode)
        await session.execute("BEGIN")
        await session.execute("INSERT INTO baseline VALUES (1)")

        vanilla_bouncer.kill()

        with pytest.raises(LOST):
            await session.execute("COMMIT")
        assert session.lost
        await session.close()

    asyncio.run(scenario())
    assert postgres.value("SELECT count(*) FROM baseline") == 0


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.driver)
def test_query_in_progress_fails(
    vanilla_bouncer: Bouncer,
    postgres: Postgres,
    driver: type[PsycopgSession | AsyncpgSession],
) -> None:
    statement = "SELECT pg_sleep(30) /* baseline in progress */"

    async def scenario() -> None:
        session: Session = await driver.open(vanilla_bouncer, "transaction")
        sleeper = asyncio.ensure_future(session.execute(statement))
        await asyncio.to_thread(wait_until, lambda: postgres.runs(statement), what="it runs")

        vanilla_bouncer.kill()

        with pytest.raises(LOST):
            await asyncio.wait_for(sleeper, 5)
        assert session.lost
        await session.close()

    asyncio.run(scenario())
    # PostgreSQL notices the lost client only when the statement ends.
    end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query = %s"
    assert postgres.value(end, (statement,)) is True


def test_the_servers_go_with_it(vanilla_bouncer: Bouncer, postgres: Postgres) -> None:
    """A temporary table, LISTEN and an advisory lock end: the server process itself ends."""
    with contextlib.closing(vanilla_bouncer.connect(dbname="session")) as connection:
        connection.execute("CREATE TEMP TABLE kept (n int); LISTEN kept")
        connection.execute("SELECT pg_advisory_lock(4711)")
        pid = snapshot(connection, pinned=True).backend_pid
        assert pid is not None

        vanilla_bouncer.kill()

        def gone() -> bool:
            return not postgres.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,))

        wait_until(gone, what="the server process has ended")
        assert postgres.value("SELECT pg_try_advisory_lock(4711)") is True
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT * FROM kept")


def test_a_login_in_progress_is_closed(vanilla_bouncer: Bouncer) -> None:
    idle = vanilla_bouncer.sockets()
    with RawClient(vanilla_bouncer.host, vanilla_bouncer.port) as client:
        # Half a StartupMessage: PgBouncer waits for the rest.
        client.send(frontend("", b"\0\3\0\0", text("user"))[:-2])
        wait_until(lambda: vanilla_bouncer.sockets() > idle, what="it was accepted")

        vanilla_bouncer.kill()

        with pytest.raises(ConnectionLostError):
            client.read()


def test_nobody_connects_until_it_is_back(vanilla_bouncer: Bouncer) -> None:
    vanilla_bouncer.kill()
    with pytest.raises(ConnectionRefusedError):
        RawClient(vanilla_bouncer.host, vanilla_bouncer.port)

    vanilla_bouncer.start()
    assert vanilla_bouncer.sql("SELECT 1") == [(1,)]


def test_old_cancel_keys_are_worthless(vanilla_bouncer: Bouncer, postgres: Postgres) -> None:
    """A new PgBouncer knows no key of the old one, so a running statement goes on."""
    with RawClient(vanilla_bouncer.host, vanilla_bouncer.port).login() as old:
        vanilla_bouncer.kill()
        vanilla_bouncer.start()
        with RawClient(vanilla_bouncer.host, vanilla_bouncer.port).login() as new:
            statement = "SELECT pg_sleep(0.3) /* not to be canceled */"
            new.send(frontend("Q", text(statement)))
            wait_until(lambda: postgres.runs(statement), what="it runs")
            old.cancel()
            assert "E" not in [message.kind for message in new.until_ready()]


def test_the_control_itself_holds_without_a_kill(vanilla_bouncer: Bouncer) -> None:
    """Without the kill every one of these sessions goes on: it is the kill that ends them."""

    async def scenario() -> None:
        for driver in (PsycopgSession, AsyncpgSession):
            session: Session = await driver.open(vanilla_bouncer, "session", application_name="a")
            before = await session.snapshot()
            assert await session.cancel_works()
            vanilla_bouncer.process.send_signal(signal.SIGHUP)
            assert await session.snapshot() == before
            await session.close()

    asyncio.run(scenario())
