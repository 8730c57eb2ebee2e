"""Replication through pgbouncer over kills: what is received is what the server wrote.

pg_receivewal and pg_recvlogical are told not to connect again, so a lost connection ends them.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, wait_until
from testbed.ledgers import check_ledger, stopped
from testbed.logfile import LogFile
from testbed.pginstall import pg_tool
from testbed.postgres import Postgres
from testbed.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import Bouncer, Keeper, RunDir
    from testbed.pooler import Pooler
    from tests.fix_bouncer import MakeBouncer
    from tests.fix_keeper import MakeKeeper

_KILLS = [12, pytest.param(300, marks=pytest.mark.slow)]
_SLOT = "kept"
_SETTINGS: dict[str, str | int] = {
    "wal_level": "logical",
    # What was committed is in the log at once: a twin of the slot is to find it there.
    "synchronous_commit": "on",
    # What was received is to be compared with it.
    "wal_keep_size": "4GB",
}


@pytest.fixture(scope="module")
def _publisher_server(run_dir: RunDir) -> Iterator[Postgres]:
    with Postgres(run_dir, name="publisher", settings=_SETTINGS) as server:
        server.sql("CREATE TABLE told (n bigint, filling text)")
        yield server


@pytest.fixture
def publisher(_publisher_server: Postgres) -> Iterator[Postgres]:
    """A server that can be replicated from, logically too; its log of this test is printed."""
    start = _publisher_server.log.size()
    yield _publisher_server
    print(f"--- {_publisher_server.name}\n{_publisher_server.log.read(start)}")


def databases(publisher: Postgres) -> dict[str, str]:
    """The database of each kind of replication; physical replication is of none in particular."""
    target = f"host={publisher.host} port={publisher.port} dbname=postgres"
    return {"physical": f"{target} pool_size=3", "logical": f"{target} pool_mode=transaction"}


@pytest.fixture
def keeper(make_keeper: MakeKeeper, publisher: Postgres) -> Keeper:
    # Without asking for TLS first, a server knows from the first packet on whom it logs in for.
    return make_keeper(databases=databases(publisher), settings={"server_tls_sslmode": "disable"})


class Receiver:
    """One of PostgreSQL's programs that receive a stream; a context manager that ends it."""

    def __init__(self, run_dir: RunDir, pooler: Pooler, program: str, database: str) -> None:
        path = pg_tool(program)
        if path is None:
            pytest.skip(f"no {program} here")
        self._run_dir = run_dir
        self._program = run_dir.usable(path)
        self._name = f"{program}-{pooler.name}"
        self._conninfo = pooler.conninfo(dbname=database)
        self.log = LogFile(run_dir.path / f"{self._name}.log")
        self.folder = run_dir.folder(self._name)
        self.process: Process | None = None

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None and self.process.running:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)

    def start(self, *options: str | Path) -> None:
        """Begin with these options, and never connect again."""
        argv = [self._program, "--no-loop", "--verbose", "-d", self._conninfo, *options]
        self.process = Process(self._run_dir, self._name, argv, output=self.log.path)

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        assert self.process is not None
        code = self.process.wait(60)
        assert code == 0, self.log.read()


class Writer:
    """Writes to `told` until the end of the `with` block, rows small and large."""

    def __init__(self, publisher: Postgres) -> None:
        self._publisher = publisher
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _write(self) -> None:
        insert = (
            "INSERT INTO told SELECT n, repeat(md5(n::text), (n %% 7 * 40)::int)"
            " FROM generate_series(%s::bigint, %s) n"
        )
        with contextlib.closing(self._publisher.connect()) as connection:
            first = 1
            while not self._over.is_set():
                connection.execute(insert, (first, first + 50))
                first += 51
                self._over.wait(0.001)


def kill_while_it_streams(keeper: Keeper, publisher: Postgres, kills: int) -> None:
    """Kill each time that the receiver has been sent more."""
    for _ in range(kills):
        await_more(publisher)
        keeper.kill_bouncer()


def await_more(publisher: Postgres) -> None:
    """Return when the receiver has been sent more."""
    before = sent(publisher)
    wait_until(lambda: sent(publisher) > before, what="more is sent", poll_s=0)


def sent(publisher: Postgres) -> int:
    """How far the one receiver has been sent the log."""
    rows = publisher.sql("SELECT sent_lsn - '0/0'::pg_lsn FROM pg_stat_replication")
    assert len(rows) <= 1, rows
    return int(rows[0][0] or 0) if rows else 0


def await_stream(publisher: Postgres) -> None:
    streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    wait_until(lambda: publisher.value(streaming) == 1, what="it streams")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", _KILLS)
def test_the_log_is_received_byte_by_byte(
    run_dir: RunDir, keeper: Keeper, publisher: Postgres, kills: int
) -> None:
    with Receiver(run_dir, keeper, "pg_receivewal", "physical") as receiver:
        receiver.start("-D", receiver.folder)
        await_stream(publisher)
        with Writer(publisher):
            kill_while_it_streams(keeper, publisher, kills)
        end = publisher.value("SELECT pg_current_wal_insert_lsn()")
        publisher.sql("SELECT pg_switch_wal()")
        name = publisher.value("SELECT pg_walfile_name(%s)", (end,))
        wait_until(lambda: (receiver.folder / name).exists(), what="all is received")
        assert received(receiver, publisher) >= 1
        check_ledger(keeper)


def received(receiver: Receiver, publisher: Postgres) -> int:
    """How many whole segments there are, each as the server has it."""
    count = 0
    for path in receiver.folder.iterdir():
        if path.suffix == ".partial":
            continue
        there = publisher.value("SELECT pg_read_binary_file(%s)", (f"pg_wal/{path.name}",))
        assert path.read_bytes() == there, path.name
        count += 1
    return count


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", _KILLS)
def test_changes_are_received_once_and_in_order(
    run_dir: RunDir, keeper: Keeper, publisher: Postgres, kills: int
) -> None:
    """What the server itself decodes from a twin of the slot is the same, to the byte."""
    with (
        slots(publisher, _SLOT, "twin"),
        Receiver(run_dir, keeper, "pg_recvlogical", "logical") as receiver,
    ):
        changes = receiver.folder / "changes"
        receiver.start("--start", "--slot", _SLOT, "-o", "skip-empty-xacts=1", "-f", changes)
        await_stream(publisher)
        with Writer(publisher):
            kill_while_it_streams(keeper, publisher, kills)
        decoded = publisher.sql(
            "SELECT data FROM pg_logical_slot_get_changes('twin', NULL, NULL,"
            " 'skip-empty-xacts', '1')"
        )
        # One more commit, empty: the sender may have missed what was to wake it for the last one.
        publisher.sql("SELECT pg_current_xact_id()")
        expected = "".join(f"{line}\n" for (line,) in decoded).encode()
        assert expected.count(b"\nCOMMIT") >= kills
        wait_until(lambda: changes.stat().st_size >= len(expected), what="all is received")
        assert changes.read_bytes() == expected
        check_ledger(keeper)


@contextlib.contextmanager
def slots(publisher: Postgres, *names: str) -> Iterator[None]:
    """Logical slots that begin at the same place, as nothing is written meanwhile."""
    for name in names:
        publisher.sql("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (name,))
    try:
        yield
    finally:
        for name in names:
            active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
            wait_until(lambda: not publisher.value(active, (name,)), what=f"{name} is free")  # noqa: B023
            publisher.sql("SELECT pg_drop_replication_slot(%s)", (name,))


@pytest.mark.parametrize("database", ["physical", "logical"])
def test_a_kill_while_the_server_logs_in(
    keeper: Keeper, publisher: Postgres, database: str
) -> None:
    """Its login begins anew, with the client's own parameters, and nobody notices.

    Neither the pool's first client, which waits to be welcomed, nor a later one that is in and
    waits with a command.
    """
    for number in range(3):
        name = f"told {number}"
        with ThreadPoolExecutor(1) as thread, contextlib.ExitStack() as stack:
            with stopped(publisher.pid):
                login = thread.submit(ask_for_name, keeper, database, name)
                for _ in range(3):
                    wait_until(lambda: linked(keeper), what="a server logs in for it")
                    assert {row.reason for row in keeper.sessions()} <= {None, "closing"}
                    keeper.kill_bouncer()
                assert not login.done()
            client, told = login.result(10)
            stack.enter_context(client)
            assert told == name
            assert client.query("SHOW work_mem") == [("3MB",)]
            ((system, *_),) = client.query("IDENTIFY_SYSTEM")
            keeper.kill_bouncer()
            assert client.query("IDENTIFY_SYSTEM")[0][0] == system
            if database == "logical":
                assert client.query("SELECT current_database()") == [("postgres",)]


def ask_for_name(pooler: Pooler, database: str, name: str) -> tuple[RawClient, str | None]:
    """A new replication session, and what the server takes its application_name to be."""
    client = log_in(pooler, database, name)
    ((told,),) = client.query("SHOW application_name")
    return client, told


def log_in(pooler: Pooler, database: str, name: str) -> RawClient:
    """A replication session of that application_name."""
    client = RawClient(pooler.host, pooler.port)
    return client.login(
        database=database,
        parameters={
            "replication": "database" if database == "logical" else "true",
            "application_name": name,
            "options": "-c work_mem=3MB",
        },
    )


def linked(keeper: Keeper) -> bool:
    """Whether a server logs in whose client is known already."""
    servers = keeper.admin("SHOW SERVERS")
    return [(row["state"], row["link"] != "") for row in servers] == [("new", True)]


def test_an_unpatched_pgbouncer_loses_the_stream(
    run_dir: RunDir, make_vanilla_bouncer: MakeBouncer, publisher: Postgres
) -> None:
    """The control: the receiver ends with the first kill."""
    bouncer: Bouncer = make_vanilla_bouncer(databases=databases(publisher))
    with Receiver(run_dir, bouncer, "pg_receivewal", "physical") as receiver:
        receiver.start("-D", receiver.folder)
        await_stream(publisher)
        bouncer.kill()
        bouncer.start()
        assert receiver.process is not None
        assert receiver.process.wait(30) == 1
