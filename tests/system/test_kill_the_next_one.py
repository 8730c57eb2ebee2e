"""SIGKILL of who is to be next: a standby, one that adopts, the successor of a handoff.

The point of an adoption at which it strikes is swept elsewhere: `test_some_pairs` and
`test_the_successor_is_killed_too` of `sweep/syscall`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pgkeeper.control.client import RequestFailedError
from pgkeeper.states import ServiceState
from testbed import wait_until
from testbed.ledgers import check_ledger
from testbed.load import EVERY_KIND, check_books, make_tables, work
from testbed.process import send, state
from tests.system.orphans import assert_intact, three_held
from tests.system.wrapping import Wrapped, expect_fatal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pgkeeper.control.protocol import Progress as HandoffProgress
    from testbed import Keeper, Postgres, RunDir
    from testbed.load import Progress
    from tests.fix_keeper import MakeKeeper
    from tests.system.orphans import Orphan


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    return make_keeper(standby=True, settings={"max_prepared_statements": 50})


@pytest.fixture
def sessions(keeper: Keeper, postgres: Postgres) -> Iterator[list[Orphan]]:
    """See `three_held`."""
    with three_held(keeper, postgres) as opened:
        yield opened


def test_a_standby_is_killed_and_then_the_active_one(
    keeper: Keeper, sessions: list[Orphan]
) -> None:
    active, standby = keeper.bouncer_pid, standby_of(keeper)
    send(standby, signal.SIGKILL)
    wait_until(lambda: standby_of(keeper) not in (0, standby), what="another one stands by")
    assert keeper.bouncer_pid == active
    assert_intact(sessions)
    keeper.kill_bouncer()


def test_both_are_killed_at_once(keeper: Keeper, sessions: list[Orphan]) -> None:
    active, standby = keeper.bouncer_pid, standby_of(keeper)
    for pid in (standby, active):
        send(pid, signal.SIGKILL)
    wait_until(lambda: keeper.bouncer_pid not in (active, standby), what="another one serves")


def test_one_that_is_about_to_adopt_is_killed(keeper: Keeper, sessions: list[Orphan]) -> None:
    """It was given sockets and incarnation, and has read nothing of it yet: it stands still."""
    active, standby = keeper.bouncer_pid, standby_of(keeper)
    send(standby, signal.SIGSTOP)
    wait_until(lambda: state(standby) == "T", what="the standby stands still")
    send(active, signal.SIGKILL)
    wait_until(lambda: service_state(keeper) is ServiceState.ADOPTING, what="it is to adopt")
    send(standby, signal.SIGKILL)
    keeper.wait_active(other_than=standby)


@pytest.mark.parametrize("after_ms", [0, 1, 2, 4, 8])
def test_one_that_adopts_is_killed(keeper: Keeper, sessions: list[Orphan], after_ms: int) -> None:
    """Somewhere between its first message and some milliseconds of serving."""
    active, standby = keeper.bouncer_pid, standby_of(keeper)
    send(active, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        killed_after(standby, after_ms / 1000)
    keeper.wait_active(other_than=standby)


def test_standbys_and_active_ones_are_killed_in_turns_under_load(
    keeper: Keeper, postgres: Postgres
) -> None:
    make_tables(postgres)
    chance = random.Random(11)

    async def disturb(progress: Progress) -> None:
        for _ in range(12):
            await progress.wait(chance.randint(1, 30))
            standby = standby_of(keeper)
            if chance.random() < 0.5:
                await asyncio.to_thread(send, standby, signal.SIGKILL)
                await asyncio.to_thread(keeper.wait_active)
            else:
                await asyncio.to_thread(send, keeper.bouncer_pid, signal.SIGKILL)
                await asyncio.to_thread(killed_after, standby, chance.random() * 0.005)
                await asyncio.to_thread(keeper.wait_active, other_than=standby)
        await progress.wait(30)

    workers = asyncio.run(work(keeper, EVERY_KIND, disturb))

    check_books(postgres, workers)
    assert keeper.status().adoptions.sessions_lost == 0
    check_ledger(keeper)


# a handoff


STEPS = ("await-standby", "freeze", "fence-old", "activate-new", "await-ready", "keep-new")


@pytest.mark.parametrize("step", STEPS)
def test_the_successor_of_a_handoff_is_killed(
    make_keeper: MakeKeeper,
    postgres: Postgres,
    run_dir: RunDir,
    patched_binary: Path,
    step: str,
) -> None:
    """At whatever step: the handoff says so or has succeeded, and the sessions go on."""
    keeper = make_keeper(settings={"max_prepared_statements": 50})
    pids = run_dir.folder(f"{keeper.name}-pids") / "pid"
    wrapped = Wrapped(run_dir, patched_binary, f"{keeper.name}-new")
    wrapped.misbehave(f"echo $$ > {pids}")
    killed: list[int] = []

    def kill(progress: HandoffProgress) -> None:
        if progress.step == step:
            wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"), what="its pid")
            killed.append(int(pids.read_text()))
            send(killed[0], signal.SIGKILL)

    with three_held(keeper, postgres):
        with contextlib.suppress(RequestFailedError):
            keeper.client.handoff(wrapped.path, None, kill)
        assert killed, "the handoff never came to that step"
        keeper.wait_active(other_than=killed[0])


def test_the_hanger_is_killed_while_a_handoff_waits_for_the_frost(
    keeper: Keeper, sessions: list[Orphan]
) -> None:
    """The old one reads FREEZE, and then that nobody will ever say THAW: it goes on."""
    pid = keeper.bouncer_pid
    send(pid, signal.SIGSTOP)
    wait_until(lambda: state(pid) == "T", what="it stands still")
    asked: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        handing = pool.submit(keeper.client.handoff, None, None, lambda p: asked.append(p.step))
        wait_until(lambda: "freeze" in asked, what="FREEZE is sent")
        keeper.kill_hanger()
        send(pid, signal.SIGCONT)
        assert handing.exception(timeout=30) is not None
    assert_intact(sessions)
    keeper.start_hanger()
    assert keeper.bouncer_pid == pid
    assert_intact(sessions)
    keeper.kill_bouncer()
    # Who only waits ends with the hanger: the standby, and the successor of the handoff.
    expect_fatal(keeper, "the hanger closed the connection", times=2)


def standby_of(keeper: Keeper) -> int:
    """The pid of who stands by; 0 if nobody does."""
    return keeper.status().pgbouncer.standby_pid or 0


def service_state(keeper: Keeper) -> ServiceState:
    """What `pgkeeper status` calls it."""
    return keeper.status().pgbouncer.state


def killed_after(pid: int, seconds: float) -> None:
    """Kill `pid` so many seconds from now; to the millisecond does not matter."""
    asyncio.run(asyncio.sleep(seconds))
    with contextlib.suppress(ProcessLookupError):
        send(pid, signal.SIGKILL)
