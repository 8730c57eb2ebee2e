"""A handoff to an ini with other addresses: the hanger listens there then, and only there."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import TYPE_CHECKING

import psycopg
import pytest

from testbed import RawClient, snapshot, wait_until
from testbed.waiting import free_port
from tests.system.wrapping import expect_fatal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Keeper, RunDir
    from tests.fix_keeper import MakeKeeper


@pytest.fixture(scope="module")
def folder(run_dir: RunDir) -> str:
    """Where the keepers listen on Unix sockets, each with its port."""
    return str(run_dir.folder("moving-unix"))


@pytest.fixture
def keeper(make_keeper: MakeKeeper, folder: str) -> Keeper:
    return make_keeper(standby=True, settings={"unix_socket_dir": folder})


@pytest.fixture
def unmoved(keeper: Keeper) -> Iterator[None]:
    """A session that keeps its server, from before a handoff to after a kill behind it."""
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        before = snapshot(connection, pinned=True)
        yield
        assert snapshot(connection, pinned=True) == before
        keeper.kill_bouncer()
        assert snapshot(connection, pinned=True) == before


def rewrite(keeper: Keeper, **settings: str | int) -> None:
    """Change the ini that is in use."""
    keeper.settings.update(settings)
    keeper.write_files()


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(keeper: Keeper, **where: str | int) -> bool:
    return keeper.sql("SELECT 1", **where) == [(1,)]


def test_it_moves(keeper: Keeper, unmoved: None, run_dir: RunDir, folder: str) -> None:
    old, new = keeper.port, free_port()
    other = str(run_dir.folder("moved-unix"))
    assert answers(keeper, host=folder)
    rewrite(keeper, listen_port=new, unix_socket_dir=other)

    done = keeper.run("handoff")

    assert done.returncode == 0, done.stderr
    keeper.port = new
    assert answers(keeper)
    assert answers(keeper, host=other)
    assert not listens(old)
    with pytest.raises(psycopg.OperationalError):
        keeper.connect(host=folder, port=old)
    # Also for who is started from now on, and for pgbouncer alone.
    keeper.kill_bouncer()
    assert answers(keeper)
    keeper.kill_hanger()
    assert answers(keeper)
    assert not listens(old)
    keeper.start_hanger()
    assert answers(keeper, host=other)
    expect_fatal(keeper, "the hanger closed the connection")  # the standby


def test_one_more_address(keeper: Keeper, unmoved: None, folder: str) -> None:
    """What stays is not touched: who waits there to be accepted goes on waiting."""
    rewrite(keeper, listen_addr="127.0.0.1,127.0.0.2")
    with RawClient(keeper.host, keeper.port) as early:
        done = keeper.run("handoff")
        assert done.returncode == 0, done.stderr
        early.login()
        assert early.query("SELECT 1") == [("1",)]
    assert answers(keeper, host="127.0.0.2")
    assert answers(keeper, host=folder)
    rewrite(keeper, listen_addr="127.0.0.1")
    assert keeper.run("handoff").returncode == 0
    with pytest.raises(psycopg.OperationalError):
        keeper.connect(host="127.0.0.2")


def test_where_somebody_else_listens(keeper: Keeper, unmoved: None) -> None:
    """One line says so, and nothing has been done."""
    pid, old = keeper.bouncer_pid, keeper.port
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        rewrite(keeper, listen_port=other.getsockname()[1])
        done = keeper.run("handoff")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "another process is listening there (port in use)" in done.stderr
    assert keeper.bouncer_pid == pid
    assert answers(keeper)
    rewrite(keeper, listen_port=old)


def test_a_handoff_that_fails_leaves_it_where_it_was(
    keeper: Keeper, unmoved: None, folder: str
) -> None:
    old, new = keeper.port, free_port()
    rewrite(keeper, listen_port=new, pool_mode="none")
    done = keeper.run("handoff")
    assert done.returncode == 1
    assert answers(keeper)
    assert answers(keeper, host=folder)
    assert not listens(new)
    rewrite(keeper, listen_port=old, pool_mode="session")


def test_a_reload_does_not_move_and_says_what_does(keeper: Keeper, unmoved: None) -> None:
    new = free_port()
    rewrite(keeper, listen_port=new)
    with keeper.output.contains("listen_port has changed: `pgkeeper handoff` listens there"):
        keeper.hanger.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload" in keeper.output.read(), what="it has read its ini")
        keeper.wait_active()
    assert answers(keeper)
    assert not listens(new)
    assert keeper.run("handoff").returncode == 0
    keeper.port = new
    assert answers(keeper)
