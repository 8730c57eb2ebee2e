"""Fixtures of the controls: a hunt, and what a sound pgbouncer does in the same workload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from testbed.errors import BedError
from tests.sweep.controls.hunt import first_difference
from tests.sweep.syscall.bed import KeeperFactory
from tests.sweep.syscall.sweep import Sweep

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.postgres import Connection, Postgres
    from testbed.rundir import RunDir
    from tests.sweep.controls.rule import Hunt
    from tests.sweep.syscall.outcome import Outcome

    class RunHunt(Protocol):
        """Hunts with a pgbouncer; the first difference, if any."""

        def __call__(self, hunt: Hunt, binary: Path) -> str | None: ...


@pytest.fixture(scope="session")
def references() -> dict[str, Outcome]:
    """What is known of workloads, by name and settings: each is rehearsed once."""
    return {}


@pytest.fixture
def run_hunt(
    run_dir: RunDir,
    sweep_postgres: Postgres,
    watcher: Connection,
    tracer_program: Path,
    patched_binary: Path,
    references: dict[str, Outcome],
) -> RunHunt:
    """See `RunHunt`."""

    def sweep(factory: KeeperFactory, hunt: Hunt) -> Sweep:
        make = factory.maker(hunt.workload, more=hunt.settings)
        return Sweep(hunt.workload, make, sweep_postgres, watcher, tracer_program)

    def run(hunt: Hunt, binary: Path) -> str | None:
        key = f"{hunt.workload.name} {sorted(hunt.settings.items())}"
        if key not in references:
            with KeeperFactory(run_dir, sweep_postgres, patched_binary) as factory:
                references[key] = sweep(factory, hunt).rehearse()
        found: str | None = None
        try:
            with KeeperFactory(run_dir, sweep_postgres, binary) as factory:
                found = first_difference(sweep(factory, hunt), references[key], hunt.plan())
        except BedError:
            # What is left behind at the end is no news after a difference, and no proof of one.
            if found is None:
                raise
        print(found)
        return found

    return run
