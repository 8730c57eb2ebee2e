"""A PgBouncer that nobody keeps: the baseline of every claim."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from testbed.errors import BedError, LeftBehindError, ProcessFailedError
from testbed.pooler import Pooler
from testbed.process import Process, descriptors
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from testbed.postgres import Postgres
    from testbed.rundir import RunDir


class Bouncer(Pooler):
    """`binary` run by itself as the run's account. Use it as a context manager.

    The keyword settings are those of `Pooler`.
    """

    def __init__(
        self,
        run_dir: RunDir,
        postgres: Postgres,
        binary: Path,
        *,
        name: str = "bouncer",
        settings: Mapping[str, str | int | None] | None = None,
        databases: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        user_settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            run_dir,
            postgres,
            name=name,
            settings=settings,
            databases=databases,
            users=users,
            user_settings=user_settings,
        )
        self.binary = binary
        self._process: Process | None = None
        self._idle_sockets = 0

    def __enter__(self) -> Bouncer:
        try:
            self.start()
        except BaseException:
            # Why it did not start, or Ctrl-C, is the news.
            with contextlib.suppress(BedError):
                self.close(check_sockets=False)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(check_sockets=kind is None)

    @property
    def process(self) -> Process:
        """The process. Raises `ProcessFailedError` if it was not started."""
        if self._process is None:
            raise ProcessFailedError(self.name, "not started")
        return self._process

    @property
    def pid(self) -> int:
        """The pid. Raises `ProcessFailedError` if it was not started."""
        return self.process.pid

    def start(self) -> None:
        """Start it, or a new one with the same files after a kill; returns when it answers.

        The old one must have ended or be about to. Raises `ProcessFailedError` with the end of its
        log if the new one dies instead.
        """
        if self._process is not None:
            self._process.wait(10)
        self._process = process = Process(
            self.run_dir,
            self.name,
            [self.run_dir.usable(self.binary), "-q", self.ini_path],
            output=self.output.path,
        )
        wait_until(lambda: not process.running or self.answers(), what=f"{self.name} answers")
        if not process.running:
            raise ProcessFailedError(
                self.name, "did not start", self.output.tail() + self.log.tail()
            )
        # Listeners and the resolver's; the console's own socket may still be closing.
        wait_until(self._count_idle, what=f"{self.name} is idle")

    def _count_idle(self) -> bool:
        before, self._idle_sockets = self._idle_sockets, self.sockets()
        return before == self._idle_sockets

    def sockets(self) -> int:
        """How many sockets it holds open, of any kind."""
        return sum(target.startswith("socket:") for target in descriptors(self.pid))

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal that ends it and wait until it is dead."""
        self.process.send_signal(number)
        self.process.wait(10)

    def close(self, *, check_sockets: bool = True) -> None:
        """Stop it, and raise what is wrong: `BadLogError`, `LeftBehindError`, `ProcessFailedError`.

        With `check_sockets` (every client has gone) it must hold none but its listeners and the
        links to servers.
        """
        if self._process is not None and self._process.running:
            try:
                if check_sockets:
                    self.check_sockets()
            finally:
                self._process.stop(signal.SIGQUIT)
        self._process = None
        self.check_logs()
        left = self.run_dir.processes(self.name)
        if left:
            raise LeftBehindError(self.name, left)

    def check_sockets(self, seconds: float = 10.0) -> None:
        """Wait until it holds no socket but its listeners and the links to servers.

        Raises `WaitTimeoutError` after `seconds`.
        """

        def only_servers() -> bool:
            servers = len(self.admin("SHOW SERVERS"))
            return self.sockets() <= self._idle_sockets + servers

        what = f"{self.name} has closed the sockets of clients that left"
        wait_until(only_servers, what=what, seconds=seconds)
