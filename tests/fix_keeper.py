"""Fixtures with the hanger and a patched PgBouncer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

import pytest

from testbed import binaries
from testbed.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from testbed.postgres import Postgres
    from testbed.rundir import RunDir

_numbers = itertools.count(1)


class MakeKeeper(Protocol):
    """Starts a hanger with a PgBouncer that live until the end of the test.

    `binary`: another PgBouncer than the patched one.
    """

    def __call__(
        self,
        *,
        binary: Path | None = None,
        standby: bool = False,
        options: Sequence[str] = (),
        settings: Mapping[str, str | int | None] | None = None,
        databases: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        user_settings: Mapping[str, str] | None = None,
    ) -> Keeper: ...


@pytest.fixture(scope="session")
def patched_binary() -> Path:
    """PgBouncer with our hooks."""
    return binaries.patched()


@pytest.fixture
def make_keeper(run_dir: RunDir, postgres: Postgres, patched_binary: Path) -> Iterator[MakeKeeper]:
    """A factory, for tests with settings of their own. See `testbed.keeper.Keeper`."""
    made: list[Keeper] = []

    def make(
        *,
        binary: Path | None = None,
        standby: bool = False,
        options: Sequence[str] = (),
        settings: Mapping[str, str | int | None] | None = None,
        databases: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        user_settings: Mapping[str, str] | None = None,
    ) -> Keeper:
        keeper = Keeper(
            run_dir,
            postgres,
            binary or patched_binary,
            name=f"keeper-{next(_numbers)}",
            standby=standby,
            options=options,
            settings=settings,
            databases=databases,
            users=users,
            user_settings=user_settings,
        )
        made.append(keeper)
        keeper.start()
        return keeper

    yield make
    errors: list[Exception] = []
    for one in reversed(made):
        one.print_logs()
        try:
            one.close()
        except Exception as error:
            errors.append(error)
    if errors:
        raise ExceptionGroup("teardown", errors)


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    """A hanger with a PgBouncer with a database for each pool mode."""
    return make_keeper()
