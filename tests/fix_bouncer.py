"""Fixtures with an unpatched PgBouncer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

import pytest

from testbed import binaries
from testbed.bouncer import Bouncer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from testbed.postgres import Postgres
    from testbed.rundir import RunDir

_numbers = itertools.count(1)


class MakeBouncer(Protocol):
    """Starts an unpatched PgBouncer that lives until the end of the test."""

    def __call__(
        self,
        *,
        settings: Mapping[str, str | int | None] | None = None,
        databases: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        user_settings: Mapping[str, str] | None = None,
    ) -> Bouncer: ...


@pytest.fixture(scope="session")
def vanilla_binary() -> Path:
    """PgBouncer without our hooks."""
    return binaries.vanilla()


@pytest.fixture
def make_vanilla_bouncer(
    run_dir: RunDir, postgres: Postgres, vanilla_binary: Path
) -> Iterator[MakeBouncer]:
    """A factory, for tests with settings of their own. See `testbed.pooler.Pooler`."""
    made: list[Bouncer] = []

    def make(
        *,
        settings: Mapping[str, str | int | None] | None = None,
        databases: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        user_settings: Mapping[str, str] | None = None,
    ) -> Bouncer:
        bouncer = Bouncer(
            run_dir,
            postgres,
            vanilla_binary,
            name=f"vanilla-{next(_numbers)}",
            settings=settings,
            databases=databases,
            users=users,
            user_settings=user_settings,
        )
        made.append(bouncer)
        bouncer.start()
        return bouncer

    yield make
    close_all(made)


@pytest.fixture
def vanilla_bouncer(make_vanilla_bouncer: MakeBouncer) -> Bouncer:
    """An unpatched PgBouncer with a database for each pool mode."""
    return make_vanilla_bouncer()


def close_all(made: list[Bouncer]) -> None:
    """Print the logs and close, last first; raises what is wrong with any, after all are closed."""
    errors: list[Exception] = []
    for one in reversed(made):
        one.print_logs()
        try:
            one.close()
        except Exception as error:
            errors.append(error)
    if errors:
        raise ExceptionGroup("teardown", errors)
