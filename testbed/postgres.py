"""A PostgreSQL server for one run."""

from __future__ import annotations

import contextlib
import enum
import os
import signal
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgkeeper.trial.postgres import PrivatePostgres
from testbed.errors import ProcessFailedError
from testbed.logfile import LogFile

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


class Postgres(PrivatePostgres):
    """A private PostgreSQL that tests look into.

    `log_statement` as PostgreSQL's setting of that name; `settings` override postgresql.conf.
    Everyone may log in without a password but the users made by `add_user`.
    """

    def __init__(
        self,
        run_dir: RunDir,
        *,
        name: str = "postgres",
        max_connections: int = 200,
        log_statement: str = "none",
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        super().__init__(
            run_dir,
            name=name,
            settings={
                "max_connections": max_connections,
                "log_statement": log_statement,
                **(settings or {}),
            },
            rules=[
                f"host all +{auth.role} {self.clients} {auth.value}"
                for auth in Auth
                if auth is not Auth.TRUST
            ],
        )
        self.log = LogFile(self.log_path)
        self._fresh = True

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

    def start(self) -> None:
        """Start it, on the first call with a new data directory and a role for each `Auth`."""
        super().start()
        if self._fresh:
            self._fresh = False
            for auth in Auth:
                self.sql(sql.SQL("CREATE ROLE {}").format(sql.Identifier(auth.role)))

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
