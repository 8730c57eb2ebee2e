"""A PostgreSQL server for one run."""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from testbed.errors import ProcessFailedError
from testbed.logfile import LogFile
from testbed.pginstall import usable_installation
from testbed.process import Process, environment
from testbed.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from testbed.rundir import RunDir

Connection = psycopg.Connection[tuple[Any, ...]]


class Auth(enum.Enum):
    """How PostgreSQL makes a user log in over TCP: the method's name in pg_hba.conf."""

    TRUST = "trust"
    PASSWORD = "password"  # noqa: S105 (the method's name)
    MD5 = "md5"
    SCRAM = "scram-sha-256"

    @property
    def role(self) -> str:
        """The group role whose members log in so; pg_hba.conf matches it as `+role`."""
        return "auth_" + self.name.lower()


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


class Postgres:
    """PostgreSQL on 127.0.0.1 with a Unix socket, run as the run's account.

    `log_statement` as PostgreSQL's setting of that name; `settings` override postgresql.conf.
    Everyone may log in without a password but the users made by `add_user`.
    """

    host = "127.0.0.1"
    #: Who may come over TCP, as pg_hba.conf has it.
    clients = "127.0.0.1/32"

    def __init__(
        self,
        run_dir: RunDir,
        *,
        name: str = "postgres",
        max_connections: int = 200,
        log_statement: str = "none",
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.name = name
        self.port = free_port()
        self.folder = run_dir.folder(name)
        self.socket_dir = run_dir.folder(f"{name}-socket")
        self.log = LogFile(self.folder / "postgres.log")
        self._data = self.folder / "data"
        self._install = usable_installation(run_dir)
        self._process: Process | None = None
        self._settings = {
            **_SETTINGS,
            # Workers would be three more processes to start and end.
            **({"io_method": "sync"} if self._install.major >= 18 else {}),
            "port": self.port,
            "unix_socket_directories": str(self.socket_dir),
            "max_connections": max_connections,
            "log_statement": log_statement,
            **(settings or {}),
        }

    def __enter__(self) -> Postgres:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

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
        fresh = not self._data.exists()
        if fresh:
            self._initdb()
        self._process = Process(
            self.run_dir,
            self.name,
            [self._install.program("postgres"), "-D", self._data],
            output=self.log.path,
        )
        wait_until(self._ready_or_dead, what=f"{self.name} takes connections", seconds=30)
        if not self._process.running:
            raise ProcessFailedError(self.name, "did not start", self.log.tail())
        if fresh:
            for auth in Auth:
                self.sql(sql.SQL("CREATE ROLE {}").format(sql.Identifier(auth.role)))

    def stop(self) -> None:
        """Fast shutdown: sessions are told, then ended. Nothing happens if it does not run.

        Raises `ProcessFailedError` if it does not end in time; it is killed then.
        """
        process, self._process = self._process, None
        if process is not None:
            process.stop(signal.SIGINT, 20)

    def restart(self) -> None:
        """Stop and start on the same data directory and port."""
        self.stop()
        self.start()

    def conninfo(self, **options: str | int) -> str:
        """A libpq connection string straight to the server, user and database `postgres`."""
        defaults: dict[str, str | int] = {
            "host": self.host,
            "port": self.port,
            "user": "postgres",
            "dbname": "postgres",
            "connect_timeout": 10,
        }
        return make_conninfo("", **{**defaults, **options})

    def connect(self, **options: str | int) -> Connection:
        """A psycopg connection straight to the server, with autocommit on.

        `options` are libpq's parameters.
        """
        return psycopg.connect(self.conninfo(**options), autocommit=True)

    def sql(
        self, query: str | sql.Composed, params: tuple[object, ...] = (), **options: str | int
    ) -> list[tuple[Any, ...]]:
        """Run one statement in a session of its own; its rows, or an empty list."""
        with contextlib.closing(self.connect(**options)) as connection:
            cursor = connection.execute(query, params or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, params: tuple[object, ...] = (), **options: str | int) -> Any:
        """The one value that the statement returns. Raises ValueError if it is not one."""
        ((value,),) = self.sql(query, params, **options)
        return value

    def add_user(self, name: str, secret: str = "", auth: Auth = Auth.TRUST) -> None:
        """A login role that must log in over TCP by `auth`; it may do all in `public`.

        With `Auth.MD5` the server stores an MD5 hash, else a SCRAM verifier.
        """
        encryption = "md5" if auth is Auth.MD5 else "scram-sha-256"
        with contextlib.closing(self.connect()) as connection:
            connection.execute(
                sql.SQL("SET password_encryption = {}").format(sql.Literal(encryption))
            )
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(
                    sql.Identifier(name),
                    sql.Literal(secret or None),
                    sql.Identifier(auth.role),
                )
            )
            connection.execute(
                sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(name))
            )

    def verifier(self, name: str) -> str:
        """What the server stores as the role's password, as userlist.txt takes it too."""
        stored = self.value("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (name,))
        return str(stored)

    def backends(self, **where: str) -> int:
        """How many client sessions pg_stat_activity shows, e.g. `backends(usename="alice")`."""
        conditions = sql.SQL("").join(
            sql.SQL(" AND {} = {}").format(sql.Identifier(column), sql.Literal(value))
            for column, value in where.items()
        )
        query = sql.SQL(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid(){}"
        ).format(conditions)
        ((count,),) = self.sql(query)
        return int(count)

    def runs(self, statement: str) -> bool:
        """Whether some session is executing exactly this statement text now."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = %s"
        return bool(self.value(query, (statement,)))

    @contextlib.contextmanager
    def stalled(self, pid: int) -> Iterator[None]:
        """Stop one backend (SIGSTOP) during the `with` block: it reads and writes nothing."""
        if not self.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)):
            raise ProcessFailedError(self.name, f"{pid} is no backend of it")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

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
        rules = ["local all all trust", "local replication all trust"]
        rules += [
            f"host all +{auth.role} {self.clients} {auth.value}"
            for auth in Auth
            if auth is not Auth.TRUST
        ]
        rules += [f"host {what} all {self.clients} trust" for what in ("all", "replication")]
        (self._data / "pg_hba.conf").write_text("\n".join(rules) + "\n")
