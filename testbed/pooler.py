"""What an unpatched and a kept PgBouncer have in common: configuration, logins, console, log."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from testbed.account import give
from testbed.logfile import LogFile
from testbed.waiting import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from testbed.postgres import Connection, Postgres
    from testbed.rundir import RunDir

ADMIN = "pgbouncer_admin"
# One database a pool mode: a test names the mode it wants as the database.
POOL_MODES = ("session", "transaction", "statement")


class Pooler:
    """A PgBouncer's files and address. `Bouncer` and `Keeper` add the processes.

    `databases` replaces the three of `POOL_MODES` (values as in the ini's [databases]); `settings`
    are added to [pgbouncer], None taking one away; `users` are userlist.txt's names and passwords
    beside `postgres` and the console's `ADMIN`; `user_settings` is the ini's [users].
    """

    host = "127.0.0.1"

    def __init__(
        self,
        run_dir: RunDir,
        postgres: Postgres,
        *,
        name: str,
        settings: Mapping[str, str | int | None] | None = None,
        databases: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        user_settings: Mapping[str, str] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.postgres = postgres
        self.name = name
        self.port = free_port()
        self.folder = run_dir.folder(name)
        self.ini_path = self.folder / "pgbouncer.ini"
        self.users_path = self.folder / "userlist.txt"
        self.log = LogFile(self.folder / "pgbouncer.log")
        self.output = LogFile(self.folder / "output.log")
        target = f"host={postgres.host} port={postgres.port} dbname=postgres"
        self.databases = dict(
            databases or {mode: f"{target} pool_mode={mode}" for mode in POOL_MODES}
        )
        self.users = {"postgres": "", ADMIN: "", **(users or {})}
        self.user_settings = dict(user_settings or {})
        #: The ini's [peers], by peer_id; written at the next `write_files`.
        self.peers: dict[str, str] = {}
        self.settings: dict[str, str | int | None] = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": str(self.users_path),
            "admin_users": ADMIN,
            "max_client_conn": 1000,
            "logfile": str(self.log.path),
            **(settings or {}),
        }
        self.write_files()

    def write_files(self) -> None:
        """Write pgbouncer.ini and userlist.txt anew, e.g. after a change of `settings`."""
        sections: dict[str, Mapping[str, object]] = {
            "databases": self.databases,
            "users": self.user_settings,
            "peers": self.peers,
            "pgbouncer": {k: v for k, v in self.settings.items() if v is not None},
        }
        ini = "\n".join(
            f"[{title}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for title, entries in sections.items()
            if entries
        )
        self._write(self.ini_path, ini)
        lines = (f'"{_quoted(name)}" "{_quoted(word)}"\n' for name, word in self.users.items())
        self._write(self.users_path, "".join(lines))

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o600)
        give(path, self.run_dir.account)

    def conninfo(self, **options: str | int) -> str:
        """A libpq connection string through the pooler; `dbname` names the pool mode wanted."""
        defaults: dict[str, str | int] = {
            "host": self.host,
            "port": self.port,
            "user": "postgres",
            "dbname": "transaction",
            "connect_timeout": 10,
        }
        return make_conninfo("", **{**defaults, **options})

    def connect(self, **options: str | int) -> Connection:
        """A psycopg connection through the pooler, with autocommit on.

        `options` are libpq's parameters; `dbname` names the pool mode.
        """
        return psycopg.connect(self.conninfo(**options), autocommit=True)

    def sql(
        self, query: str, params: tuple[object, ...] = (), **options: str | int
    ) -> list[tuple[Any, ...]]:
        """Run one statement in a session of its own; its rows, or an empty list."""
        with contextlib.closing(self.connect(**options)) as connection:
            cursor = connection.execute(query, params or None)
            return cursor.fetchall() if cursor.description else []

    def admin(self, command: str) -> list[dict[str, Any]]:
        """Run a console command; its rows as dictionaries, or an empty list."""
        with contextlib.closing(self._console()) as console:
            cursor = console.execute(command)
            return cursor.fetchall() if cursor.description else []

    def _console(self) -> psycopg.Connection[dict[str, Any]]:
        return psycopg.connect(
            self.conninfo(dbname="pgbouncer", user=ADMIN), autocommit=True, row_factory=dict_row
        )

    def answers(self) -> bool:
        """Whether the console takes a login and a command."""
        try:
            self.admin("SHOW VERSION")
        except psycopg.OperationalError:
            return False
        return True

    @contextlib.contextmanager
    def log_contains(self, pattern: str, *, times: int | None = None) -> Iterator[None]:
        """Require PgBouncer's log to match during the `with` block; see `LogFile.contains`."""
        with self.log.contains(pattern, times=times):
            yield

    def print_logs(self) -> None:
        """Print the logs; pytest shows them with a test that failed."""
        for log in (self.output, self.log):
            print(f"--- {self.name}: {log.path.name}\n{log.read()}")

    def check_logs(self) -> None:
        """Raise `BadLogError` if a log says that a program is broken."""
        for log in (self.output, self.log):
            log.check()


def _quoted(word: str) -> str:
    return word.replace('"', '""')
