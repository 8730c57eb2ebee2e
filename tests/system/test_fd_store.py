"""Hanger and pgbouncer die at once: what the service manager keeps brings the sessions back.

With a stand-in for the manager; `test_systemd_units.py` has the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from typing import TYPE_CHECKING

import psycopg
import pytest

from testbed import Keeper, RawClient, snapshot, wait_until
from testbed.errors import ConnectionLostError
from testbed.ledgers import check_ledger
from testbed.load import EVERY_KIND, check_books, make_tables, work
from testbed.manager import Manager
from testbed.process import alive, descriptors, send
from testbed.waiting import free_port
from tests.system.orphans import assert_intact, make_orphans_table, open_three

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import Postgres, RunDir
    from testbed.load import Progress


@pytest.fixture
def manager(run_dir: RunDir, request: pytest.FixtureRequest) -> Iterator[Manager]:
    limit = getattr(request, "param", 4096)
    folder = run_dir.folder(f"manager-{abs(hash(request.node.name)):x}")
    with Manager(folder / "notify", limit) as made:
        yield made


@pytest.fixture
def keeper(
    run_dir: RunDir,
    postgres: Postgres,
    patched_binary: Path,
    manager: Manager,
    request: pytest.FixtureRequest,
) -> Iterator[Keeper]:
    name = f"stored-{abs(hash(request.node.name)):x}"
    made = Keeper(
        run_dir, postgres, patched_binary, name=name, settings={"max_prepared_statements": 50}
    )
    made.manager = manager
    try:
        with made:
            yield made
    finally:
        made.print_logs()


def both_die(keeper: Keeper, *, hanger_first: bool = True) -> int:
    """As when the whole service is killed; the pid of the pgbouncer that was active."""
    pid = keeper.bouncer_pid
    if hanger_first:
        keeper.kill_hanger()
        send(pid, signal.SIGKILL)
    else:
        keeper.hanger.send_signal(signal.SIGSTOP)  # it sees nothing of the other's death
        send(pid, signal.SIGKILL)
        keeper.kill_hanger()
    return pid


@pytest.mark.parametrize("hanger_first", [True, False], ids=["hanger-first", "pgbouncer-first"])
def test_both_die_at_once_and_nothing_is_lost(
    keeper: Keeper, postgres: Postgres, hanger_first: bool
) -> None:
    make_orphans_table(postgres)
    with contextlib.ExitStack() as stack:
        sessions = open_three(stack, keeper, "here")
        for turn in range(3):
            before = keeper.status()
            pid = both_die(keeper, hanger_first=hanger_first)
            after = keeper.start_hanger()
            assert after.pgbouncer.pid != pid
            assert after.pgbouncer.incarnation == before.pgbouncer.incarnation + 1
            assert after.sessions.clients_held == len(sessions)
            assert after.adoptions.sessions_lost == 0
            assert_intact(sessions)
            if turn == 0:
                sessions += open_three(stack, keeper, "later")
        for one in sessions:
            one.finish()
        check_ledger(keeper)
    rows = postgres.sql("SELECT who FROM orphans ORDER BY who")
    assert rows == [("here",), ("later",)]


def test_without_a_manager_all_is_lost(keeper: Keeper, manager: Manager) -> None:
    """The control."""
    with contextlib.closing(keeper.connect()) as connection:
        both_die(keeper)
        keeper.manager = None
        manager.close()
        keeper.start_hanger()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_under_load(keeper: Keeper, postgres: Postgres) -> None:
    make_tables(postgres)
    chance = random.Random(3)

    async def disturb(progress: Progress) -> None:
        for turn in range(6):
            await progress.wait(chance.randint(1, 30))
            await asyncio.to_thread(both_die, keeper, hanger_first=bool(turn % 2))
            await asyncio.to_thread(keeper.start_hanger)
        await progress.wait(30)

    workers = asyncio.run(work(keeper, EVERY_KIND, disturb))

    check_books(postgres, workers)
    assert keeper.status().adoptions.sessions_lost == 0
    check_ledger(keeper)


def test_a_pgbouncer_that_lives_comes_back_instead(keeper: Keeper) -> None:
    with RawClient(keeper.host, keeper.port).login() as client:
        pid = keeper.bouncer_pid
        keeper.kill_hanger()
        keeper.start_hanger()
        assert keeper.bouncer_pid == pid
        assert client.query("SELECT 1") == [("1",)]
        both_die(keeper)
        keeper.start_hanger()
        assert client.query("SELECT 1") == [("1",)]


def test_a_pgbouncer_that_hangs_is_killed_first(keeper: Keeper) -> None:
    with RawClient(keeper.host, keeper.port).login() as client:
        pid = keeper.bouncer_pid
        send(pid, signal.SIGSTOP)
        keeper.kill_hanger()
        keeper.start_hanger()
        assert keeper.bouncer_pid != pid
        assert not alive(pid), "two of them could write"
        assert client.query("SELECT 1") == [("1",)]
        check_ledger(keeper)


def test_what_is_let_go_is_taken_back(keeper: Keeper, manager: Manager) -> None:
    """It keeps what is held and no more: over many sessions, deaths of either, and the end."""
    wait_until(lambda: "pgkeeper-ledger" in manager.names, what="the ledger is kept")
    for _ in range(3):
        clients = [RawClient(keeper.host, keeper.port).login() for _ in range(20)]
        wait_until(lambda: count(manager, "client") == 20, what="all clients are kept")
        for client in clients:
            client.close()
        wait_until(lambda: count(manager, "client") == 0, what="none is kept")
        keeper.kill_bouncer()
        both_die(keeper)
        keeper.start_hanger()
        assert count(manager, "owner") == count(manager, "ledger") == 1
        held = keeper.status().sessions.servers_held
        wait_until(lambda held=held: count(manager, "server") == held, what="servers as held")
    first = own_descriptors(keeper)
    both_die(keeper)
    keeper.start_hanger()
    wait_until(lambda: own_descriptors(keeper) == first, what="as many descriptors as before")
    assert keeper.run("release").returncode == 0
    keeper.hanger.wait(10)
    wait_until(lambda: manager.names == [], what="nothing is left of it")
    assert "READY=1" in manager.lines


def test_a_manager_that_reads_nothing_delays_nobody(keeper: Keeper, manager: Manager) -> None:
    manager.hang()
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(RawClient(keeper.host, keeper.port)).login() for _ in range(300)
        ]
        assert all(client.query("SELECT 1") == [("1",)] for client in clients)
        assert count(manager, "client") < 300
        manager.go_on()
        wait_until(lambda: count(manager, "client") == 300, what="all are kept")
        both_die(keeper)
        keeper.start_hanger()
        assert all(client.query("SELECT 1") == [("1",)] for client in clients)


@pytest.mark.parametrize("manager", [52], indirect=True)
def test_a_store_that_is_too_small(keeper: Keeper, manager: Manager) -> None:
    """Who has no room ends when both die, and gets room when another leaves."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(RawClient(keeper.host, keeper.port)).login() for _ in range(30)
        ]
        wait_until(lambda: "fd-store-full" in keeper.output.read(), what="it says so")
        assert len(manager.names) == 20
        for client in clients[:20]:
            client.close()
        wait_until(lambda: count(manager, "client") == 10, what="the others have room")
        both_die(keeper)
        keeper.start_hanger()
        assert all(client.query("SELECT 1") == [("1",)] for client in clients[20:])


def test_it_keeps_the_addresses_of_the_last_handoff(keeper: Keeper) -> None:
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        before = snapshot(connection, pinned=True)
        old, keeper.port = keeper.port, free_port()
        keeper.settings["listen_port"] = keeper.port
        keeper.write_files()
        assert keeper.run("handoff").returncode == 0
        both_die(keeper)
        keeper.start_hanger()
        assert snapshot(connection, pinned=True) == before
        assert keeper.sql("SELECT 1") == [(1,)]
        with pytest.raises(psycopg.OperationalError):
            keeper.connect(port=old)


def test_a_takeover_keeps_the_store(keeper: Keeper, manager: Manager) -> None:
    with RawClient(keeper.host, keeper.port).login() as client:
        foreign = keeper.begin_takeover()
        assert foreign.wait(20) == 1
        assert "the service manager started it" in keeper.output.read()
        _, environment, _ = manager.command([])
        del environment["LISTEN_FDNAMES"]
        wait_until(lambda: count(manager, "client") == 1, what="the client is kept")
        before = manager.names
        keeper.take_over(env=environment)
        assert f"MAINPID={keeper.hanger.pid}" in manager.lines
        assert manager.names == before
        both_die(keeper)
        keeper.start_hanger()
        assert client.query("SELECT 1") == [("1",)]


@pytest.mark.parametrize("missing", ["pgkeeper-owner", "pgkeeper-ledger"])
def test_what_cannot_be_gone_on_with_ends_clearly(
    keeper: Keeper, manager: Manager, missing: str
) -> None:
    """Whose death is not sure may still write: its sessions end rather than go on twice."""
    with RawClient(keeper.host, keeper.port).login() as client:
        wait_until(lambda: count(manager, "client") == 1, what="the client is kept")
        manager.forget(missing)
        both_die(keeper)
        with keeper.output.contains("fd-store-unusable"):
            keeper.start_hanger()
        with pytest.raises(ConnectionLostError):
            client.query("SELECT 1")
    assert keeper.sql("SELECT 1") == [(1,)]
    wait_until(lambda: count(manager, "client") == 0, what="nothing old is kept")


def own_descriptors(keeper: Keeper) -> int:
    """How many descriptors the hanger has beside those that it holds."""
    sessions = keeper.status().sessions
    return len(descriptors(keeper.hanger.pid)) - sessions.clients_held - sessions.servers_held


def count(manager: Manager, kind: str) -> int:
    """How many descriptors of a kind the manager keeps."""
    return sum(name.startswith(f"pgkeeper-{kind}") for name in manager.names)
