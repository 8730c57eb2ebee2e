"""When nobody serves for long, when sessions are to end, and when pgbouncer is told to go."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeeper.control.client import NoHangerError
from pgkeeper.states import ServiceState
from testbed import RawClient, snapshot, wait_until
from testbed.errors import ConnectionLostError, ServerError
from testbed.process import alive, send
from testbed.rawclient import frontend, text
from tests.system.wrapping import Wrapped, kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from testbed import Bouncer, Keeper, Postgres, RunDir
    from testbed.rawclient import Message

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
MODES = ("session", "transaction", "session")
LONG_RESULT = "SELECT repeat('x', 16 * 1024 * 1024)"


# pgbouncer is told to go


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_pgbouncer_leaves_the_sessions(keeper: Keeper, number: signal.Signals) -> None:
    """A redeploy is not a farewell."""
    with (
        contextlib.closing(keeper.connect(dbname="session")) as idle,
        contextlib.closing(keeper.connect()) as busy,
    ):
        before = snapshot(idle, pinned=True)
        busy.execute("BEGIN")
        transaction = busy.execute("SELECT pg_current_xact_id()::text").fetchall()
        status = keeper.kill_bouncer(number)
        assert (status.sessions.clients_held, status.adoptions.sessions_lost) == (2, 0)
        assert snapshot(idle, pinned=True) == before
        assert busy.execute("SELECT pg_current_xact_id()::text").fetchall() == transaction


def test_sighup_reloads_and_a_mistake_changes_nothing(keeper: Keeper) -> None:
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        before = snapshot(connection, pinned=True)
        pid = keeper.bouncer_pid
        keeper.settings["default_pool_size"] = 7
        keeper.databases["fourth"] = keeper.databases["session"]
        keeper.write_files()
        keeper.hanger.send_signal(signal.SIGHUP)
        wait_until(lambda: shown(keeper, "default_pool_size") == "7", what="reloaded")
        assert keeper.sql("SELECT 1", dbname="fourth") == [(1,)]

        good = keeper.ini_path.read_text()
        keeper.ini_path.write_text("[pgbouncer]\nthis is not a setting\n")
        with keeper.output.contains(r"reload\b.*pgbouncer\.ini:2"):
            keeper.hanger.send_signal(signal.SIGHUP)
        assert shown(keeper, "default_pool_size") == "7"
        assert keeper.bouncer_pid == pid
        keeper.ini_path.write_text(good)

        keeper.kill_bouncer()
        assert shown(keeper, "default_pool_size") == "7"
        assert snapshot(connection, pinned=True) == before


# the sessions are to end


@pytest.fixture
def make_clients(postgres: Postgres) -> Iterator[Callable[..., Clients]]:
    """Makes `Clients`, and closes what is left of them."""
    with contextlib.ExitStack() as stack:
        yield lambda keeper, folder=None: stack.enter_context(
            contextlib.closing(Clients(keeper, postgres, folder))
        )


def test_release_says_goodbye_to_everyone(
    keeper: Keeper, make_clients: Callable[..., Clients]
) -> None:
    clients = make_clients(keeper)
    pids = (keeper.hanger.pid, keeper.bouncer_pid)
    done = keeper.run("release")
    assert done.returncode == 0, done.stderr
    clients.assert_told("57P01")
    assert keeper.hanger.wait(10) == 0
    assert [pid for pid in pids if alive(pid)] == []
    assert leftovers(keeper) == []
    with pytest.raises(NoHangerError):
        keeper.status()
    with pytest.raises(ConnectionRefusedError):
        RawClient(keeper.host, keeper.port)
    clients.assert_rolled_back()
    clients.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_the_end_of_the_hanger_is_an_end(
    keeper: Keeper, make_clients: Callable[..., Clients], number: signal.Signals
) -> None:
    """Ctrl-C of `pgkeeper run`, and what systemd sends."""
    clients = make_clients(keeper)
    pid = keeper.bouncer_pid
    keeper.hanger.send_signal(number)
    clients.assert_told("57P01")
    assert keeper.hanger.wait(10) == 0
    assert not alive(pid)
    assert leftovers(keeper) == []
    clients.assert_rolled_back()


def test_shutdown_at_the_console_is_an_end(keeper: Keeper) -> None:
    with RawClient(keeper.host, keeper.port).login() as client:
        pid = keeper.bouncer_pid
        with pytest.raises(psycopg.OperationalError):
            keeper.admin("SHUTDOWN")
        assert keeper.hanger.wait(10) == 0
        assert not alive(pid)
        assert leftovers(keeper) == []
        with pytest.raises((ServerError, ConnectionLostError)):
            client.read()


# nobody serves


@pytest.fixture
def wrapped(run_dir: RunDir, patched_binary: Path, request: pytest.FixtureRequest) -> Wrapped:
    return Wrapped(run_dir, patched_binary, f"wrapped-{request.node.name[5:30]}")


def test_a_crash_loop_and_the_way_out(
    run_dir: RunDir, postgres: Postgres, wrapped: Wrapped
) -> None:
    with (
        kept(run_dir, postgres, wrapped.path, "crash-loop") as keeper,
        contextlib.closing(keeper.connect(dbname="session")) as connection,
    ):
        before = snapshot(connection, pinned=True)
        wrapped.misbehave("exit 3")
        send(keeper.bouncer_pid, signal.SIGKILL)
        wait_state(keeper, ServiceState.CRASH_LOOP)
        assert keeper.run("status").returncode == 1
        # Who comes now is not refused, and who is there may send.
        with RawClient(keeper.host, keeper.port) as late:
            late.start_up(user="postgres", database="transaction")
            connection.pgconn.send_query(b"SELECT 'patience'")
            wait_until(lambda: keeper.status().sessions.clients_held == 2, what="it is held")

            wrapped.behave()

            late.finish_login()
            assert late.query("SELECT 1") == [("1",)]
            result = connection.pgconn.get_result()
            assert result is not None
            assert result.get_value(0, 0) == b"patience"
            assert connection.pgconn.get_result() is None
        status = keeper.wait_active()
        assert status.adoptions.sessions_lost == 0
        assert snapshot(connection, pinned=True) == before


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_hold_timeout(
    run_dir: RunDir,
    postgres: Postgres,
    wrapped: Wrapped,
    make_clients: Callable[..., Clients],
    unix: bool,
) -> None:
    name = "hold-unix" if unix else "hold-tcp"
    folder = str(run_dir.folder(f"{name}-socket"))
    with kept(
        run_dir,
        postgres,
        wrapped.path,
        name,
        options=("--hold-timeout", "0.5"),
        settings={"unix_socket_dir": folder},
    ) as keeper:
        clients = make_clients(keeper, folder if unix else None)
        wrapped.misbehave("exit 3")
        send(keeper.bouncer_pid, signal.SIGKILL)
        late = clients.connect()
        late.start_up(user="postgres", database="transaction")
        clients.assert_told("57P03")
        assert [message.error_fields()["C"] for message in rest(late)] == ["57P03"]
        late.close()
        clients.assert_rolled_back()
        status = keeper.status()
        assert (status.sessions.clients_held, status.sessions.servers_held) == (0, 0)

        # The service itself is not over.
        wrapped.behave()
        keeper.wait_active()
        assert keeper.sql("SELECT 1") == [(1,)]


def test_without_a_hold_timeout_they_wait_on(
    run_dir: RunDir, postgres: Postgres, wrapped: Wrapped
) -> None:
    """The control: what ended the sessions above was the timeout."""
    options = ("--hold-timeout", "0")
    with (
        kept(run_dir, postgres, wrapped.path, "hold-for-ever", options=options) as keeper,
        RawClient(keeper.host, keeper.port).login() as client,
    ):
        wrapped.misbehave("exit 3")
        send(keeper.bouncer_pid, signal.SIGKILL)
        # As long as a crash loop takes to be called so: over a second.
        wait_state(keeper, ServiceState.CRASH_LOOP)
        wrapped.behave()
        assert client.query("SELECT 1") == [("1",)]


def test_an_unpatched_pgbouncer_leaves_nobody_at_sigterm(vanilla_bouncer: Bouncer) -> None:
    """The control: its SIGQUIT ends everyone without a word."""
    with RawClient(vanilla_bouncer.host, vanilla_bouncer.port).login() as client:
        vanilla_bouncer.kill(signal.SIGQUIT)
        with pytest.raises(ConnectionLostError):
            client.read()


class Clients:
    """An idle client, one in a transaction, and one that is getting a long result."""

    name = "to be ended"

    def __init__(self, keeper: Keeper, postgres: Postgres, folder: str | None) -> None:
        self._keeper = keeper
        self._postgres = postgres
        self._folder = folder
        postgres.sql("DROP TABLE IF EXISTS rolled_back")
        postgres.sql("CREATE TABLE rolled_back (n int)")
        self.idle, self.busy, self.reading = (self._log_in(mode) for mode in MODES)
        self.busy.query("BEGIN")
        self.busy.query("INSERT INTO rolled_back VALUES (1)")
        self.reading.send(frontend("Q", text(LONG_RESULT)))
        # It has begun, and cannot end as long as nobody reads it: one row is 16 MB.
        assert self.reading.read().kind == "T"

    def connect(self) -> RawClient:
        """Another client, on the kind of socket that this is about."""
        client = RawClient(self._keeper.host, self._keeper.port)
        if self._folder is not None:
            client.socket.close()
            client.socket = socket.socket(socket.AF_UNIX)
            client.socket.settimeout(client.timeout)
            client.socket.connect(f"{self._folder}/.s.PGSQL.{self._keeper.port}")
        return client

    def _log_in(self, database: str) -> RawClient:
        client = self.connect()
        return client.login(database=database, parameters={"application_name": self.name})

    def assert_told(self, sqlstate: str) -> None:
        """Those at a message's end are told; the other is cut off, with nothing false in it."""
        for client in (self.idle, self.busy):
            fields = [message.error_fields() for message in rest(client)]
            assert [(one["S"], one["C"]) for one in fields] == [("FATAL", sqlstate)]
        with pytest.raises(ConnectionLostError):
            self.reading.read_any()
        got = bytes(self.reading._buffer)
        # A DataRow's head: type, length, one column, the column's length.
        foreign = got[11:].strip(b"x")
        assert not foreign, f"in the middle of a row: {foreign[:100]!r}"
        assert len(got) > 11

    def assert_rolled_back(self) -> None:
        """The transaction that was open has not been committed, and its server has gone."""
        wait_until(
            lambda: self._postgres.backends(application_name=self.name) == 0, what="servers gone"
        )
        assert self._postgres.value("SELECT count(*) FROM rolled_back") == 0

    def close(self) -> None:
        """Close all."""
        for client in (self.idle, self.busy, self.reading):
            client.close()


def rest(client: RawClient) -> list[Message]:
    """All messages up to the end of the connection, which must be orderly."""
    messages: list[Message] = []
    try:
        while True:
            messages.append(client.read_any())
    except ConnectionLostError as end:
        how = str(end)
    assert how == "closed by the peer"
    return messages


def wait_state(keeper: Keeper, state: ServiceState) -> None:
    """Wait until the service is in that state."""
    wait_until(lambda: keeper.status().pgbouncer.state is state, what=f"state {state}")


def leftovers(keeper: Keeper) -> list[str]:
    """The sockets in the keeper's folder."""
    return [entry.name for entry in keeper.folder.iterdir() if entry.is_socket()]


def shown(keeper: Keeper, key: str) -> str:
    """A setting as the console shows it."""
    (value,) = (row["value"] for row in keeper.admin("SHOW CONFIG") if row["key"] == key)
    return str(value)
