"""The pgbouncer that waits: what keeps it from starting harms nobody, and is told.

It has the held sockets in advance, and lets go of those that end.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, snapshot, wait_until
from testbed.errors import ConnectionLostError
from testbed.process import alive, descriptors, send, state
from testbed.rawclient import frontend

if TYPE_CHECKING:
    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper

_TROUBLE = "no standby: it ended (exit status 1); pgbouncer's log says more"


def standby_of(keeper: Keeper) -> int:
    """Its pid, as soon as there is one."""
    wait_until(lambda: keeper.status().pgbouncer.standby_pid is not None, what="a standby")
    pid = keeper.status().pgbouncer.standby_pid
    assert pid is not None
    return pid


def test_an_ini_with_which_no_standby_starts(make_keeper: MakeKeeper) -> None:
    """The active one is untouched, and status says why there is no standby, until there is."""
    keeper = make_keeper(standby=True)
    good = keeper.ini_path.read_text()
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        before = snapshot(connection, pinned=True)
        active, standby = keeper.bouncer_pid, standby_of(keeper)
        assert _TROUBLE not in keeper.run("status").stdout

        keeper.ini_path.write_text(good.replace("[pgbouncer]", "[pgbouncer]\npool_mode = none"))
        send(standby, signal.SIGKILL)
        wait_until(lambda: not alive(standby), what="the standby's death")
        wait_until(lambda: _TROUBLE in keeper.run("status").stdout, what="the reason")
        assert keeper.run("status").returncode == 0
        assert keeper.status().pgbouncer.standby_pid is None
        assert keeper.bouncer_pid == active
        assert snapshot(connection, pinned=True) == before

        keeper.ini_path.write_text(good)
        assert standby_of(keeper) not in (active, standby)
        assert _TROUBLE not in keeper.run("status").stdout
        keeper.kill_bouncer()
        assert snapshot(connection, pinned=True) == before


def test_sessions_are_held_while_the_ini_lets_nobody_start(make_keeper: MakeKeeper) -> None:
    """Neither standby nor successor: once the ini is mended the sessions go on."""
    keeper = make_keeper(standby=True)
    good = keeper.ini_path.read_text()
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        before = snapshot(connection, pinned=True)
        active, standby = keeper.bouncer_pid, standby_of(keeper)
        keeper.ini_path.write_text(good.replace("[pgbouncer]", "[pgbouncer]\npool_mode = none"))
        for pid in (standby, active):
            send(pid, signal.SIGKILL)
        wait_until(lambda: keeper.run("status").returncode == 1, what="nobody serves")
        keeper.ini_path.write_text(good)
        assert snapshot(connection, pinned=True) == before
        assert keeper.status().adoptions.sessions_lost == 0


def sockets_of(pid: int) -> int:
    """How many it has."""
    return sum(target.startswith("socket:") for target in descriptors(pid))


def test_a_standby_has_the_sockets_before_it_is_needed(make_keeper: MakeKeeper) -> None:
    """What begins comes to it, what ends goes, and it serves with what it has."""
    keeper = make_keeper(standby=True)
    standby = standby_of(keeper)
    alone = sockets_of(standby)
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        before = snapshot(connection, pinned=True)
        wait_until(lambda: sockets_of(standby) == alone + 2, what="client and server are there")
        with contextlib.closing(keeper.connect(dbname="session")) as other:
            snapshot(other, pinned=True)
            wait_until(lambda: sockets_of(standby) == alone + 4, what="and two more")
            keeper.kill_bouncer()
            assert keeper.bouncer_pid == standby
            assert snapshot(connection, pinned=True) == before
        standby = standby_of(keeper)
        wait_until(lambda: sockets_of(standby) >= alone + 3, what="the next one has them too")
    wait_until(lambda: sockets_of(standby) <= alone + 2, what="what has ended is gone")


def test_a_standby_keeps_nobody_from_hearing_of_an_end(make_keeper: MakeKeeper) -> None:
    """A duplicate that stayed would: one that stands still is ended, and the client is reset.

    The client's session ends without its doing, and it goes on talking.
    """
    keeper = make_keeper(standby=True)
    standby = standby_of(keeper)
    alone = sockets_of(standby)
    with RawClient(keeper.host, keeper.port) as client:
        client.login()
        wait_until(lambda: sockets_of(standby) > alone, what="it has the client")
        send(standby, signal.SIGSTOP)
        wait_until(lambda: state(standby) == "T", what="it stands still")
        client.send(frontend("X"))
        with pytest.raises(ConnectionLostError):
            client.read_any()
        client.send(b"more")
        assert alive(standby)
        client.send(b"the kernel has taken that, where it would have reset a closed connection")
        wait_until(lambda: not alive(standby), what="its death", seconds=20)
        wait_until(lambda: is_reset(client), what="the reset")
    assert standby_of(keeper) != standby


def is_reset(client: RawClient) -> bool:
    """Whether the peer's kernel does not know the connection any more, which it says if asked."""
    try:
        client.send(b"more")
    except ConnectionLostError:
        return True
    return False
