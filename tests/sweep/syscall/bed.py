"""The servers of a sweep: users of every kind, and a hanger configured for one workload."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from testbed.account import give
from testbed.keeper import Keeper
from testbed.postgres import Auth
from tests.sweep.syscall.stage import (
    AUTH_USER,
    LATE_USER,
    MD5_USER,
    PLAIN_USER,
    QUERY_USER,
    REPLICA_USER,
    SCRAM_USER,
    SECRET,
    USER,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from testbed.postgres import Postgres
    from testbed.rundir import RunDir
    from tests.sweep.syscall.stage import Workload

#: PostgreSQL's settings for the workloads, beside what the test bed sets.
SETTINGS: dict[str, str | int] = {"wal_level": "logical"}

_numbers = itertools.count(1)

_HBA = f"""\
host all {USER} 127.0.0.1/32 trust
host all {PLAIN_USER} 127.0.0.1/32 password
host all {MD5_USER} 127.0.0.1/32 md5
host all {SCRAM_USER} 127.0.0.1/32 scram-sha-256
host all {QUERY_USER},sweeper_nobody 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""


def prepare(postgres: Postgres) -> None:
    """Users, the tables `acts` and `bulk`, and the function that auth_query calls."""
    postgres.add_user(USER)
    postgres.add_user(PLAIN_USER, SECRET, Auth.PASSWORD)
    postgres.add_user(MD5_USER, SECRET, Auth.MD5)
    # The server asks for SCRAM too: the pooler logs in with the keys it learnt from the client.
    postgres.add_user(SCRAM_USER, SECRET, Auth.SCRAM)
    postgres.add_user(QUERY_USER, SECRET, Auth.SCRAM)
    postgres.add_user(LATE_USER)
    postgres.add_user(AUTH_USER)
    postgres.add_user(REPLICA_USER)
    postgres.sql(f"ALTER ROLE {REPLICA_USER} REPLICATION")
    postgres.sql("CREATE TABLE acts(id serial, tag text)")
    postgres.sql("CREATE TABLE bulk(line text)")
    postgres.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC")
    postgres.sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC")
    postgres.sql(
        "CREATE FUNCTION find_user(name text) RETURNS TABLE (usename name, passwd text)"
        " LANGUAGE sql SECURITY DEFINER AS"
        " 'SELECT rolname, rolpassword FROM pg_authid WHERE rolname = name'"
    )


class KeeperFactory:
    """Starts hangers, and stops those that still run at the end of the `with` block."""

    def __init__(self, run_dir: RunDir, postgres: Postgres, binary: Path) -> None:
        self._run_dir = run_dir
        self._postgres = postgres
        self._binary = binary
        self._last: Keeper | None = None

    def __enter__(self) -> KeeperFactory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._last is not None:
            self._last.close(check_descriptors=kind is None)

    def maker(
        self,
        workload: Workload,
        *,
        standby: bool = False,
        more: Mapping[str, str | int] | None = None,
    ) -> Callable[[], Keeper]:
        """What starts a hanger for this workload, in which every database name is postgres.

        `more` goes to [pgbouncer]. The hanger before is stopped, if it still runs.
        """

        def make() -> Keeper:
            if self._last is not None:
                self._last.close(check_descriptors=False)
            keeper = self._configured(workload, standby=standby, more=more or {})
            self._last = keeper
            keeper.start()
            return keeper

        return make

    def _configured(
        self, workload: Workload, *, standby: bool, more: Mapping[str, str | int]
    ) -> Keeper:
        postgres = self._postgres
        target = f"host={postgres.host} port={postgres.port} dbname=postgres"
        name = f"sweep-{next(_numbers)}"
        hba = self._run_dir.path / f"{name}-hba.conf"
        hba.write_text(_HBA)
        give(hba, self._run_dir.account)
        settings: dict[str, str | int | None] = {
            "pool_mode": "transaction",
            "server_tls_sslmode": "disable",
            "auth_hba_file": str(hba),
            "auth_user": AUTH_USER,
            "auth_query": "SELECT usename, passwd FROM find_user($1)",
            # PgBouncer's log goes into the hanger's output, in one order with the hanger's own.
            "logfile": None,
            **workload.settings,
            **more,
        }
        users = {
            USER: "",
            AUTH_USER: "",
            REPLICA_USER: "",
            PLAIN_USER: SECRET,
            MD5_USER: SECRET,
            SCRAM_USER: postgres.verifier(SCRAM_USER),
        }
        keeper = Keeper(
            self._run_dir,
            postgres,
            self._binary,
            name=name,
            standby=standby,
            settings=settings,
            databases={"*": f"{target} {workload.pool}"},
            users=users,
        )
        keeper.peers.update(workload.peers)
        keeper.write_files()
        return keeper
