"""Fixtures of the system call sweep: the tracer, and a PostgreSQL that logs every statement."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import pytest

from testbed.errors import ProcessFailedError
from testbed.postgres import Postgres
from tests.sweep.syscall.bed import SETTINGS, KeeperFactory, prepare
from tests.sweep.syscall.tracer import Tracer, build_tracer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.postgres import Connection
    from testbed.rundir import RunDir


@pytest.fixture(scope="session")
def tracer_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled tracer; skips where the kernel does not let us trace what we did not start."""
    program = build_tracer(tmp_path_factory.mktemp("tracer"))
    # Our grandchild, as pgbouncer is: Yama's ptrace_scope 1 allows descendants alone.
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        try:
            with Tracer(program, pid, None):
                pass
        except ProcessFailedError as error:
            pytest.skip(f"no ptrace here: {error}")
        finally:
            subprocess.run(["kill", str(pid)], check=True)
    return program


@pytest.fixture(scope="session")
def sweep_postgres(run_dir: RunDir) -> Iterator[Postgres]:
    """PostgreSQL with the users and the table of the workloads; it logs every statement."""
    options = {"log_statement": "all", "settings": SETTINGS}
    with Postgres(run_dir, name="postgres-sweep", **options) as server:
        prepare(server)
        yield server


@pytest.fixture
def watcher(sweep_postgres: Postgres) -> Iterator[Connection]:
    """A session straight to the server, as another user than the workloads'."""
    with contextlib.closing(sweep_postgres.connect()) as connection:
        yield connection


@pytest.fixture
def keeper_factory(
    run_dir: RunDir, sweep_postgres: Postgres, patched_binary: Path
) -> Iterator[KeeperFactory]:
    """Hangers for workloads."""
    with KeeperFactory(run_dir, sweep_postgres, patched_binary) as factory:
        yield factory
