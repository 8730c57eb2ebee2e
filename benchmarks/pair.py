"""An unpatched and a kept pgbouncer side by side, which benchmarks load in turns."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.instructions import SETTINGS
from testbed import binaries
from testbed.bouncer import Bouncer
from testbed.keeper import Keeper
from testbed.postgres import Postgres
from testbed.process import Process
from testbed.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pair:
    """Both of them, with the PostgreSQL that they share."""

    run_dir: RunDir
    unpatched: Bouncer
    kept: Keeper


@contextlib.contextmanager
def pair(patched: Path | None) -> Iterator[Pair]:
    """Start both the same way. `patched` is another patched binary than the built one."""
    with (
        RunDir() as run_dir,
        Postgres(run_dir) as postgres,
        Bouncer(
            run_dir, postgres, binaries.vanilla(), name="unpatched", settings=SETTINGS
        ) as bouncer,
        _kept(run_dir, postgres, patched or binaries.patched()) as keeper,
    ):
        yield Pair(run_dir, bouncer, keeper)


@contextlib.contextmanager
def _kept(run_dir: RunDir, postgres: Postgres, binary: Path) -> Iterator[Keeper]:
    """A kept pgbouncer that is started as the unpatched one is, not by the hanger."""
    keeper = Keeper(
        run_dir, postgres, binary, name="kept", settings=SETTINGS, options=["--no-supervise"]
    )
    command = [run_dir.usable(binary), keeper.ini_path]
    process = Process(run_dir, "kept-pgbouncer", command, output=keeper.output.path)
    try:
        keeper.start()
        yield keeper
        process.stop(signal.SIGKILL)
    finally:
        keeper.close(check_descriptors=False)
