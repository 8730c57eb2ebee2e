"""A pgbouncer that hangs is replaced, whatever makes it hang; one that only seems to is not."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, cast

import pytest

from pgkeeper.bouncer.inspection import inspect
from testbed import Keeper, RawClient, wait_until
from testbed.account import give
from testbed.ledgers import check_ledger
from testbed.load import EVERY_KIND, Progress, check_books, make_tables, work
from testbed.process import send
from tests.sweep.controls.mutants import Change

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from testbed import Postgres, RunDir
    from testbed.manager import Manager
    from tests.fix_keeper import MakeKeeper
    from tests.sweep.controls.mutants import Mutants

TIMEOUT = 1.0
OPTIONS = ("--hang-timeout", f"{TIMEOUT:g}")


@pytest.fixture
def watched(make_keeper: MakeKeeper) -> Keeper:
    return make_keeper(options=OPTIONS, settings={"max_prepared_statements": 50})


def test_a_pgbouncer_that_is_stopped_under_load_is_replaced(
    watched: Keeper, postgres: Postgres
) -> None:
    make_tables(postgres)
    before = watched.status()

    async def disturb(progress: Progress) -> None:
        for _ in range(3):
            await progress.wait(20)
            await asyncio.to_thread(watched.kill_bouncer, signal.SIGSTOP)
        await progress.wait(50)

    workers = asyncio.run(work(watched, EVERY_KIND, disturb))
    check_books(postgres, workers)
    after = watched.status()
    assert after.crashes.hangs == 3
    assert after.pgbouncer.incarnation == before.pgbouncer.incarnation + 3
    assert (after.adoptions.sessions_lost, after.sessions.unheld) == (0, {})
    check_ledger(watched)


def test_an_endless_loop_in_one_clients_query_ends(
    run_dir: RunDir, make_keeper: MakeKeeper, mutants: Mutants
) -> None:
    """It loops while the file is there; it is taken away once it does."""
    order = run_dir.folder("endless") / "loop"
    loop = Change(
        "src/client.c",
        "case PqMsg_Query:\n\t\tif (cf_disable_pqexec) {",
        "case PqMsg_Query:\n"
        f'\t\tif (access("{order}", F_OK) == 0)\n\t\t\tfor (;;) {{\n\t\t\t}}\n'
        "\t\tif (cf_disable_pqexec) {",
    )
    keeper = make_keeper(binary=mutants.binary([loop]), options=OPTIONS)
    with RawClient(keeper.host, keeper.port) as one, RawClient(keeper.host, keeper.port) as two:
        one.login(database="session")
        two.login(database="session")
        pid = keeper.bouncer_pid
        order.touch()
        thread = threading.Thread(target=lambda: rows.extend(one.query("SELECT 'looped'")))
        rows: list[tuple[str | None, ...]] = []
        thread.start()
        wait_until(lambda: burns(pid), what="it loops")
        order.unlink()
        keeper.wait_active(other_than=pid)
        thread.join(10)
        assert rows == [("looped",)]
        assert two.query("SELECT 'other'") == [("other",)]
    assert keeper.status().crashes.hangs == 1


def burns(pid: int) -> bool:
    """Whether a process does nothing but use its processor."""
    first = inspect(pid)
    time.sleep(0.1)
    second = inspect(pid)
    return first is not None and second is not None and second.cpu_s - first.cpu_s > 0.02


class Powerless:
    """Starts a hanger as root that may not kill what is another user's (CAP_KILL)."""

    def command(
        self, argv: Sequence[str | Path]
    ) -> tuple[list[str | Path], dict[str, str], tuple[int, ...]]:
        return ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill", *argv], {}, ()


def test_one_that_cannot_be_killed_is_said_to_hang_once(
    run_dir: RunDir, postgres: Postgres, patched_binary: Path
) -> None:
    """As in a container whose PID namespace is not the hanger's."""
    keeper = Keeper(run_dir, postgres, patched_binary, name="powerless", options=OPTIONS)
    keeper.manager = cast("Manager", Powerless())
    try:
        with keeper, RawClient(keeper.host, keeper.port) as client:
            client.login(database="session")
            pid = keeper.bouncer_pid
            for times in (1, 2):
                start = keeper.output.size()
                with keeper.output.contains("bouncer-unreachable"):
                    send(pid, signal.SIGSTOP)
                # Nothing tells that it was looked at twice more, in vain.
                time.sleep(2.5 * TIMEOUT)
                said = keeper.output.read(start)
                for event in ("bouncer-hangs", "bouncer-unreachable"):
                    assert said.count(event) == 1, said
                assert "bouncer-killed" not in said
                assert keeper.status().crashes.hangs == times
                send(pid, signal.SIGCONT)
                assert client.query("SELECT 'goes on'") == [("goes on",)]
            send(pid, signal.SIGKILL)
            keeper.wait_active(other_than=pid)
            assert client.query("SELECT 'held'") == [("held",)]
    finally:
        keeper.print_logs()


def test_a_log_that_nobody_reads_holds_up_one_pgbouncer_only(
    make_keeper: MakeKeeper, run_dir: RunDir
) -> None:
    """Its log is a pipe: while that is full pgbouncer waits for ever in the middle of a login."""
    path = run_dir.folder("blocked-log") / "pipe"
    os.mkfifo(path)
    give(path, run_dir.account)
    # Read and write: opening does not wait for a peer then.
    pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    # More than begin their login until it is noticed.
    settings: dict[str, str | int | None] = {"logfile": str(path), "max_client_conn": 5000}
    try:
        with draining(pipe):
            keeper = make_keeper(options=OPTIONS, settings=settings)
            idle = RawClient(keeper.host, keeper.port).login(database="session")
            backend = idle.query("SELECT pg_backend_pid()")
            pid = keeper.bouncer_pid
        logins: list[RawClient] = []
        try:
            while keeper.status().crashes.hangs == 0:
                # Each is some lines of the log; none is answered once it is full.
                logins.append(RawClient(keeper.host, keeper.port))
                logins[-1].start_up(user="postgres", database="transaction")
                time.sleep(0.001)
            with draining(pipe):
                keeper.wait_active(other_than=pid)
                assert idle.query("SELECT pg_backend_pid()") == backend
                for client in logins:
                    client.finish_login()
                assert logins[-1].query("SELECT 1") == [("1",)]
                for client in (*logins, idle):
                    client.close()
                assert keeper.status().adoptions.sessions_lost == 0
                keeper.close()
        finally:
            for client in logins:
                client.close()
    finally:
        os.close(pipe)


@contextlib.contextmanager
def draining(pipe: int) -> Iterator[None]:
    """Read what comes out of a non-blocking pipe, and throw it away."""
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                os.read(pipe, 1 << 16)
            except BlockingIOError:
                done.wait(0.001)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_with_a_timeout_of_zero_nobody_looks(make_keeper: MakeKeeper) -> None:
    """The control: what hangs may hang, and goes on by itself."""
    keeper = make_keeper(options=("--hang-timeout", "0"))
    with contextlib.closing(keeper.connect(dbname="session")) as session:
        pid = keeper.bouncer_pid
        send(pid, signal.SIGSTOP)
        # Nothing is to happen, which cannot be waited for.
        time.sleep(3 * TIMEOUT)
        assert keeper.status().pgbouncer.pid == pid
        send(pid, signal.SIGCONT)
        assert session.execute("SELECT 1").fetchall() == [(1,)]
        status = keeper.status()
        assert (status.pgbouncer.pid, status.crashes.hangs, status.adoptions.count) == (pid, 0, 0)


def test_when_everything_was_suspended_nobody_is_killed(watched: Keeper) -> None:
    """As a machine that sleeps: hanger and pgbouncer stand still, and the hanger wakes first."""
    with contextlib.closing(watched.connect(dbname="session")) as session:
        pid = watched.bouncer_pid
        watched.hanger.send_signal(signal.SIGSTOP)
        send(pid, signal.SIGSTOP)
        time.sleep(3 * TIMEOUT)
        watched.hanger.send_signal(signal.SIGCONT)
        assert watched.status().pgbouncer.pid == pid
        send(pid, signal.SIGCONT)
        assert session.execute("SELECT 1").fetchall() == [(1,)]
        status = watched.status()
        assert (status.pgbouncer.pid, status.crashes.hangs) == (pid, 0)


def test_a_debugger_may_look_at_it_for_as_long_as_it_likes(watched: Keeper) -> None:
    with contextlib.closing(watched.connect(dbname="session")) as session:
        pid = watched.bouncer_pid
        with traced(pid):
            wait_until(
                lambda: "bouncer-stands-still" in watched.output.read(), what="it was noticed"
            )
            time.sleep(TIMEOUT)
            assert watched.status().pgbouncer.pid == pid
        assert session.execute("SELECT 1").fetchall() == [(1,)]
        assert watched.status().crashes.hangs == 0
        # And what hangs afterwards is replaced as ever.
        watched.kill_bouncer(signal.SIGSTOP)
        assert session.execute("SELECT 1").fetchall() == [(1,)]
        assert watched.status().crashes.hangs == 1


@contextlib.contextmanager
def traced(pid: int) -> Iterator[None]:
    """Stop process `pid` as a debugger does (ptrace(2)); the thread that attaches detaches."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    attach, detach = 16, 17
    if libc.ptrace(attach, pid, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    try:
        os.waitpid(pid, 0x40000000)  # __WALL: it is nobody's child here
        yield
    finally:
        libc.ptrace(detach, pid, None, None)


def test_a_standby_that_stands_still_is_no_hang_until_it_is_to_serve(
    make_keeper: MakeKeeper,
) -> None:
    """It has no event loop yet, and no heartbeat; it is killed once sessions wait for it."""
    keeper = make_keeper(options=OPTIONS, standby=True)
    with contextlib.closing(keeper.connect(dbname="session")) as session:
        pid, standby = keeper.bouncer_pid, keeper.status().pgbouncer.standby_pid
        assert standby is not None
        send(standby, signal.SIGSTOP)
        # Nothing is to happen, which cannot be waited for.
        time.sleep(3 * TIMEOUT)
        status = keeper.status()
        assert (status.pgbouncer.pid, status.pgbouncer.standby_pid) == (pid, standby)
        assert status.crashes.hangs == 0
        send(pid, signal.SIGKILL)
        assert session.execute("SELECT 1").fetchall() == [(1,)]
        status = keeper.status()
        assert status.pgbouncer.pid not in (pid, standby)
        assert (status.crashes.hangs, status.crashes.quarantine.ended) == (1, {})


@pytest.mark.parametrize("command", ["PAUSE", "SUSPEND"])
def test_one_that_waits_on_purpose_lives(watched: Keeper, command: str) -> None:
    pid = watched.bouncer_pid
    with contextlib.closing(watched._console()) as console:
        console.execute(command)
        time.sleep(2 * TIMEOUT)
        console.execute("RESUME")
    assert watched.sql("SELECT 1") == [(1,)]
    status = watched.status()
    assert (status.pgbouncer.pid, status.crashes.hangs) == (pid, 0)


def test_an_adoption_of_many_is_no_hang(make_keeper: MakeKeeper) -> None:
    keeper = make_keeper(options=OPTIONS, settings={"max_client_conn": 2000})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(keeper.host, keeper.port)) for _ in range(900)]
        for client in clients:
            client.start_up(user="postgres", database="transaction")
        for client in clients:
            client.finish_login()
        for _ in range(3):
            keeper.kill_bouncer()
        for number, client in enumerate(clients):
            assert client.query(f"SELECT {number}") == [(str(number),)]
        status = keeper.status()
        assert (status.crashes.hangs, status.adoptions.sessions_lost) == (0, 0)
