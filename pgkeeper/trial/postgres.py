"""A PostgreSQL server of our own, for the time of a run."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

from pgkeeper.trial.errors import ProcessFailedError
from pgkeeper.trial.pginstall import usable_installation
from pgkeeper.trial.process import Process, environment
from pgkeeper.trial.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgkeeper.trial.rundir import RunDir

__all__ = ["PrivatePostgres"]

# Nothing here has to survive the machine, and the shared memory is to lie in the data directory,
# where it goes away with the run.
_SETTINGS: dict[str, str | int] = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "huge_pages": "off",
    "dynamic_shared_memory_type": "mmap",
    "autovacuum": "off",
    "jit": "off",
    "ssl": "off",
    "log_line_prefix": "%m [%p] %u@%d ",
    "lc_messages": "C",
    "TimeZone": "UTC",
}


class PrivatePostgres:
    """PostgreSQL on 127.0.0.1 with a Unix socket, run as the run's account.

    `settings` override postgresql.conf; `rules` are lines of pg_hba.conf before those that let
    everyone in without a password.
    """

    host = "127.0.0.1"
    #: Who may come over TCP, as pg_hba.conf has it.
    clients = "127.0.0.1/32"

    def __init__(
        self,
        run_dir: RunDir,
        *,
        name: str = "postgres",
        settings: Mapping[str, str | int] | None = None,
        rules: Sequence[str] = (),
    ) -> None:
        self.run_dir = run_dir
        self.name = name
        self.port = free_port()
        self.folder = run_dir.folder(name)
        self.socket_dir = run_dir.folder(f"{name}-socket")
        self.log_path = self.folder / "postgres.log"
        self._data = self.folder / "data"
        self._install = usable_installation(run_dir)
        self._process: Process | None = None
        self._rules = tuple(rules)
        self._settings = {
            **_SETTINGS,
            # Workers would be three more processes to start and end.
            **({"io_method": "sync"} if self._install.major >= 18 else {}),
            "port": self.port,
            "unix_socket_directories": str(self.socket_dir),
            **(settings or {}),
        }

    @property
    def pid(self) -> int:
        """The postmaster's pid. Raises `ProcessFailedError` if it was not started."""
        if self._process is None:
            raise ProcessFailedError(self.name, "not started")
        return self._process.pid

    def start(self) -> None:
        """Start it, on the first call with a new data directory; returns when it takes logins.

        Raises `ProcessFailedError` with the end of its log.
        """
        if not self._data.exists():
            self._initdb()
        self._process = Process(
            self.run_dir,
            self.name,
            [self._install.program("postgres"), "-D", self._data],
            output=self.log_path,
        )
        wait_until(self._ready_or_dead, what=f"{self.name} takes connections", seconds=30)
        if not self._process.running:
            log = self.log_path.read_text(errors="replace").splitlines()[-20:]
            raise ProcessFailedError(self.name, "did not start", "\n".join(log))

    def stop(self) -> None:
        """Fast shutdown: sessions are told, then ended. Nothing happens if it does not run.

        Raises `ProcessFailedError` if it does not end in time; it is killed then.
        """
        process, self._process = self._process, None
        if process is not None:
            process.stop(signal.SIGINT, 20)

    def _ready_or_dead(self) -> bool:
        if self._process is None or not self._process.running:
            return True
        # What pg_ctl reads too: the eighth line is "ready" (miscinit.c, LOCK_FILE_LINE_PM_STATUS).
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def _initdb(self) -> None:
        account = self.run_dir.account
        command = [str(self._install.program("initdb")), "-D", str(self._data), "-U", "postgres"]
        command += ["--auth=trust", "--locale=C", "--encoding=UTF8", "--no-sync", "-N"]
        if self._install.major >= 18:
            command.append("--no-data-checksums")
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            cwd=self.run_dir.path,
            env=environment(f"{self.run_dir.run_id}/{self.name}"),
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
        if done.returncode:
            raise ProcessFailedError("initdb", f"exit code {done.returncode}", done.stderr)
        with (self._data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{key} = '{value}'\n" for key, value in self._settings.items())
        rules = ["local all all trust", "local replication all trust", *self._rules]
        rules += [f"host {what} all {self.clients} trust" for what in ("all", "replication")]
        (self._data / "pg_hba.conf").write_text("\n".join(rules) + "\n")
