"""A successor reads the ini anew: what has changed in it since, with and without a RELOAD."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg
import pytest

from testbed import RawClient, wait_until
from testbed.errors import ConnectionLostError
from testbed.ledgers import check_ledger, stopped
from testbed.rawclient import frontend, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Keeper, Postgres
    from tests.fix_keeper import MakeKeeper

_OTHER = "other"
_GONE = "pgbouncer was restarted, and its configuration no longer has this database or user"


@pytest.fixture(scope="module")
def _other_database(_postgres_server: Postgres) -> None:
    """A second database on the same server, for databases whose target changes."""
    _postgres_server.sql(f"CREATE DATABASE {_OTHER}")


@pytest.fixture
def target(postgres: Postgres, _other_database: None) -> str:
    """Where all databases are, but for the name there."""
    return f"host={postgres.host} port={postgres.port} pool_mode=transaction"


@pytest.fixture
def keeper(make_keeper: MakeKeeper, target: str, postgres: Postgres) -> Keeper:
    for name in ("alice", "bob"):
        if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)):
            postgres.add_user(name)
    return make_keeper(
        databases={
            "kept": f"{target} dbname=postgres",
            "moved": f"{target} dbname=postgres pool_size=1",
        },
        users={"alice": "", "bob": ""},
    )


class Bystanders:
    """Sessions that go on as they were: one in a transaction, one at rest, of two users."""

    def __init__(self, keeper: Keeper, stack: contextlib.ExitStack) -> None:
        self._busy = stack.enter_context(contextlib.closing(keeper.connect(dbname="kept")))
        self._idle = stack.enter_context(
            contextlib.closing(keeper.connect(dbname="kept", user="bob"))
        )
        self._busy.execute("BEGIN")
        self._idle.execute("SET application_name = 'bystander'")
        self._before = self._look()

    def _look(self) -> tuple[object, ...]:
        return (
            self._busy.execute("SELECT pg_current_xact_id()::text, pg_backend_pid()").fetchall(),
            self._idle.execute("SHOW application_name").fetchall(),
            self._busy.pgconn.backend_pid,
            self._idle.pgconn.backend_pid,
        )

    def assert_undisturbed(self) -> None:
        assert self._look() == self._before


@pytest.fixture
def bystanders(keeper: Keeper) -> Iterator[Bystanders]:
    with contextlib.ExitStack() as stack:
        yield Bystanders(keeper, stack)


def log_in(keeper: Keeper, database: str, user: str = "postgres") -> RawClient:
    """A session of that user in that database."""
    return RawClient(keeper.host, keeper.port).login(database=database, user=user)


def test_a_database_that_is_gone(
    keeper: Keeper, bystanders: Bystanders, postgres: Postgres
) -> None:
    """At rest, in a transaction, waiting, logging in: one clear error each, and the end."""
    with contextlib.ExitStack() as stack:
        idle, waiting, busy = (stack.enter_context(log_in(keeper, "moved")) for _ in range(3))
        busy.query("BEGIN")
        ((pid,),) = busy.query("SELECT pg_backend_pid()")
        waiting.send(frontend("Q", text("SELECT 'never'")))
        early = stack.enter_context(RawClient(keeper.host, keeper.port))
        with stopped(postgres.pid):
            early.start_up(user="alice", database="moved")
            wait_until(lambda: states(keeper).count("waiting") == 2, what="two wait")
            del keeper.databases["moved"]
            keeper.write_files()

            status = keeper.kill_bouncer()

            for client in (idle, waiting, busy, early):
                assert end_of(client) == ("FATAL", "57P01", _GONE)
        assert status.adoptions.sessions_lost == 4
        running = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s::int"
        wait_until(lambda: postgres.value(running, (pid,)) == 0, what="its server is gone")
        bystanders.assert_undisturbed()
        with pytest.raises(psycopg.OperationalError, match="no such database"):
            keeper.connect(dbname="moved")
        check_ledger(keeper)


def test_a_database_that_is_gone_in_the_middle_of_a_message(
    keeper: Keeper, bystanders: Bystanders
) -> None:
    """No error can be told within a result: it breaks off, and nothing is put into it."""
    with RawClient(keeper.host, keeper.port, receive_buffer=4096) as reader:
        reader.login(database="moved")
        reader.send(frontend("Q", text("SELECT repeat('x', 10000000)")))
        assert reader.read().kind == "T"
        del keeper.databases["moved"]
        keeper.write_files()
        keeper.kill_bouncer()
        head = reader.read_bytes(11)
        assert head[:1] == b"D"
        with pytest.raises(ConnectionLostError):
            read_only(reader, b"x")
        bystanders.assert_undisturbed()


def test_a_user_that_is_gone(keeper: Keeper, bystanders: Bystanders) -> None:
    """The other users of the same database stay, and the user may come back."""
    with contextlib.ExitStack() as stack:
        idle, busy = (stack.enter_context(log_in(keeper, "kept", "alice")) for _ in range(2))
        busy.query("BEGIN")
        del keeper.users["alice"]
        keeper.write_files()
        keeper.kill_bouncer()
        for client in (idle, busy):
            assert end_of(client) == ("FATAL", "57P01", _GONE)
        bystanders.assert_undisturbed()
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            keeper.connect(dbname="kept", user="alice")
        keeper.users["alice"] = ""
        keeper.write_files()
        keeper.kill_bouncer()
        with log_in(keeper, "kept", "alice") as client:
            assert client.query("SELECT current_user") == [("alice",)]
        bystanders.assert_undisturbed()
        check_ledger(keeper)


def test_a_database_for_every_name_that_is_gone(make_keeper: MakeKeeper, target: str) -> None:
    """Who is in one that is named stays; who came in by "*" is told."""
    keeper = make_keeper(
        databases={"kept": f"{target} dbname=postgres", "*": f"{target} dbname=postgres"}
    )
    with (
        log_in(keeper, "kept") as named,
        log_in(keeper, "anything") as starred,
        log_in(keeper, "whatever") as busy,
    ):
        named.query("BEGIN")
        starred.query("SET application_name = 'starred'")
        busy.query("BEGIN")
        keeper.kill_bouncer()
        assert starred.query("SHOW application_name") == [("starred",)]
        busy.query("COMMIT")
        del keeper.databases["*"]
        keeper.write_files()
        keeper.kill_bouncer()
        for client in (starred, busy):
            assert end_of(client) == ("FATAL", "57P01", _GONE)
        named.query("COMMIT")


def test_a_database_that_is_now_one_of_every_name(make_keeper: MakeKeeper, target: str) -> None:
    """It is there still, somewhere else: as if its target had changed."""
    other = f"{target} dbname={_OTHER}"
    keeper = make_keeper(databases={"named": f"{target} dbname=postgres", "*": other})
    with log_in(keeper, "named") as client:
        client.query("BEGIN")
        del keeper.databases["named"]
        keeper.write_files()
        keeper.kill_bouncer()
        assert client.query("SELECT current_database()") == [("postgres",)]
        client.query("COMMIT")
        assert client.query("SELECT current_database()") == [(_OTHER,)]


@pytest.mark.parametrize("told", [True, False], ids=["reloaded", "not reloaded"])
def test_a_database_that_has_moved(keeper: Keeper, bystanders: Bystanders, told: bool) -> None:
    """A transaction goes on where it was, whatever comes after it is somewhere else.

    With and without a RELOAD before the kill.
    """
    with log_in(keeper, "moved") as busy, log_in(keeper, "moved") as waiting:
        busy.query("BEGIN")
        waiting.send(frontend("Q", text("SELECT current_database()")))
        wait_until(lambda: states(keeper).count("waiting") == 1, what="one waits")
        keeper.databases["moved"] = keeper.databases["moved"].replace("postgres", _OTHER)
        keeper.write_files()
        if told:
            keeper.admin("RELOAD")
        for _ in range(2):
            keeper.kill_bouncer()
            assert busy.query("SELECT current_database()") == [("postgres",)]
        busy.query("COMMIT")
        rows = [message.row() for message in waiting.until_ready() if message.kind == "D"]
        assert rows == [(_OTHER,)]
        assert busy.query("SELECT current_database()") == [(_OTHER,)]
        keeper.kill_bouncer()
        assert busy.query("SELECT current_database()") == [(_OTHER,)]
        bystanders.assert_undisturbed()


def test_a_reload_that_takes_a_database_away(keeper: Keeper, bystanders: Bystanders) -> None:
    """pgbouncer ends its sessions itself, and after a kill nothing of it is left."""
    with log_in(keeper, "moved") as client:
        client.query("BEGIN")
        del keeper.databases["moved"]
        keeper.write_files()
        keeper.admin("RELOAD")
        keeper.kill_bouncer()
        severity, _, message = end_of(client)
        assert (severity, message) == ("FATAL", "database removed")
        bystanders.assert_undisturbed()
        keeper.databases["moved"] = keeper.databases["kept"]
        keeper.write_files()
        keeper.admin("RELOAD")
        keeper.kill_bouncer()
        with log_in(keeper, "moved") as again:
            assert again.query("SELECT 1") == [("1",)]
        bystanders.assert_undisturbed()
        check_ledger(keeper)


def test_a_reload_forgets_what_the_console_has_set(keeper: Keeper) -> None:
    """And a kill brings it not back; a RELOAD of new values stands as well."""
    keeper.admin("SET default_pool_size = 7")
    keeper.admin("SET query_wait_timeout = 77")
    keeper.settings["query_wait_timeout"] = 33
    keeper.write_files()
    keeper.admin("RELOAD")
    before = {row["key"]: row["value"] for row in keeper.admin("SHOW CONFIG")}
    assert (before["default_pool_size"], before["query_wait_timeout"]) == ("20", "33")
    keeper.kill_bouncer()
    assert {row["key"]: row["value"] for row in keeper.admin("SHOW CONFIG")} == before


@pytest.mark.parametrize("told", [True, False], ids=["reloaded", "not reloaded"])
def test_another_forced_user(keeper: Keeper, bystanders: Bystanders, told: bool) -> None:
    """Sessions of a database get the new user with their next server."""
    base = keeper.databases["moved"]
    keeper.databases["moved"] = f"{base} user=alice"
    keeper.write_files()
    keeper.admin("RELOAD")
    with log_in(keeper, "moved", "bob") as session:
        assert session.query("SELECT current_user") == [("alice",)]
        session.query("BEGIN")
        keeper.databases["moved"] = f"{base} user=bob"
        keeper.write_files()
        if told:
            keeper.admin("RELOAD")
        keeper.kill_bouncer()
        assert session.query("SELECT current_user") == [("alice",)]
        session.query("COMMIT")
        assert session.query("SELECT current_user") == [("bob",)]
        keeper.kill_bouncer()
        assert session.query("SELECT current_user") == [("bob",)]
        bystanders.assert_undisturbed()


def end_of(client: RawClient) -> tuple[str, str, str]:
    """Severity, SQLSTATE and message of the error that ends a session, and nothing after it."""
    message = client.read_any()
    while message.kind != "E":
        message = client.read_any()
    fields = message.error_fields()
    with pytest.raises(ConnectionLostError):
        client.read_any()
    return fields["S"], fields["C"], fields["M"]


def read_only(client: RawClient, byte: bytes) -> None:
    """Read as long as this byte comes. Raises `ConnectionLostError` at the end."""
    while True:
        assert client.read_bytes(1) == byte


def states(keeper: Keeper) -> list[str]:
    """The clients' states."""
    return [row.state for row in keeper.sessions() if row.kind == "client"]
