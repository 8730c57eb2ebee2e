"""Two parts fail together: the pairs that no other file has. docs/failures.md lists all of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeeper.control.client import NoHangerError, RequestFailedError
from pgkeeper.states import ServiceState
from testbed import Postgres, RawClient, wait_until
from testbed.process import send, state
from tests.system.orphans import assert_intact, three_held
from tests.system.wrapping import kept

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pgkeeper.control.protocol import Progress
    from testbed import Keeper, RunDir
    from tests.fix_keeper import MakeKeeper
    from tests.system.orphans import Orphan


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    return make_keeper(standby=True)


@pytest.fixture
def sessions(keeper: Keeper, postgres: Postgres) -> Iterator[list[Orphan]]:
    """See `three_held`."""
    with three_held(keeper, postgres) as opened:
        yield opened


# the hanger, and pgbouncer


@pytest.mark.parametrize("dies", [False, True], ids=["pgbouncer-lives", "pgbouncer-dies"])
def test_the_hanger_stands_still(keeper: Keeper, sessions: list[Orphan], dies: bool) -> None:
    """Newcomers wait for it, and sessions only if pgbouncer dies meanwhile."""
    pid = keeper.bouncer_pid
    keeper.hanger.send_signal(signal.SIGSTOP)
    wait_until(lambda: state(keeper.hanger.pid) == "T", what="the hanger stands still")
    with ThreadPoolExecutor(1) as pool:
        newcomer = pool.submit(keeper.sql, "SELECT 1")
        if dies:
            send(pid, signal.SIGKILL)
            asked = pool.submit(assert_intact, sessions)
        else:
            assert_intact(sessions)
        assert not newcomer.done()
        keeper.hanger.send_signal(signal.SIGCONT)
        assert newcomer.result(20) == [(1,)]
        if dies:
            asked.result(20)
    assert (keeper.bouncer_pid == pid) is not dies


def test_the_hanger_dies_while_one_is_about_to_adopt(
    keeper: Keeper, sessions: list[Orphan]
) -> None:
    """Whoever has been given everything serves, and comes back to the next hanger."""
    active, standby = keeper.bouncer_pid, keeper.status().pgbouncer.standby_pid
    assert standby is not None
    send(standby, signal.SIGSTOP)
    wait_until(lambda: state(standby) == "T", what="the standby stands still")
    send(active, signal.SIGKILL)
    adopting = ServiceState.ADOPTING
    wait_until(lambda: keeper.status().pgbouncer.state is adopting, what="it is to adopt")
    keeper.kill_hanger()
    send(standby, signal.SIGCONT)
    assert_intact(sessions)
    keeper.start_hanger()
    assert keeper.bouncer_pid == standby


def test_the_hanger_and_the_standby_die(keeper: Keeper, sessions: list[Orphan]) -> None:
    active, standby = keeper.bouncer_pid, keeper.status().pgbouncer.standby_pid
    assert standby is not None
    # Else it might start another one.
    keeper.hanger.send_signal(signal.SIGSTOP)
    send(standby, signal.SIGKILL)
    keeper.kill_hanger()
    assert_intact(sessions)
    keeper.start_hanger()
    assert keeper.bouncer_pid == active


# a handoff, and the one that serves

STEPS = ("await-standby", "freeze", "fence-old", "activate-new", "await-ready", "keep-new")


@pytest.mark.parametrize("step", STEPS)
def test_the_old_one_dies_in_a_handoff(keeper: Keeper, sessions: list[Orphan], step: str) -> None:
    """At whatever step: the handoff says so or has succeeded, and the sessions go on."""
    pid = keeper.bouncer_pid
    steps: list[str] = []

    def kill(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == step:
            with contextlib.suppress(ProcessLookupError):
                send(pid, signal.SIGKILL)

    with contextlib.suppress(RequestFailedError):
        keeper.client.handoff(None, None, kill)
    assert step in steps
    keeper.wait_active(other_than=pid)
    assert_intact(sessions)


# a takeover, and the others

#: Before it, in it, and after it, depending on how fast the machine is.
TIMES_MS = [
    450,
    600,
    *(pytest.param(ms, marks=pytest.mark.slow) for ms in (300, 400, 500, 550, 700, 800)),
]


@pytest.mark.parametrize("after_ms", TIMES_MS)
def test_pgbouncer_dies_in_a_takeover(
    make_keeper: MakeKeeper, postgres: Postgres, after_ms: int
) -> None:
    """One of the hangers sees it, and lets another one adopt."""
    keeper = make_keeper()
    with three_held(keeper, postgres) as sessions, ThreadPoolExecutor(1) as pool:
        before = keeper.status().pgbouncer
        assert before.pid is not None
        taking = pool.submit(keeper.take_over)
        asyncio.run(asyncio.sleep(after_ms / 1000))
        send(before.pid, signal.SIGKILL)
        taking.result(30)
        keeper.wait_active(after=before.incarnation)
        assert_intact(sessions)


@pytest.mark.parametrize("after_ms", TIMES_MS)
def test_the_old_hanger_dies_in_a_takeover(
    make_keeper: MakeKeeper, postgres: Postgres, after_ms: int
) -> None:
    """The new one has everything, or it ends and says so: then any other goes on."""
    keeper = make_keeper()
    with three_held(keeper, postgres) as sessions:
        pid = keeper.bouncer_pid
        new = keeper.begin_takeover()
        asyncio.run(asyncio.sleep(after_ms / 1000))
        keeper.kill_hanger()
        assert_intact(sessions)
        wait_until(lambda: not new.running or serves(keeper, new.pid), what="the new one's answer")
        if new.running:
            keeper.follow(new)
        else:
            assert new.returncode in (1, 2)
            keeper.start_hanger()
        assert keeper.bouncer_pid == pid
        assert_intact(sessions)


def serves(keeper: Keeper, pid: int) -> bool:
    """Whether that process is the hanger that answers."""
    try:
        return keeper.status().hanger.pid == pid
    except NoHangerError:
        return False


# PostgreSQL, and the others


@pytest.mark.parametrize("who", ["nobody", "pgbouncer", "the hanger"])
def test_postgresql_ends_too(run_dir: RunDir, patched_binary: Path, who: str) -> None:
    """A session that has a server ends with it, as without us; one that has none goes on."""
    name = f"mortal-{who.replace(' ', '-')}"
    with (
        Postgres(run_dir, name=name) as postgres,
        kept(run_dir, postgres, patched_binary, f"keeper-of-{name}") as keeper,
        RawClient(keeper.host, keeper.port).login(database="transaction") as idle,
        contextlib.closing(keeper.connect(dbname="session")) as pinned,
    ):
        assert idle.query("SELECT 1") == [("1",)]
        pinned.execute("SELECT 1")
        pid = keeper.bouncer_pid
        if who == "the hanger":
            keeper.kill_hanger()
        postgres.stop()
        if who == "pgbouncer":
            send(pid, signal.SIGKILL)
        postgres.start()
        if who == "the hanger":
            keeper.start_hanger()
        assert idle.query("SELECT 1") == [("1",)]
        with pytest.raises(psycopg.OperationalError):
            pinned.execute("SELECT 1")
        assert (keeper.wait_active().pgbouncer.pid == pid) is (who != "pgbouncer")
