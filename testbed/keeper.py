"""The hanger with its patched PgBouncer, driven from outside as an operator drives it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeeper.control.client import ControlClient, NoHangerError
from pgkeeper.states import ServiceState
from testbed.errors import BedError, LeftBehindError, NotFoundError, ProcessFailedError
from testbed.pooler import Pooler
from testbed.process import Process, descriptors, environment, send
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from pgkeeper.control.report import Session as HeldSession
    from pgkeeper.control.report import Status
    from testbed.manager import Manager
    from testbed.postgres import Postgres
    from testbed.rundir import RunDir

_COMMAND_S = 90.0
_START_S = 20.0


class Keeper(Pooler):
    """`pgkeeper run` and what it supervises. Use it as a context manager.

    `standby` and `options` go to the command line of `pgkeeper run`; the other keyword settings
    are those of `Pooler`. Status and sessions are asked through pgkeeper's own client, a
    millisecond each, where the command would cost the start of an interpreter; `run` runs the
    command itself.
    """

    def __init__(
        self,
        run_dir: RunDir,
        postgres: Postgres,
        binary: Path,
        *,
        name: str = "keeper",
        standby: bool = False,
        options: Sequence[str] = (),
        settings: Mapping[str, str | int | None] | None = None,
        databases: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        user_settings: Mapping[str, str] | None = None,
    ) -> None:
        self.socket_path = run_dir.path / name / "keeper.sock"
        more: dict[str, str | int | None] = {"keeper_socket": str(self.socket_path)}
        if run_dir.account is not None:
            more["user"] = run_dir.account.name
        super().__init__(
            run_dir,
            postgres,
            name=name,
            settings={**more, **(settings or {})},
            databases=databases,
            users=users,
            user_settings=user_settings,
        )
        self.binary = binary
        self.standby = standby
        self.options = tuple(options)
        self.manager: Manager | None = None
        """Starts the hanger with what it keeps, if there is one."""
        self.client = ControlClient(self.socket_path)
        self._process: Process | None = None
        self._idle_descriptors = 0

    def __enter__(self) -> Keeper:
        try:
            self.start()
        except BaseException:
            # Why it did not start, or Ctrl-C, is the news.
            with contextlib.suppress(BedError):
                self.close(check_descriptors=False)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(check_descriptors=kind is None)

    @property
    def hanger(self) -> Process:
        """The hanger's process. Raises `ProcessFailedError` if it was not started."""
        if self._process is None:
            raise ProcessFailedError(self.name, "not started")
        return self._process

    @property
    def bouncer_pid(self) -> int:
        """The active pgbouncer's pid. Raises `ProcessFailedError` if there is none."""
        pid = self.status().pgbouncer.pid
        if pid is None:
            raise ProcessFailedError(self.name, "no pgbouncer runs")
        return pid

    def start(self) -> Status:
        """Start the hanger; returns when a pgbouncer is active and its console answers.

        Raises `ProcessFailedError` with the end of its log if the hanger ends instead.
        """
        status = self.start_hanger()
        wait_until(self.answers, what=f"{self.name} answers")
        wait_until(self._at_rest, what="the console's login has gone")
        # Twice the same: the hanger has closed our last question's connection too.
        wait_until(self._count_idle, what=f"{self.name} is idle", poll_s=0.02)
        return status

    def start_hanger(self) -> Status:
        """Start the hanger alone, e.g. again after a kill; returns when a pgbouncer is active.

        Raises as `start`.
        """
        standby = "--standby" if self.standby else "--no-standby"
        argv: list[str | Path] = [
            *(_command(), "run", "--ini", self.ini_path, "--socket", self.socket_path),
            *("--pgbouncer", self.run_dir.usable(self.binary), standby),
            *self.options,
        ]
        more: dict[str, str] = {}
        fds: Sequence[int] = ()
        if self.manager is not None:
            managed, more, fds = self.manager.command(argv)
            argv = [*managed]
        self._process = Process(
            self.run_dir,
            self.name,
            argv,
            output=self.output.path,
            # Root as in a real installation: it gives pgbouncer the ini's user.
            privileged=True,
            env=more,
            pass_fds=fds,
        )
        return self.wait_active()

    def take_over(self, *options: str | Path, env: Mapping[str, str] | None = None) -> Process:
        """Start a hanger in the place of the one that runs; the old one, which has ended with 0.

        Raises `ProcessFailedError`, also if the new one ends instead.
        """
        old = self.hanger
        new = self.begin_takeover(*options, env=env)
        try:
            wait_until(lambda: not (old.running and new.running), what="either hanger has ended")
            code = old.wait(10) if new.running else None
        except BaseException:
            new.stop(signal.SIGKILL)
            raise
        if code != 0:
            new.stop(signal.SIGKILL)
            raise ProcessFailedError(self.name, f"not taken over ({code})", self.output.tail())
        self.follow(new)
        return old

    def follow(self, hanger: Process) -> None:
        """This is the hanger from now on; the one before has ended."""
        self._process = hanger

    def begin_takeover(self, *options: str | Path, env: Mapping[str, str] | None = None) -> Process:
        """Start a hanger with `--takeover`, and leave it to the caller."""
        return Process(
            self.run_dir,
            self.name,
            [_command(), "run", "--takeover", "--socket", self.socket_path, *options],
            output=self.output.path,
            privileged=True,
            env=env,
        )

    def kill_hanger(self) -> None:
        """SIGKILL the hanger and wait until it is dead; pgbouncer goes on by itself."""
        self.hanger.send_signal(signal.SIGKILL)
        self.hanger.wait(10)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `pgkeeper WORDS --socket ...`; its output and exit code."""
        return subprocess.run(
            [str(_command()), *map(str, words), "--socket", str(self.socket_path)],
            check=False,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            env=environment(f"{self.run_dir.run_id}/{self.name}-command"),
        )

    def status(self) -> Status:
        """What `pgkeeper status` says. Raises `NoHangerError`."""
        return self.client.status().status

    def sessions(self) -> list[HeldSession]:
        """What `pgkeeper sessions` says. Raises `NoHangerError`."""
        return self.client.sessions()

    def wait_active(
        self, *, after: int = 0, other_than: int | None = None, seconds: float = _START_S
    ) -> Status:
        """Wait until an incarnation later than `after` is active; the status then.

        `other_than` is a pid that must not be the active one's.

        With a standby also until the next one stands by. Raises `WaitTimeoutError`, or
        `ProcessFailedError` if the hanger ends meanwhile.
        """
        seen: list[Status] = []

        def active() -> bool:
            if not self.hanger.running:
                reason = f"the hanger ended with exit code {self.hanger.returncode}"
                raise ProcessFailedError(self.name, reason, self.output.tail())
            try:
                status = self.status()
            except NoHangerError:
                return False
            seen[:] = [status]
            bouncer = status.pgbouncer
            return (
                bouncer.state is ServiceState.ACTIVE
                and bouncer.incarnation > after
                and (other_than is None or bouncer.pid != other_than)
                and (bouncer.standby_pid is not None or not self.standby)
            )

        wait_until(active, what=f"{self.name}: an incarnation after {after}", seconds=seconds)
        return seen[-1]

    def kill_bouncer(self, number: signal.Signals = signal.SIGKILL) -> Status:
        """Send the active pgbouncer a signal and wait for its successor; the status then.

        SIGSTOP too: the watchdog must end it. Raises `ProcessFailedError` if no pgbouncer ran,
        `WaitTimeoutError` if none becomes active.
        """
        before = self.status().pgbouncer
        if before.pid is None:
            raise ProcessFailedError(self.name, "no pgbouncer runs")
        send(before.pid, number)
        return self.wait_active(after=before.incarnation)

    def close(self, *, check_descriptors: bool = True) -> None:
        """Stop it, and raise what is wrong: `BadLogError`, `LeftBehindError`, ...

        With `check_descriptors` (every client has gone) the hanger must hold no more than when it
        had begun, but for the links to servers.
        """
        if self._process is not None and self._process.running:
            try:
                if check_descriptors:
                    self.check_descriptors()
            finally:
                code = self._process.stop(signal.SIGTERM, 20)
            if code != 0:
                reason = f"the hanger's exit code after SIGTERM: {code}"
                raise ProcessFailedError(self.name, reason, self.output.tail())
        self._process = None
        self.check_logs()
        left = self.run_dir.processes(self.name)
        if left:
            raise LeftBehindError(self.name, left)

    def check_descriptors(self, seconds: float = 10.0) -> None:
        """Wait until the hanger holds only what it began with and the links to servers.

        Raises `WaitTimeoutError` after `seconds`.
        """

        def only_servers() -> bool:
            status = self.status()
            held = len(descriptors(self.hanger.pid))
            allowed = self._idle_descriptors + status.sessions.servers_held
            return status.sessions.clients_held == 0 and held <= allowed

        what = "the hanger has closed the sockets of clients that left"
        wait_until(only_servers, what=what, seconds=seconds)

    def _at_rest(self) -> bool:
        return self.status().sessions.clients_held == 0

    def _count_idle(self) -> bool:
        before, self._idle_descriptors = self._idle_descriptors, len(descriptors(self.hanger.pid))
        return before == self._idle_descriptors


def _command() -> Path:
    command = Path(sys.executable).with_name("pgkeeper")
    if not command.exists():
        raise NotFoundError("the command pgkeeper", "run ./dev setup")
    return command
