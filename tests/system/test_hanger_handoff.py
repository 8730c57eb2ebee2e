"""`pgkeeper handoff`: under load without an error, and back to the old one if the new one fails."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from testbed import RawClient, snapshot, wait_until
from testbed.account import give
from testbed.errors import ConnectionLostError, ServerError
from testbed.ledgers import check_ledger
from testbed.pgbench import Pgbench, balances
from testbed.process import alive
from tests.system.wrapping import Wrapped, expect_fatal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Keeper, Postgres, RunDir
    from testbed.postgres import Connection
    from tests.fix_keeper import MakeKeeper

HANDOFFS = 5


@pytest.mark.parametrize("standby", [False, True], ids=["no-standby", "standby"])
def test_five_handoffs_under_load(
    run_dir: RunDir, make_keeper: MakeKeeper, postgres: Postgres, standby: bool
) -> None:
    keeper = make_keeper(settings={"default_pool_size": 5}, standby=standby)
    pids = [keeper.bouncer_pid]
    with Pgbench(run_dir, keeper, name=f"pgbench-{keeper.name}") as pgbench:
        pgbench.make_tables(postgres)
        pgbench.start(database="transaction", clients=10, transactions=4000, protocol="simple")
        for _ in range(HANDOFFS):
            wait_for_more(postgres, 50)
            report = keeper.client.handoff(None, None, lambda progress: None)
            assert (report.lost, report.pid) == ({}, keeper.bouncer_pid)
            pids.append(report.pid)
        assert pgbench.running, "it ended before the last handoff"
        result = pgbench.finish()
    assert (result.exit_code, result.failed) == (0, 0), result.output
    accounts, tellers, branches, history, lines = balances(postgres)
    assert accounts == tellers == branches == history
    assert lines == result.transactions
    assert len(set(pids)) == HANDOFFS + 1
    assert [pid for pid in pids if alive(pid)] == [pids[-1]]
    assert keeper.status().adoptions.sessions_lost == 0
    check_ledger(keeper)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_handoffs_between_two_binaries(
    run_dir: RunDir, make_keeper: MakeKeeper, postgres: Postgres, patched_binary: Path
) -> None:
    keeper = make_keeper(settings={"default_pool_size": 5}, standby=True)
    folder = run_dir.folder(f"{keeper.name}-two")
    programs = [folder / "one", folder / "other"]
    for program in programs:
        shutil.copy(patched_binary, program)
        program.chmod(0o755)
    with Pgbench(run_dir, keeper, name=f"pgbench-{keeper.name}") as pgbench:
        pgbench.make_tables(postgres)
        pgbench.start(database="transaction", clients=10, transactions=400_000, protocol="extended")
        for number in range(200):
            wait_for_more(postgres, 20)
            report = keeper.client.handoff(programs[number % 2], None, lambda progress: None)
            assert report.lost == {}
            assert running(keeper) == programs[number % 2]
        assert pgbench.running, "it ended before the last handoff"
        result = pgbench.finish(300)
    assert (result.exit_code, result.failed) == (0, 0), result.output
    accounts, tellers, branches, history, lines = balances(postgres)
    assert accounts == tellers == branches == history
    assert lines == result.transactions
    assert keeper.status().adoptions.sessions_lost == 0


def test_to_another_binary_and_another_ini(
    make_keeper: MakeKeeper, run_dir: RunDir, patched_binary: Path
) -> None:
    """Both are remembered: a kill afterwards starts the new one again."""
    keeper = make_keeper()
    other = run_dir.folder(f"{keeper.name}-new") / "pgbouncer"
    shutil.copy(patched_binary, other)
    other.chmod(0o755)
    ini = other_ini(keeper, default_pool_size=7)
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        before = snapshot(connection, pinned=True)
        done = keeper.run("handoff", "--pgbouncer", other, "--ini", ini)
        assert done.returncode == 0, done.stderr
        for _ in range(2):
            assert snapshot(connection, pinned=True) == before
            assert running(keeper) == other
            assert shown(keeper, "default_pool_size") == "7"
            keeper.kill_bouncer()


class Live:
    """What must not notice a handoff that fails."""

    def __init__(self, keeper: Keeper, idle: Connection, busy: Connection) -> None:
        self._keeper = keeper
        self._idle, self._busy = idle, busy
        self._pid = keeper.bouncer_pid
        self._before = snapshot(idle, pinned=True)
        busy.execute("BEGIN")
        self._transaction = self._transaction_id()

    def _transaction_id(self) -> object:
        return self._busy.execute("SELECT pg_current_xact_id()::text").fetchall()

    def assert_untouched(self) -> None:
        """Not even by an adoption: the old pgbouncer still runs."""
        assert self._keeper.bouncer_pid == self._pid
        self.assert_intact()

    def assert_intact(self) -> None:
        """Both sessions are where they were, and others may come."""
        assert snapshot(self._idle, pinned=True) == self._before
        assert self._transaction_id() == self._transaction
        assert self._keeper.sql("SELECT 1") == [(1,)]


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    return make_keeper()


@pytest.fixture
def live(keeper: Keeper) -> Iterator[Live]:
    """Sessions beside the handoff; they are looked at again after a kill at the very end."""
    with contextlib.ExitStack() as stack:
        idle, busy = (
            stack.enter_context(contextlib.closing(keeper.connect(dbname=mode)))
            for mode in ("session", "transaction")
        )
        sessions = Live(keeper, idle, busy)
        yield sessions
        keeper.kill_bouncer()
        sessions.assert_intact()


def assert_failed(keeper: Keeper, live: Live, *words: str | Path, reason: str) -> None:
    """The handoff fails with 1 and a line that says why, and nobody has noticed."""
    done = keeper.run("handoff", *words)
    assert done.returncode == 1
    assert done.stdout == ""
    *progress, last = done.stderr.splitlines()
    assert last.startswith("pgkeeper: ")
    assert reason in last
    assert not [line for line in progress if "pgkeeper:" in line or "Traceback" in line]
    live.assert_untouched()
    assert keeper.run("status").returncode == 0


def test_to_an_unpatched_pgbouncer(keeper: Keeper, live: Live, vanilla_binary: Path) -> None:
    assert_failed(
        keeper, live, "--pgbouncer", vanilla_binary, reason="no keeper support: build it with"
    )


def test_to_a_binary_that_is_not_there(keeper: Keeper, live: Live) -> None:
    assert_failed(keeper, live, "--pgbouncer", "/no/such/pgbouncer", reason="/no/such/pgbouncer")


def test_to_a_binary_that_dies_at_once(
    keeper: Keeper, live: Live, run_dir: RunDir, patched_binary: Path
) -> None:
    wrapped = Wrapped(run_dir, patched_binary, f"{keeper.name}-dies")
    wrapped.misbehave("exit 3")
    assert_failed(keeper, live, "--pgbouncer", wrapped.path, reason="exit status 3")


def test_to_a_binary_that_cannot_adopt(
    keeper: Keeper, live: Live, run_dir: RunDir, patched_binary: Path
) -> None:
    """It stands by, the old one is ended, and then it has no room for the sockets: back again."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(RawClient(keeper.host, keeper.port)).login() for _ in range(100)
        ]
        wrapped = Wrapped(run_dir, patched_binary, f"{keeper.name}-narrow")
        wrapped.misbehave("ulimit -n 60")
        pid = keeper.bouncer_pid

        done = keeper.run("handoff", "--pgbouncer", wrapped.path)

        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("pgkeeper: handoff failed: the new pgbouncer did not adopt")
        assert "back on the old one" in last
        assert keeper.bouncer_pid != pid
        assert running(keeper) == run_dir.usable(patched_binary)
        live.assert_intact()
        for client in clients:
            assert client.query("SELECT 1") == [("1",)]
        check_ledger(keeper)
        expect_fatal(keeper, "descriptors were lost on the way: raise the limit on open files")


def test_to_an_ini_with_a_mistake(keeper: Keeper, live: Live) -> None:
    ini = other_ini(keeper, pool_mode="nonsense")
    assert_failed(keeper, live, "--ini", ini, reason="the new pgbouncer ended (exit status 1)")


def test_to_an_ini_that_is_none(keeper: Keeper, live: Live) -> None:
    ini = keeper.folder / "none.ini"
    ini.write_text("[pgbouncer]\nthis is not a setting\n")
    assert_failed(keeper, live, "--ini", ini, reason="none.ini:2")


def test_to_an_ini_that_is_not_there(keeper: Keeper, live: Live) -> None:
    assert_failed(keeper, live, "--ini", keeper.folder / "gone.ini", reason="gone.ini")


def test_a_database_that_is_gone_ends_its_sessions_alone(keeper: Keeper, live: Live) -> None:
    """The new ini no longer has it: a clear error for those, nothing for the others."""
    with RawClient(keeper.host, keeper.port).login(database="statement") as client:
        kept = {name: line for name, line in keeper.databases.items() if name != "statement"}
        old, keeper.databases = keeper.databases, kept
        ini = other_ini(keeper)
        keeper.databases = old
        done = keeper.run("handoff", "--ini", ini)
        assert done.returncode == 0, done.stderr
        with pytest.raises(ServerError, match="no longer has this database") as told:
            client.read()
        assert (told.value.fields["S"], told.value.sqlstate) == ("FATAL", "57P01")
        with pytest.raises(ConnectionLostError):
            client.read()
    live.assert_intact()
    assert keeper.status().adoptions.sessions_lost == 1
    with pytest.raises(psycopg.OperationalError, match="no such database"):
        keeper.sql("SELECT 1", dbname="statement")


def other_ini(keeper: Keeper, **settings: str | int) -> Path:
    """A copy of the ini with other settings; the keeper's own stays as it is."""
    path = keeper.folder / "other.ini"
    old, own = keeper.settings, keeper.ini_path
    keeper.settings, keeper.ini_path = {**old, **settings}, path
    try:
        keeper.write_files()
    finally:
        keeper.settings, keeper.ini_path = old, own
    give(path, keeper.run_dir.account)
    return path


def wait_for_more(postgres: Postgres, count: int) -> None:
    """Wait until so many more transactions of pgbench have been committed."""
    target = balances(postgres)[-1] + count
    wait_until(lambda: balances(postgres)[-1] >= target, what="transactions", poll_s=0.02)


def running(keeper: Keeper) -> Path:
    """The program that the active pgbouncer is."""
    return Path(f"/proc/{keeper.bouncer_pid}/exe").readlink()


def shown(keeper: Keeper, key: str) -> str:
    """A setting as the console shows it."""
    ((value,),) = ([row["value"]] for row in keeper.admin("SHOW CONFIG") if row["key"] == key)
    return str(value)
