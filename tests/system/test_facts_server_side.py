"""What lives in the server process goes on, because the server connection does."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import psycopg
import pytest

from testbed import snapshot, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Bouncer, Keeper, Postgres
    from testbed.postgres import Connection
    from tests.fix_keeper import MakeKeeper

# How pgbouncer may go, beside SIGKILL: a crash is no different.
SIGNALS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]


@pytest.fixture
def session(keeper: Keeper) -> Iterator[Connection]:
    """A session that keeps its server: pooling by session."""
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        yield connection


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_same_server_process(
    keeper: Keeper, session: Connection, number: signal.Signals
) -> None:
    before = snapshot(session, pinned=True)
    keeper.kill_bouncer(number)
    assert snapshot(session, pinned=True) == before
    assert before.backend_pid == session.execute("SELECT pg_backend_pid()").fetchall()[0][0]


def test_a_server_that_nobody_has_used_yet(make_keeper: MakeKeeper, postgres: Postgres) -> None:
    """Its login is no client's doing, and nothing happens after it."""
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    keeper = make_keeper(databases={"warm": f"{target} user=postgres min_pool_size=1"})
    wait_until(lambda: keeper.status().sessions.servers_held == 1, what="it is there", poll_s=0.001)
    keeper.kill_bouncer()
    (row,) = keeper.admin("SHOW SERVERS")
    assert keeper.sql("SELECT pg_backend_pid()", dbname="warm") == [(row["remote_pid"],)]
    assert keeper.status().sessions.servers_held == 1
    assert "adopted 0 clients and 1 servers" in keeper.log.read()


def test_temporary_tables(keeper: Keeper, session: Connection) -> None:
    session.execute("CREATE TEMP TABLE kept (n int); INSERT INTO kept VALUES (1), (2)")
    keeper.kill_bouncer()
    session.execute("INSERT INTO kept VALUES (3)")
    assert session.execute("SELECT n FROM kept ORDER BY n").fetchall() == [(1,), (2,), (3,)]


def test_listen(keeper: Keeper, session: Connection, postgres: Postgres) -> None:
    session.execute("LISTEN kept")
    keeper.kill_bouncer()
    postgres.sql("NOTIFY kept, 'after the kill'")
    notifies = list(session.notifies(timeout=10, stop_after=1))
    assert [(one.channel, one.payload) for one in notifies] == [("kept", "after the kill")]


def test_a_notification_while_nobody_serves(
    keeper: Keeper, session: Connection, postgres: Postgres
) -> None:
    """It waits in the kernel, or arrived in part: either way it comes once and whole."""
    session.execute("LISTEN kept")
    for turn in range(5):
        postgres.sql(f"NOTIFY kept, 'turn {turn} {'x' * 7000}'")
        keeper.kill_bouncer()
        (one,) = session.notifies(timeout=10, stop_after=1)
        assert one.payload == f"turn {turn} {'x' * 7000}"


def test_advisory_locks(keeper: Keeper, session: Connection, postgres: Postgres) -> None:
    session.execute("SELECT pg_advisory_lock(4712)")
    keeper.kill_bouncer()
    assert postgres.value("SELECT pg_try_advisory_lock(4712)") is False
    assert session.execute("SELECT pg_advisory_unlock(4712)").fetchall() == [(True,)]
    assert postgres.value("SELECT pg_try_advisory_lock(4712)") is True


def test_a_cursor_with_hold(keeper: Keeper, session: Connection) -> None:
    session.execute("DECLARE kept CURSOR WITH HOLD FOR SELECT n FROM generate_series(1, 5) AS n")
    assert session.execute("FETCH 2 FROM kept").fetchall() == [(1,), (2,)]
    keeper.kill_bouncer()
    assert session.execute("FETCH ALL FROM kept").fetchall() == [(3,), (4,), (5,)]


def test_a_cursor_in_a_transaction_with_savepoints(keeper: Keeper, session: Connection) -> None:
    session.execute("CREATE TEMP TABLE kept (n int)")
    session.execute("BEGIN")
    session.execute("DECLARE c CURSOR FOR SELECT n FROM generate_series(1, 5) AS n")
    assert session.execute("FETCH 2 FROM c").fetchall() == [(1,), (2,)]
    session.execute("INSERT INTO kept VALUES (1); SAVEPOINT one; INSERT INTO kept VALUES (2)")
    keeper.kill_bouncer()
    assert session.execute("FETCH ALL FROM c").fetchall() == [(3,), (4,), (5,)]
    session.execute("ROLLBACK TO one; COMMIT")
    assert session.execute("SELECT n FROM kept").fetchall() == [(1,)]


def test_a_failed_transaction_stays_failed(keeper: Keeper, session: Connection) -> None:
    session.execute("BEGIN")
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.execute("SELECT 1/0")
    keeper.kill_bouncer()
    assert session.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        session.execute("SELECT 1")
    session.execute("ROLLBACK")
    assert session.execute("SELECT 1").fetchall() == [(1,)]


def test_statements_prepared_in_sql(keeper: Keeper, session: Connection) -> None:
    session.execute("PREPARE kept AS SELECT 42")
    keeper.kill_bouncer()
    assert session.execute("EXECUTE kept").fetchall() == [(42,)]


def test_settings_that_pgbouncer_does_not_track(keeper: Keeper, session: Connection) -> None:
    session.execute("SET search_path TO kept, public; SET work_mem TO '7MB'")
    keeper.kill_bouncer()
    assert session.execute("SHOW search_path").fetchall() == [("kept, public",)]
    assert session.execute("SHOW work_mem").fetchall() == [("7MB",)]


def test_the_next_user_of_the_server_gets_it_clean(keeper: Keeper, session: Connection) -> None:
    """The reset query still runs on a server that changed hands after a kill."""
    session.execute("CREATE TEMP TABLE kept (n int); SET work_mem TO '7MB'")
    pid = snapshot(session, pinned=True).backend_pid
    keeper.kill_bouncer()
    session.close()
    with contextlib.closing(keeper.connect(dbname="session")) as other:
        assert snapshot(other, pinned=True).backend_pid == pid
        assert other.execute("SHOW work_mem").fetchall() != [("7MB",)]
        assert other.execute("SELECT to_regclass('kept')").fetchall() == [(None,)]


def test_an_unpatched_pgbouncer_keeps_no_server(
    vanilla_bouncer: Bouncer, postgres: Postgres
) -> None:
    """The control for all of the above: the lock is free, which only a new server allows."""
    with contextlib.closing(vanilla_bouncer.connect(dbname="session")) as connection:
        connection.execute("SELECT pg_advisory_lock(4712)")
        vanilla_bouncer.kill()
        vanilla_bouncer.start()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert postgres.value("SELECT pg_advisory_lock(4712) IS NOT NULL") is True
