"""The test bed's `Keeper`: the processes it drives, and the leaks it must notice."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import TYPE_CHECKING

import pytest

from pgkeeper.control.client import NoHangerError
from testbed import RawClient, snapshot
from testbed.errors import WaitTimeoutError
from testbed.process import alive

if TYPE_CHECKING:
    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper


def test_each_kill_brings_the_next_incarnation(keeper: Keeper) -> None:
    with contextlib.closing(keeper.connect(dbname="session", application_name="bed")) as connection:
        before = snapshot(connection, pinned=True)
        for _ in range(3):
            old = keeper.status().pgbouncer
            assert old.pid is not None
            new = keeper.kill_bouncer().pgbouncer
            assert (new.incarnation, new.pid) != (old.incarnation, old.pid)
            assert new.incarnation == old.incarnation + 1
            assert not alive(old.pid)
            assert snapshot(connection, pinned=True) == before
        assert [held.kind for held in keeper.sessions()] == ["client", "server"]


def test_the_command_says_what_the_client_says(keeper: Keeper) -> None:
    done = keeper.run("status", "--json")
    assert done.returncode == 0
    said = json.loads(done.stdout)["pgbouncer"]
    assert (said["state"], said["pid"]) == ("active", keeper.bouncer_pid)


def test_a_session_that_stays_is_a_leak(keeper: Keeper) -> None:
    with (
        RawClient(keeper.host, keeper.port).login(),
        pytest.raises(WaitTimeoutError, match="closed the sockets"),
    ):
        keeper.check_descriptors(seconds=0.1)
    keeper.check_descriptors()


def test_the_hanger_can_be_killed_and_started_again(keeper: Keeper) -> None:
    pid = keeper.bouncer_pid
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        before = snapshot(connection, pinned=True)
        keeper.kill_hanger()
        with pytest.raises(NoHangerError):
            keeper.status()
        assert snapshot(connection, pinned=True) == before
        keeper.start_hanger()
        assert keeper.bouncer_pid == pid
        keeper.kill_bouncer(signal.SIGSEGV)
        assert snapshot(connection, pinned=True) == before


def test_a_standby_is_there_and_follows(make_keeper: MakeKeeper) -> None:
    keeper = make_keeper(standby=True)
    standby = keeper.status().pgbouncer.standby_pid
    after = keeper.kill_bouncer().pgbouncer
    assert after.pid == standby
    assert after.standby_pid not in (None, standby)
