"""SHUTDOWN at the console that waits for who is here: meanwhile nobody listens, as upstream."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeeper.states import ServiceState
from testbed import snapshot
from testbed.pooler import ADMIN
from testbed.process import alive
from tests.system.scripted import ScriptedHanger, wait_until

if TYPE_CHECKING:
    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper


@pytest.fixture
def drained(make_keeper: MakeKeeper) -> Keeper:
    """A keeper that listens on TCP and on a Unix socket."""
    keeper = make_keeper(settings={"unix_socket_dir": ""})
    keeper.close()
    keeper.settings["unix_socket_dir"] = str(keeper.folder)
    keeper.write_files()
    keeper.start()
    return keeper


def assert_refused(keeper: Keeper) -> None:
    """Newcomers are refused by the kernel: nobody listens."""
    for host, error in ((keeper.host, "Connection refused"), (str(keeper.folder), "No such file")):
        with pytest.raises(psycopg.OperationalError, match=error):
            keeper.sql("SELECT 1", host=host)


def assert_ended(keeper: Keeper, pid: int) -> None:
    """The last session has gone, and everything with it."""
    assert keeper.hanger.wait(10) == 0
    assert not alive(pid)
    assert [entry.name for entry in keeper.folder.iterdir() if entry.is_socket()] == []


@pytest.mark.parametrize("mode", ["WAIT_FOR_CLIENTS", "WAIT_FOR_SERVERS"])
def test_newcomers_are_refused_and_sessions_go_on(drained: Keeper, mode: str) -> None:
    with contextlib.closing(drained.connect(dbname="session")) as session:
        before = snapshot(session, pinned=True)
        drained.admin(f"SHUTDOWN {mode}")
        assert_refused(drained)
        assert snapshot(session, pinned=True) == before
        pid = drained.bouncer_pid
    assert_ended(drained, pid)


def test_a_killed_pgbouncer_goes_on_draining(drained: Keeper) -> None:
    with contextlib.closing(drained.connect(dbname="session")) as session:
        before = snapshot(session, pinned=True)
        drained.admin("SHUTDOWN WAIT_FOR_CLIENTS")
        for _ in range(2):
            status = drained.kill_bouncer()
            assert (status.sessions.clients_held, status.adoptions.sessions_lost) == (1, 0)
            assert_refused(drained)
            assert snapshot(session, pinned=True) == before
        pid = drained.bouncer_pid
    assert_ended(drained, pid)


def test_a_killed_hanger_does_not_open_the_doors_again(drained: Keeper) -> None:
    with contextlib.closing(drained.connect(dbname="session")) as session:
        before = snapshot(session, pinned=True)
        drained.admin("SHUTDOWN WAIT_FOR_CLIENTS")
        drained.kill_hanger()
        assert_refused(drained)
        drained.start_hanger()
        assert_refused(drained)
        drained.kill_bouncer()
        assert_refused(drained)
        assert snapshot(session, pinned=True) == before
        pid = drained.bouncer_pid
    assert_ended(drained, pid)


def test_without_a_hanger_nobody_listens_either(drained: Keeper) -> None:
    """The hanger dies first; its successor learns that SHUTDOWN waits."""
    with (
        contextlib.closing(drained.connect(dbname="session")) as session,
        contextlib.closing(drained.connect(dbname="pgbouncer", user=ADMIN)) as console,
    ):
        before = snapshot(session, pinned=True)
        pid = drained.bouncer_pid
        drained.kill_hanger()
        console.execute("SHUTDOWN WAIT_FOR_CLIENTS")
        with pytest.raises(psycopg.OperationalError, match="Connection refused"):
            drained.sql("SELECT 1")
        drained.start_hanger()
        assert_refused(drained)
        assert drained.bouncer_pid == pid
        assert snapshot(session, pinned=True) == before
    assert_ended(drained, pid)


def test_who_starts_pgbouncer_himself_finds_the_doors_open_again(hanger: ScriptedHanger) -> None:
    hanger.start("--no-supervise", wait=False)
    hanger.wait_state(ServiceState.DOWN)
    environment = {**os.environ, "PGBOUNCER_KEEPER_SOCKET": str(hanger.socket)}
    for _ in range(2):
        with subprocess.Popen([hanger.bouncer, hanger.ini], env=environment) as bouncer:
            try:
                hanger.wait_active()
                client = hanger.client()
                assert client.ask("drain") == "draining"
                wait_until(lambda: not listening(hanger), "nobody listens")
                assert client.ask("still here") == "echo still here"
                client.say("farewell")
                assert client.rest() == b"goodbye\n"
                assert bouncer.wait(10) == 0
            finally:
                bouncer.kill()
        wait_until(lambda: listening(hanger), "the hanger listens again")


def test_the_end_of_held_sessions_ends_the_draining(hanger: ScriptedHanger) -> None:
    """pgbouncer does not come back, and nobody is left that SHUTDOWN waits for."""
    hanger.start("--hold-timeout", "0.7")
    client = hanger.client()
    pid = client.who().pid
    assert client.ask("drain") == "draining"
    wait_until(lambda: not listening(hanger), "nobody listens")
    hanger.script(exit=1)
    os.kill(pid, signal.SIGKILL)
    assert b"C57P03\0" in client.rest()
    assert hanger.wait() == 0


def listening(hanger: ScriptedHanger) -> bool:
    """Whether somebody accepts at both of the hanger's addresses."""
    path = f"{hanger.directory}/.s.PGSQL.{hanger.port}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        return not (tcp.connect_ex(("127.0.0.1", hanger.port)) or unix.connect_ex(path))
