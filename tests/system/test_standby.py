"""The pgbouncer that waits: what keeps it from starting harms nobody, and is told."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from testbed import snapshot, wait_until
from testbed.process import alive, send

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
