"""`pgkeeper run --takeover`: a new hanger for the old one, and nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from pgkeeper.control.client import NoHangerError
from pgkeeper.takeover import messages
from testbed import RawClient, wait_until
from testbed.ledgers import check_ledger
from testbed.load import EVERY_KIND, check_books, make_tables, work
from testbed.pgbench import Pgbench, balances
from testbed.process import alive, descriptors, send
from tests.system.orphans import assert_intact, three_held
from tests.system.wrapping import Wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import Keeper, Postgres, RunDir
    from testbed.load import Progress
    from tests.fix_keeper import MakeKeeper
    from tests.system.orphans import Orphan


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    return make_keeper(settings={"max_prepared_statements": 50})


@pytest.fixture
def sessions(keeper: Keeper, postgres: Postgres) -> Iterator[list[Orphan]]:
    """See `three_held`."""
    with three_held(keeper, postgres) as opened:
        yield opened


def test_pgbouncer_notices_nothing(keeper: Keeper, sessions: list[Orphan]) -> None:
    keeper.kill_bouncer()
    before, pid = keeper.status(), keeper.hanger.pid
    start = keeper.log.size()
    keeper.take_over()
    after = keeper.status()
    assert after.hanger.pid == keeper.hanger.pid != pid
    assert after.pgbouncer == before.pgbouncer
    assert after.sessions == before.sessions
    assert after.adoptions == before.adoptions
    assert "keeper:" not in keeper.log.read(start)
    assert_intact(sessions)


def test_a_standby_comes_along(make_keeper: MakeKeeper) -> None:
    keeper = make_keeper(standby=True)
    before = keeper.status().pgbouncer
    with RawClient(keeper.host, keeper.port).login() as client:
        keeper.take_over()
        assert keeper.status().pgbouncer == before
        assert keeper.kill_bouncer().pgbouncer.pid == before.standby_pid
        assert client.query("SELECT 1") == [("1",)]


def test_who_ends_then_ends_with_the_new_hanger(keeper: Keeper) -> None:
    """pgbouncer is nobody's child now: its end is noticed, and is init's to collect."""
    with RawClient(keeper.host, keeper.port).login() as client:
        pid = keeper.bouncer_pid
        keeper.take_over()
        keeper.kill_bouncer()
        wait_until(lambda: not alive(pid), what="its end")
        assert client.query("SELECT 1") == [("1",)]
    keeper.take_over()
    pid = keeper.bouncer_pid
    assert keeper.run("release").returncode == 0
    assert keeper.hanger.wait(10) == 0
    assert not alive(pid)
    assert [entry.name for entry in keeper.folder.iterdir() if entry.is_socket()] == []


def test_twenty_in_a_row_leak_nothing(keeper: Keeper, sessions: list[Orphan]) -> None:
    keeper.take_over()
    first = kinds_at_rest(keeper.hanger.pid)
    for _ in range(20):
        keeper.take_over()
        assert_intact(sessions)
    wait_until(lambda: kinds(keeper.hanger.pid) == first, what="as many descriptors as before")


def test_twelve_under_every_load_with_kills_and_newcomers(
    keeper: Keeper, postgres: Postgres
) -> None:
    make_tables(postgres)
    chance = random.Random(5)
    with Newcomers(keeper) as newcomers:

        async def disturb(progress: Progress) -> None:
            for turn in range(12):
                await progress.wait(chance.randint(1, 30))
                await asyncio.to_thread(keeper.take_over)
                if turn % 3 == 2:
                    await progress.wait(chance.randint(1, 10))
                    await asyncio.to_thread(keeper.kill_bouncer)
            await progress.wait(30)

        workers = asyncio.run(work(keeper, EVERY_KIND, disturb))

    check_books(postgres, workers)
    assert newcomers.served > 100
    status = keeper.status()
    assert (status.adoptions.count, status.adoptions.sessions_lost) == (4, 0)
    check_ledger(keeper)


def test_under_pgbench(run_dir: RunDir, make_keeper: MakeKeeper, postgres: Postgres) -> None:
    keeper = make_keeper(settings={"default_pool_size": 5})
    pid = keeper.bouncer_pid
    with Pgbench(run_dir, keeper, name=f"pgbench-{keeper.name}") as pgbench:
        pgbench.make_tables(postgres)
        pgbench.start(database="transaction", clients=10, transactions=15_000, protocol="simple")
        for _ in range(3):
            wait_for_more(postgres, 50)
            keeper.take_over()
        assert keeper.bouncer_pid == pid
        keeper.kill_bouncer()
        assert pgbench.running, "it ended before the kill"
        result = pgbench.finish()
    assert (result.exit_code, result.failed) == (0, 0), result.output
    accounts, tellers, branches, history, lines = balances(postgres)
    assert accounts == tellers == branches == history
    assert lines == result.transactions
    check_ledger(keeper)


def test_many_sessions(keeper: Keeper) -> None:
    """More than one message of 64 descriptors."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(RawClient(keeper.host, keeper.port)).login() for _ in range(300)
        ]
        keeper.take_over()
        assert keeper.status().sessions.clients_held == 300
        keeper.kill_bouncer()
        for client in clients:
            assert client.query("SELECT 1") == [("1",)]
        check_ledger(keeper)


def test_while_nobody_serves(
    make_keeper: MakeKeeper, run_dir: RunDir, patched_binary: Path
) -> None:
    """A pgkeeper that is mended is what a crash loop waits for."""
    wrapped = Wrapped(run_dir, patched_binary, "crashing-at-takeover")
    keeper = make_keeper()
    assert keeper.client.handoff(wrapped.path, None, lambda progress: None)
    with RawClient(keeper.host, keeper.port).login() as client:
        wrapped.misbehave("exit 3")
        send(keeper.bouncer_pid, signal.SIGKILL)
        wait_until(lambda: keeper.status().pgbouncer.state == "crash-loop", what="it loops")
        keeper.take_over("--pgbouncer", run_dir.usable(patched_binary))
        keeper.wait_active()
        assert client.query("SELECT 1") == [("1",)]


# it fails: the old one goes on


def test_there_is_nobody(keeper: Keeper) -> None:
    keeper.kill_hanger()
    new = keeper.begin_takeover()
    assert new.wait(20) == 2
    assert "no hanger to take over from" in keeper.output.read()
    keeper.start_hanger()


def test_a_setting_that_is_none(keeper: Keeper, sessions: list[Orphan]) -> None:
    before = (keeper.hanger.pid, keeper.bouncer_pid)
    new = keeper.begin_takeover("--pgbouncer", "/bin/true")
    assert new.wait(20) == 1
    assert "no keeper support" in keeper.output.read()
    assert (keeper.status().hanger.pid, keeper.bouncer_pid) == before


def test_one_that_asks_and_leaves(keeper: Keeper, sessions: list[Orphan]) -> None:
    before = (keeper.hanger.pid, keeper.bouncer_pid)
    with Stranger(keeper) as stranger:
        stranger.say(messages.Ask("0"))
        assert isinstance(stranger.hear(), messages.Offer)
    assert (keeper.status().hanger.pid, keeper.bouncer_pid) == before
    keeper.take_over()


@pytest.mark.parametrize("last", ["exit", "signal.pause"], ids=["dies", "hangs"])
def test_one_that_takes_everything_and_fails(
    keeper: Keeper, sessions: list[Orphan], last: str
) -> None:
    """The old one ends it, and serves as if nothing had been; clients have only waited."""
    before = (keeper.hanger.pid, keeper.bouncer_pid)
    held = kinds_at_rest(keeper.hanger.pid)
    program = (
        "import signal, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.connect(sys.argv[1])\n"
        "s.send(sys.argv[2].encode()); s.recv(65536)\n"
        "s.send(sys.argv[3].encode()); socket.recv_fds(s, 65536, 64)\n"
        f"{last}()\n"
    )
    path = os.fspath(messages.next_path(keeper.socket_path))
    words = [messages.encode(one).decode() for one in (messages.Ask("0"), messages.Go())]
    with keeper.output.contains("takeover-failed"):
        heir = subprocess.Popen([sys.executable, "-c", program, path, *words])
        if last != "exit":
            # Its newcomers wait with it, up to the five seconds that it is given.
            assert keeper.sql("SELECT 1") == [(1,)]
        heir.wait(20)
    if last != "exit":
        assert heir.returncode == -signal.SIGKILL
    assert_intact(sessions)
    assert (keeper.status().hanger.pid, keeper.bouncer_pid) == before
    wait_until(lambda: kinds(keeper.hanger.pid) == held, what="it holds what it held")
    keeper.take_over()


def test_another_version(keeper: Keeper, sessions: list[Orphan]) -> None:
    with Stranger(keeper) as stranger:
        ours = b'"version": %d,' % messages.VERSION
        words = messages.encode(messages.Ask("99")).replace(ours, b'"version": 99,')
        stranger.connection.send(words)
        answer = messages.decode(stranger.connection.recv(65536))
    assert answer == messages.Refusal(
        "bad message of the other hanger: takeover version 99,"
        f" this pgkeeper speaks version {messages.VERSION}"
    )
    assert_intact(sessions)


def test_two_at_once(keeper: Keeper, sessions: list[Orphan]) -> None:
    with Stranger(keeper) as first, Stranger(keeper) as second:
        first.say(messages.Ask("0"))
        first.hear()
        second.say(messages.Ask("0"))
        assert second.hear() == messages.Refusal("another takeover is under way")


@pytest.mark.parametrize("after_ms", [300, 400, 450, 500, 550, 600, 700, 800])
def test_the_new_one_is_killed_some_time_after_its_start(
    keeper: Keeper, sessions: list[Orphan], after_ms: int
) -> None:
    """Before, in, or after the takeover; after it, as when any hanger is killed."""
    pid, old = keeper.bouncer_pid, keeper.hanger
    new = keeper.begin_takeover()
    asyncio.run(asyncio.sleep(after_ms / 1000))
    new.stop(signal.SIGKILL)
    if not (old.running and answers(keeper)):
        old.wait(10)
        keeper.start_hanger()
    assert keeper.bouncer_pid == pid


# the help of others


def answers(keeper: Keeper) -> bool:
    """Whether there is a hanger."""
    try:
        keeper.status()
    except NoHangerError:
        return False
    return True


def wait_for_more(postgres: Postgres, count: int) -> None:
    """Wait until so many more transactions of pgbench have been committed."""
    target = balances(postgres)[-1] + count
    wait_until(lambda: balances(postgres)[-1] >= target, what="transactions", poll_s=0.02)


def kinds(pid: int) -> dict[str, int]:
    """How many descriptors of each kind a process has."""
    counts: dict[str, int] = {}
    for target in descriptors(pid):
        kind = target.split(":[")[0]
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def kinds_at_rest(pid: int) -> dict[str, int]:
    """The same once nothing comes or goes: a request for the status has just been answered, say.

    pgbouncer may tell of a client that has gone only at its next round, a third of a second later.
    """
    seen: list[dict[str, int]] = []

    def settled() -> bool:
        seen.append(kinds(pid))
        return seen[-2:-1] == seen[-1:]

    wait_until(settled, what="as many descriptors as before", poll_s=0.5)
    return seen[-1]


class Stranger:
    """One that speaks as a new hanger would, as far as a test wants."""

    def __init__(self, keeper: Keeper) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(10)
        self.connection.connect(os.fspath(messages.next_path(keeper.socket_path)))

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, message: messages.Message) -> None:
        self.connection.send(messages.encode(message))

    def hear(self) -> messages.Message:
        return messages.decode(self.connection.recv(messages.SIZE))

    def close(self) -> None:
        self.connection.close()


class Newcomers:
    """Clients that come, ask and go all the time, in a thread; its errors are raised at the end."""

    def __init__(self, keeper: Keeper) -> None:
        self.served = 0
        self._keeper = keeper
        self._errors: list[Exception] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with RawClient(self._keeper.host, self._keeper.port).login() as client:
                    assert client.query("SELECT 1") == [("1",)]
                    self.served += 1
        except Exception as error:
            self._errors.append(error)

    def __enter__(self) -> Newcomers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        if self._errors:
            raise self._errors[0]
