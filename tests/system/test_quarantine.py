"""A session whose bytes kill pgbouncer again and again is ended; all others see a pause."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeeper.hanger.quarantine import LIMIT
from pgkeeper.states import ServiceState
from testbed import Keeper, RawClient, binaries, wait_until
from testbed.errors import ConnectionLostError, ServerError
from testbed.ledgers import check_ledger
from testbed.load import EVERY_KIND, Progress, check_books, make_tables, work
from testbed.manager import Manager
from testbed.process import Process, send, state
from testbed.rawclient import Message, frontend, text
from tests.system.bystanders import bystanders
from tests.system.poison import CRASH, CRASH_IN_ANSWER, LOOP, POISONABLE
from tests.system.wrapping import Wrapped, kept

if TYPE_CHECKING:
    from testbed import Postgres, RunDir
    from tests.fix_keeper import MakeKeeper
    from tests.sweep.controls.mutants import Mutants

OPTIONS = ("--hang-timeout", "1")
SETTINGS: dict[str, str | int | None] = {"max_prepared_statements": 50}


@pytest.fixture(scope="session")
def poisoned(mutants: Mutants) -> Path:
    return mutants.binary(POISONABLE)


@pytest.fixture
def keeper(make_keeper: MakeKeeper, poisoned: Path) -> Keeper:
    return make_keeper(binary=poisoned, options=OPTIONS, settings=SETTINGS)


def attack(keeper: Keeper, statement: str, database: str = "transaction") -> ServerError:
    """Log in, and send a statement that pgbouncer does not survive; what the session ends with."""
    with logged_in(keeper, database) as client:
        return end_with(client, statement)


def logged_in(keeper: Keeper, database: str = "transaction") -> RawClient:
    """A session that works."""
    client = RawClient(keeper.host, keeper.port).login(database=database)
    assert client.query("SELECT 'sound'") == [("sound",)]
    return client


def end_with(client: RawClient, statement: str) -> ServerError:
    """Send a statement and read to the end of the connection; the error before it."""
    client.send(frontend("Q", text(statement)))
    last: Message | None = None
    with contextlib.suppress(ConnectionLostError):
        while True:
            last = client.read_any()
    assert last is not None
    assert last.kind == "E"
    return ServerError(last.error_fields())


@pytest.mark.timeout(120)
def test_hundreds_of_sessions_idle_and_busy_outlive_three_that_crash(
    keeper: Keeper, postgres: Postgres
) -> None:
    make_tables(postgres)
    before = keeper.status()
    with contextlib.ExitStack() as stack:
        stack.enter_context(bystanders(keeper))
        attackers = [stack.enter_context(logged_in(keeper)) for _ in range(3)]

        async def disturb(progress: Progress) -> None:
            for client in attackers:
                await progress.wait(20)
                error = await asyncio.to_thread(end_with, client, f"SELECT '{CRASH}'")
                assert error.fields["C"] == "XX000"
            await progress.wait(50)

        workers = asyncio.run(work(keeper, EVERY_KIND, disturb))
        check_books(postgres, workers)
        after = keeper.status()
        assert after.crashes.quarantine.ended == {"crash": 3}
        # Two deaths each: the second is its successor's, in the middle of the adoption.
        assert after.pgbouncer.incarnation - before.pgbouncer.incarnation == 6
        assert (after.adoptions.sessions_lost, after.sessions.unheld) == (0, {})
        check_ledger(keeper)
        print(f"the last pause: {after.adoptions.last_ms} ms")


@pytest.mark.parametrize("database", ["session", "transaction"])
def test_a_server_whose_answer_crashes_is_ended_with_its_client(
    keeper: Keeper, postgres: Postgres, database: str
) -> None:
    with RawClient(keeper.host, keeper.port) as other:
        other.login(database=database)
        other.query("BEGIN")
        (first, rest) = CRASH_IN_ANSWER.split("-")
        error = attack(keeper, f"SELECT '{first}-' || '{rest}'", database)
        assert error.fields["C"] == "XX000"
        assert other.query("SELECT 'other'") == [("other",)]
        assert other.transaction_status == "T"
    assert keeper.status().crashes.quarantine.ended == {"crash": 1}
    assert keeper.sql("SELECT 1", dbname=database) == [(1,)]


def test_a_transaction_that_is_ended_is_rolled_back(keeper: Keeper, postgres: Postgres) -> None:
    make_tables(postgres)
    with RawClient(keeper.host, keeper.port) as client:
        client.login()
        client.query("BEGIN")
        client.query("INSERT INTO counted VALUES (1, 1)")
        assert end_with(client, f"SELECT '{CRASH}'").fields["C"] == "XX000"
    assert keeper.sql("SELECT * FROM counted") == []
    assert {row["state"] for row in keeper.admin("SHOW SERVERS")} <= {"idle", "used"}


def test_a_session_that_makes_it_loop_is_ended_like_one_that_crashes(keeper: Keeper) -> None:
    with RawClient(keeper.host, keeper.port) as other:
        other.login(database="session")
        assert attack(keeper, f"SELECT '{LOOP}'").fields["C"] == "XX000"
        assert other.query("SELECT 'other'") == [("other",)]
    crashes = keeper.status().crashes
    assert (crashes.hangs, crashes.quarantine.ended) == (2, {"loop": 1})


def test_where_session_after_session_crashes_they_are_held_and_it_is_a_crash_loop(
    run_dir: RunDir, postgres: Postgres, poisoned: Path
) -> None:
    """A pgbouncer that dies of everything must not end everything: the operator replaces it."""
    switch = Wrapped(run_dir, poisoned, "poisoned-or-sound")
    with contextlib.ExitStack() as stack:
        keeper = stack.enter_context(kept(run_dir, postgres, switch.path, "poisoned-often"))
        clients = [stack.enter_context(logged_in(keeper)) for _ in range(LIMIT)]
        other, last = (stack.enter_context(logged_in(keeper, "session")) for _ in range(2))
        for client in clients:
            end_with(client, f"SELECT '{CRASH}'")
        last.send(frontend("Q", text(f"SELECT '{CRASH}'")))
        wait_until(
            lambda: keeper.status().pgbouncer.state is ServiceState.CRASH_LOOP, what="it loops"
        )
        assert keeper.status().crashes.quarantine.ended == {"crash": LIMIT}
        assert "quarantine-exhausted" in keeper.output.read()
        switch.misbehave(f'exec {run_dir.usable(binaries.patched())} "$@"')
        assert other.query("SELECT 'other'") == [("other",)]
        assert [message.kind for message in last.until_ready()] == ["T", "D", "C", "Z"]


def test_a_session_in_whose_event_somebody_aborts_pgbouncer_is_not_blamed(
    run_dir: RunDir, postgres: Postgres, poisoned: Path
) -> None:
    """An operator wants a core dump of one that seems to hang, and of the next: no crash of its."""
    switch = Wrapped(run_dir, poisoned, "looping-or-sound")
    options = ("--hang-timeout", "60")
    with (
        kept(run_dir, postgres, switch.path, "aborted", options=options) as keeper,
        logged_in(keeper) as client,
    ):
        client.send(frontend("Q", text(f"SELECT '{LOOP}'")))
        for _ in range(3):
            send(one_that_loops(keeper), signal.SIGABRT)
        last = one_that_loops(keeper)
        switch.misbehave(f'exec {run_dir.usable(binaries.patched())} "$@"')
        send(last, signal.SIGKILL)
        assert [message.kind for message in client.until_ready()] == ["T", "D", "C", "Z"]
        assert keeper.status().crashes.quarantine.ended == {}


def one_that_loops(keeper: Keeper) -> int:
    """The pid of the next pgbouncer that has run for 0.3 s of CPU time, maybe before READY."""
    pids: list[int] = []

    def looks() -> bool:
        pid = keeper.status().pgbouncer.pid
        pids[:] = [] if pid is None else [pid]
        # proc(5), /proc/PID/schedstat; it may just have ended
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            figures = Path(f"/proc/{pid}/schedstat").read_text().split()
            return pid is not None and int(figures[0]) > 300_000_000
        return False

    wait_until(looks, what="one runs for ever", seconds=20)
    return pids[0]


def test_the_first_death_counts_with_the_hanger_that_takes_over(keeper: Keeper) -> None:
    with RawClient(keeper.host, keeper.port) as other, logged_in(keeper) as client:
        other.login(database="session")
        client.send(frontend("Q", text(f"SELECT '{LOOP}'")))
        wait_until(lambda: keeper.status().crashes.hangs == 1, what="the first one is killed")
        wait_until(lambda: keeper.status().pgbouncer.pid is not None, what="another one adopts")
        # It loops as well, and the new hanger is to notice that in its turn.
        keeper.take_over()
        with contextlib.suppress(ConnectionLostError):
            while client.read_any().kind != "E":
                pass
        assert other.query("SELECT 'other'") == [("other",)]
    crashes = keeper.status().crashes
    assert (crashes.hangs, crashes.quarantine.ended) == (2, {"loop": 1})


def test_one_that_another_hanger_started_tells_of_its_crash_in_the_ledger(keeper: Keeper) -> None:
    """Whose parent has ended: its death is no SIGKILL of an operator's, and counts as the first."""
    with logged_in(keeper, "session") as other, logged_in(keeper) as client:
        keeper.take_over()
        before = keeper.status().pgbouncer.incarnation
        assert end_with(client, f"SELECT '{CRASH}'").sqlstate == "XX000"
        assert other.query("SELECT 'other'") == [("other",)]
        status = keeper.status()
        assert status.crashes.quarantine.ended == {"crash": 1}
        assert status.pgbouncer.incarnation == before + 2
        # What was ended stays so.
        keeper.take_over()
        assert keeper.status().crashes.quarantine.ended == {"crash": 1}
        assert keeper.status().sessions.clients_held == 1


def test_a_crash_that_no_hanger_saw_counts_where_the_manager_keeps_all(
    run_dir: RunDir, postgres: Postgres, poisoned: Path
) -> None:
    folder = run_dir.folder("manager-poisoned")
    keeper = Keeper(run_dir, postgres, poisoned, name="poisoned-stored")
    try:
        with (
            Manager(folder / "notify") as keeper.manager,
            keeper,
            logged_in(keeper, "session") as other,
            logged_in(keeper) as client,
        ):
            before = keeper.status().pgbouncer
            keeper.hanger.send_signal(signal.SIGSTOP)
            client.send(frontend("Q", text(f"SELECT '{CRASH}'")))
            assert before.pid is not None
            pid = before.pid
            wait_until(lambda: state(pid) in ("Z", ""), what="pgbouncer has died of it")
            keeper.kill_hanger()
            keeper.start_hanger()
            assert client.read_any().error_fields()["C"] == "XX000"
            assert other.query("SELECT 'other'") == [("other",)]
            status = keeper.status()
            assert status.crashes.quarantine.ended == {"crash": 1}
            assert status.pgbouncer.incarnation == before.incarnation + 2
            # The manager has nothing of it any more that could come back.
            pid = keeper.bouncer_pid
            keeper.kill_hanger()
            send(pid, signal.SIGKILL)
            assert keeper.start_hanger().sessions.clients_held == 1
            assert other.query("SELECT 'other'") == [("other",)]
    finally:
        keeper.print_logs()


class Restarter:
    """What starts pgbouncer where the hanger does not: a container's restart policy, say."""

    def __init__(self, keeper: Keeper, binary: Path) -> None:
        self._keeper = keeper
        self._argv = [keeper.run_dir.usable(binary), keeper.ini_path]
        self._done = threading.Event()
        self._process: Process | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        keeper = self._keeper
        while not self._done.is_set():
            name = f"{keeper.name}-restarted"
            self._process = Process(keeper.run_dir, name, self._argv, output=keeper.output.path)
            wait_until(self._ended, what="it has ended", seconds=60, poll_s=0.002)

    def _ended(self) -> bool:
        if self._done.is_set() and self._process is not None:
            self._process.send_signal(signal.SIGTERM)
        return self._process is None or not self._process.running

    def __enter__(self) -> Restarter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def test_one_that_something_else_restarts_tells_of_its_crashes_in_the_ledger(
    run_dir: RunDir, postgres: Postgres, poisoned: Path
) -> None:
    keeper = Keeper(
        run_dir, postgres, poisoned, name="poisoned-stranger", options=("--no-supervise",)
    )
    try:
        with Restarter(keeper, poisoned):
            keeper.start()
            with logged_in(keeper, "session") as other, logged_in(keeper) as client:
                # An operator's SIGKILL is none.
                keeper.kill_bouncer()
                keeper.kill_bouncer()
                assert end_with(client, f"SELECT '{CRASH}'").sqlstate == "XX000"
                assert other.query("SELECT 'other'") == [("other",)]
            assert keeper.status().crashes.quarantine.ended == {"crash": 1}
            keeper.check_descriptors()
        keeper.close(check_descriptors=False)
    finally:
        keeper.print_logs()
