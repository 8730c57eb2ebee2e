"""A keeper that only pretends, behind a real admin socket in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
import structlog

from pgkeeper import log
from pgkeeper.control.handlers import Handlers
from pgkeeper.control.protocol import admin_path
from pgkeeper.control.report import (
    AdoptionStatus,
    BouncerStatus,
    CrashStatus,
    HandoffReport,
    HangerStatus,
    QuarantineStatus,
    ReleaseReport,
    Session,
    SessionStatus,
    Status,
    Top,
    TopQuery,
    TopRow,
)
from pgkeeper.control.server import AdminServer
from pgkeeper.states import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

__all__ = ["FakeKeeper", "RunningAdmin", "admin", "fake_keeper", "logged", "open_dir", "run_admin"]

T = TypeVar("T")

SERVER = 1 << 63

STATUS = Status(
    hanger=HangerStatus(pid=4711, version="0.1.0", uptime_s=11_530.25),
    pgbouncer=BouncerStatus(state=ServiceState.ACTIVE, pid=4712, incarnation=3, standby_pid=4720),
    sessions=SessionStatus(clients_held=12, servers_held=1, unheld={"tls": 2, "ledger-full": 0}),
    adoptions=AdoptionStatus(count=2, last_ms=3.4375, sessions_lost=1),
    crashes=CrashStatus(
        hangs=1, quarantine=QuarantineStatus(ended={"crash": 2}, logins_refused=3, addresses=1)
    ),
)

SESSIONS = (
    Session(7, "client", "joe", "shop", "active", True, None, "in transaction", SERVER | 2),
    Session(1234, "client", None, None, "login", False, "tls", "login", None),
    Session(SERVER | 2, "server", "joe", "shop", "active", True, None, "in transaction", 7),
)


class FakeKeeper:
    """What `Handlers` call: says what it is told, remembers what it is asked."""

    def __init__(self) -> None:
        self.status_value = STATUS
        self.warning_lines: list[str] = []
        self.session_list: Iterable[Session] = SESSIONS
        self.steps: list[tuple[str, str]] = [
            ("start", "starting the new pgbouncer"),
            ("activate", "activating it"),
        ]
        self.error: Exception | None = None
        self.handoffs: list[tuple[Path | None, Path | None]] = []
        self.releases = 0
        self.queries: list[TopQuery] = []
        self.kills: list[str] = []
        #: Cleared: a handoff waits at its end until this is set.
        self.go_on = threading.Event()
        self.go_on.set()
        #: Set while a handoff waits.
        self.waiting = threading.Event()

    def status(self) -> Status:
        self._fail()
        return self.status_value

    def warnings(self) -> list[str]:
        return self.warning_lines

    def sessions(self) -> Iterable[Session]:
        self._fail()
        return self.session_list

    async def top(self, query: TopQuery) -> Top:
        self._fail()
        self.queries.append(query)
        rows = [TopRow(session, "192.0.2.7", 2, 0.5) for session in SESSIONS]
        return Top(len(rows), len(rows), rows[query.offset :][: query.limit])

    def kill(self, name: str) -> None:
        self._fail()
        self.kills.append(name)

    async def handoff(
        self, pgbouncer: Path | None, ini: Path | None, progress: Callable[[str, str], None]
    ) -> HandoffReport:
        self.handoffs.append((pgbouncer, ini))
        for step, text in self.steps:
            progress(step, text)
        self.waiting.set()
        await asyncio.to_thread(self.go_on.wait, 60)
        self._fail()
        return HandoffReport(4720, 4, 12, 1, {"in-flight": 1}, 2.25)

    async def release(self) -> ReleaseReport:
        self.releases += 1
        self._fail()
        return ReleaseReport(clients=12, servers=1)

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class RunningAdmin:
    """An `AdminServer` on an event loop in a thread; `socket` is the keeper_socket beside it."""

    def __init__(
        self, socket: Path, keeper: FakeKeeper, uids: Iterable[int], timeout: float
    ) -> None:
        self.socket = socket
        self.path = admin_path(socket)
        self.keeper = keeper
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = AdminServer(self.path, Handlers(keeper), frozenset(uids), timeout=timeout)
        self.call(self._server.start())

    def call(self, coroutine: Coroutine[object, object, T]) -> T:
        """The result of `coroutine`, run in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def close(self, grace: float = 2.0) -> None:
        """What the hanger does at its end."""
        self.call(self._server.close(grace))

    def stop(self) -> None:
        """Close, and end the thread; nothing may be left running in the loop."""
        try:
            self.keeper.go_on.set()
            self.close()
            self.call(self._loop.shutdown_default_executor())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(60)
            self._loop.close()


@contextlib.contextmanager
def run_admin(
    socket: Path, keeper: FakeKeeper, uids: Iterable[int] = (), timeout: float = 10.0
) -> Iterator[RunningAdmin]:
    """A `RunningAdmin` until the end of the block."""
    running = RunningAdmin(socket, keeper, uids, timeout)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def logged() -> Iterator[io.StringIO]:
    """What is logged, as JSON lines."""
    stream = io.StringIO()
    log.configure(json=True, level="debug", stream=stream)
    yield stream
    structlog.reset_defaults()


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that every user may enter and whose name is short enough for a socket address."""
    path = Path(tempfile.mkdtemp(prefix="pgkeeper-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def fake_keeper() -> FakeKeeper:
    """What `admin` answers from."""
    return FakeKeeper()


@pytest.fixture
def admin(open_dir: Path, fake_keeper: FakeKeeper) -> Iterator[RunningAdmin]:
    """An admin socket that answers from `fake_keeper`."""
    with run_admin(open_dir / "keeper.sock", fake_keeper) as running:
        yield running
