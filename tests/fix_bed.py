"""Fixtures of the whole run: its directory and its PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.postgres import Postgres
from testbed.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def run_dir() -> Iterator[RunDir]:
    """The run's directory; at the end nothing that was started in it may still run."""
    with RunDir() as directory:
        yield directory


@pytest.fixture(scope="session")
def _postgres_server(run_dir: RunDir) -> Iterator[Postgres]:
    with Postgres(run_dir) as server:
        yield server


@pytest.fixture
def postgres(_postgres_server: Postgres) -> Iterator[Postgres]:
    """The run's PostgreSQL, shared by all tests; its log of this test is printed."""
    start = _postgres_server.log.size()
    yield _postgres_server
    print(f"--- {_postgres_server.name}\n{_postgres_server.log.read(start)}")
