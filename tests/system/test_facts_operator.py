"""What the operator has said and can see at the console: the same after a kill."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from testbed import RawClient, wait_until
from testbed.account import give
from testbed.errors import ServerError
from testbed.pooler import ADMIN, POOL_MODES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Bouncer, Keeper, Postgres, RunDir
    from testbed.pooler import Pooler
    from tests.fix_keeper import MakeKeeper

# Columns that would tell a client from another one, or one moment from another.
CLIENT_COLUMNS = (
    *("user", "database", "state", "addr", "port", "connect_time", "application_name"),
    *("prepared_statements", "id", "replication"),
)
SERVER_COLUMNS = (
    *("user", "database", "addr", "port", "local_addr", "local_port", "connect_time"),
    *("remote_pid", "application_name", "prepared_statements", "id"),
)


def test_pause_and_resume(keeper: Keeper) -> None:
    with contextlib.closing(keeper.connect()) as session, ThreadPoolExecutor() as threads:
        session.execute("SELECT 1")
        keeper.admin("PAUSE")
        keeper.kill_bouncer()
        answer = threads.submit(session.execute, "SELECT 1")
        wait_until(lambda: waiting(keeper) == 1, what="the query waits")
        keeper.kill_bouncer()
        assert waiting(keeper) == 1
        assert not answer.done()
        keeper.admin("RESUME")
        assert answer.result(10).fetchall() == [(1,)]
        keeper.kill_bouncer()
        assert session.execute("SELECT 1").fetchall() == [(1,)]


def test_pause_of_one_database(keeper: Keeper) -> None:
    with (
        contextlib.closing(keeper.connect(dbname="transaction")) as paused,
        contextlib.closing(keeper.connect(dbname="session")) as free,
        ThreadPoolExecutor() as threads,
    ):
        for one in (paused, free):
            one.execute("SELECT 1")
        keeper.admin("PAUSE transaction")
        keeper.kill_bouncer()
        assert free.execute("SELECT 1").fetchall() == [(1,)]
        answer = threads.submit(paused.execute, "SELECT 1")
        wait_until(lambda: waiting(keeper) == 1, what="the query waits")
        keeper.admin("RESUME transaction")
        assert answer.result(10).fetchall() == [(1,)]


def test_a_session_of_the_console(keeper: Keeper) -> None:
    """It is held like any other, also by its rights."""
    with contextlib.closing(keeper.connect(dbname="pgbouncer", user=ADMIN)) as console:
        version = console.execute("SHOW VERSION").fetchall()
        assert all(row.held for row in keeper.sessions())
        for _ in range(2):
            keeper.kill_bouncer()
            assert console.execute("SHOW VERSION").fetchall() == version
            console.execute("RECONNECT")


def test_show_fds_to_the_own_user(make_keeper: MakeKeeper, run_dir: RunDir) -> None:
    """An unheld console gets descriptors with it, which a kept one's stream has no place for."""
    folder = run_dir.folder("console-socket")
    give(folder, run_dir.account)
    keeper = make_keeper(settings={"unix_socket_dir": str(folder)})
    conninfo = keeper.conninfo(host=str(folder), dbname="pgbouncer", user="pgbouncer")
    with as_account(run_dir):
        own = psycopg.connect(conninfo, autocommit=True)
    with contextlib.closing(own):
        rows = own.execute("SHOW FDS").fetchall()
        assert {row[1] for row in rows} == {"pooler"}
        keeper.kill_bouncer()
        assert {row[1] for row in own.execute("SHOW FDS").fetchall()} == {"pooler"}


@contextlib.contextmanager
def as_account(run_dir: RunDir) -> Iterator[None]:
    """Be, to whom we connect to, the account that pgbouncer has."""
    if run_dir.account is None:
        yield
        return
    before = os.geteuid()
    os.seteuid(run_dir.account.uid)
    try:
        yield
    finally:
        os.seteuid(before)


def test_pause_waits_through_a_kill(keeper: Keeper) -> None:
    """It ends when the transaction does, and the operator who waits is told."""
    with (
        contextlib.closing(keeper.connect()) as busy,
        contextlib.closing(keeper.connect(dbname="pgbouncer", user=ADMIN)) as console,
        ThreadPoolExecutor() as threads,
    ):
        busy.execute("BEGIN")
        pause = threads.submit(console.execute, "PAUSE")
        wait_until(lambda: paused(keeper), what="it pauses")
        keeper.kill_bouncer()
        assert not pause.done()
        busy.execute("COMMIT")
        pause.result(10)
        console.execute("RESUME")
        assert busy.execute("SELECT 1").fetchall() == [(1,)]


def paused(keeper: Keeper) -> bool:
    """Whether PAUSE is in force, or about to be."""
    state = {row["key"]: str(row["value"]) for row in keeper.admin("SHOW STATE")}
    return state["paused"] == "yes"


def test_suspend_ends_with_its_console(keeper: Keeper) -> None:
    """As always when the console that asked for it disconnects; the sessions live on."""
    with (
        contextlib.closing(keeper.connect()) as idle,
        contextlib.closing(keeper.connect(dbname="session")) as busy,
        contextlib.closing(keeper.connect(dbname="pgbouncer", user=ADMIN)) as console,
    ):
        pids = [one.execute("SELECT pg_backend_pid()").fetchall() for one in (idle, busy)]
        busy.execute("BEGIN")
        console.execute("SUSPEND")
        keeper.kill_bouncer()
        assert [one.execute("SELECT pg_backend_pid()").fetchall() for one in (idle, busy)] == pids


def test_a_disabled_database(keeper: Keeper) -> None:
    with contextlib.closing(keeper.connect(dbname="session")) as session:
        keeper.admin("DISABLE session")
        keeper.kill_bouncer()
        with pytest.raises(psycopg.OperationalError, match="is disabled"):
            keeper.connect(dbname="session")
        assert session.execute("SELECT 1").fetchall() == [(1,)]
        keeper.admin("ENABLE session")
        keeper.kill_bouncer()
        assert keeper.sql("SELECT 1", dbname="session") == [(1,)]


def test_a_database_without_a_pool(keeper: Keeper) -> None:
    """Nobody has used it yet, or KILL has ended all that was there."""
    keeper.admin("DISABLE statement")
    keeper.admin("PAUSE transaction")
    keeper.sql("SELECT 1", dbname="session")
    keeper.admin("KILL session")
    for _ in range(2):
        keeper.kill_bouncer()
        set_aside = {
            row["name"]: (row["paused"], row["disabled"]) for row in keeper.admin("SHOW DATABASES")
        }
        assert set_aside["statement"] == (0, 1)
        assert set_aside["transaction"] == set_aside["session"] == (1, 0)
    keeper.admin("ENABLE statement")
    keeper.admin("RESUME transaction")
    keeper.admin("RESUME session")
    keeper.kill_bouncer()
    for name in POOL_MODES:
        assert keeper.sql("SELECT 1", dbname=name) == [(1,)]


def test_settings_of_the_console(keeper: Keeper) -> None:
    keeper.admin("SET default_pool_size = 7")
    keeper.admin("SET server_idle_timeout = 123")
    keeper.kill_bouncer()
    keeper.admin("SET query_wait_timeout = 77")
    keeper.kill_bouncer()
    assert shown(keeper, "default_pool_size") == "7"
    assert shown(keeper, "server_idle_timeout") == "123"
    assert shown(keeper, "query_wait_timeout") == "77"


def test_an_unpatched_pgbouncer_forgets(vanilla_bouncer: Bouncer) -> None:
    """The control: nothing of it stands in a file."""
    vanilla_bouncer.admin("SET default_pool_size = 7")
    vanilla_bouncer.admin("DISABLE session")
    vanilla_bouncer.kill()
    vanilla_bouncer.start()
    assert shown(vanilla_bouncer, "default_pool_size") != "7"
    assert vanilla_bouncer.sql("SELECT 1", dbname="session") == [(1,)]


def test_clients_and_servers_look_the_same(make_keeper: MakeKeeper) -> None:
    keeper = make_keeper(settings={"max_prepared_statements": 10})
    with contextlib.ExitStack() as stack:
        for number, mode in enumerate(["session", "transaction", "transaction", "statement"]):
            session = stack.enter_context(
                contextlib.closing(keeper.connect(dbname=mode, application_name=f"look {number}"))
            )
            session.execute("SELECT %s::int", (number,), prepare=True)
        session = stack.enter_context(contextlib.closing(keeper.connect(application_name="busy")))
        session.execute("BEGIN")
        before = look(keeper)
        assert len(before["clients"]) == 5
        for _ in range(3):
            keeper.kill_bouncer()
            assert look(keeper) == before


def test_totals_go_on(keeper: Keeper) -> None:
    """Monitoring sees no counter go backwards."""
    with contextlib.closing(keeper.connect()) as session:
        for _ in range(50):
            session.execute("SELECT 1")
        # Totals are gathered from the pools now and then.
        wait_until(lambda: total(keeper, "total_query_count") >= 50, what="50 are counted")
        keeper.kill_bouncer()
        for _ in range(50):
            session.execute("SELECT 1")
        wait_until(lambda: total(keeper, "total_query_count") >= 100, what="100 are counted")


@pytest.mark.parametrize(
    ("setting", "database_option", "user_settings", "message"),
    [
        ({"max_client_conn": 3}, "", {}, "no more connections allowed"),
        ({}, "max_db_client_connections=3", {}, "max_db_client_connections"),
        ({}, "", {"postgres": "max_user_client_connections=3"}, "max_user_client_connections"),
    ],
    ids=["max_client_conn", "max_db_client_connections", "max_user_client_connections"],
)
def test_limits_count_the_adopted(
    make_keeper: MakeKeeper,
    postgres: Postgres,
    setting: dict[str, str | int | None],
    database_option: str,
    user_settings: dict[str, str],
    message: str,
) -> None:
    """Neither one more nor one less than before, over kills and departures."""
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    keeper = make_keeper(
        settings=setting,
        databases={"transaction": f"{target} pool_mode=transaction {database_option}"},
        user_settings=user_settings,
    )
    clients = [RawClient(keeper.host, keeper.port).login() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for client in clients:
            stack.enter_context(client)
        for _ in range(2):
            keeper.kill_bouncer()
            with pytest.raises(psycopg.OperationalError, match=message):
                keeper.connect()
            clients.pop().close()
            # The refused one's departure may still be on its way.
            wait_until(lambda: log_in_another(keeper, clients), what="there is room for one")
            stack.enter_context(clients[-1])


def log_in_another(keeper: Keeper, clients: list[RawClient]) -> bool:
    """Add a client to `clients`; False if there is no room for it."""
    client = RawClient(keeper.host, keeper.port)
    try:
        clients.append(client.login())
    except ServerError:
        client.close()
        return False
    return True


def test_a_server_limit_counts_the_adopted(make_keeper: MakeKeeper) -> None:
    keeper = make_keeper(settings={"max_db_connections": 2, "default_pool_size": 10})
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as threads:
        sessions = [stack.enter_context(contextlib.closing(keeper.connect())) for _ in range(3)]
        for session in sessions[:2]:
            session.execute("BEGIN")
        keeper.kill_bouncer()
        answer = threads.submit(sessions[2].execute, "SELECT 1")
        wait_until(lambda: waiting(keeper) == 1, what="the third waits")
        keeper.kill_bouncer()
        assert len(keeper.admin("SHOW SERVERS")) == 2
        sessions[0].execute("COMMIT")
        assert answer.result(10).fetchall() == [(1,)]


def look(keeper: Keeper) -> dict[str, list[dict[str, Any]]]:
    """What SHOW CLIENTS and SHOW SERVERS say, less the console itself and the time that passes."""
    clients = [row for row in keeper.admin("SHOW CLIENTS") if row["database"] != "pgbouncer"]
    servers = keeper.admin("SHOW SERVERS")
    return {
        "clients": sorted_by_id([{key: row[key] for key in CLIENT_COLUMNS} for row in clients]),
        "servers": sorted_by_id([{key: row[key] for key in SERVER_COLUMNS} for row in servers]),
    }


def sorted_by_id(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in an order of their own."""
    return sorted(rows, key=lambda row: int(row["id"]))


def waiting(pooler: Pooler) -> int:
    """How many clients wait for a server."""
    return sum(int(row["cl_waiting"]) for row in pooler.admin("SHOW POOLS"))


def total(pooler: Pooler, column: str) -> int:
    """A total over all databases."""
    return sum(int(row[column]) for row in pooler.admin("SHOW STATS"))


def shown(pooler: Pooler, key: str) -> str:
    """A setting as the console shows it."""
    (value,) = (row["value"] for row in pooler.admin("SHOW CONFIG") if row["key"] == key)
    return str(value)
