"""Fixtures with patched pgbouncers that are broken on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer.build import binary, source_dir
from tests.sweep.controls.mutants import Mutants

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.rundir import RunDir


@pytest.fixture(scope="session")
def sources() -> Path:
    """The source tree of the patched pgbouncer, built."""
    binary()
    return source_dir()


@pytest.fixture(scope="session")
def mutants(sources: Path, run_dir: RunDir) -> Mutants:
    """The builder of broken pgbouncers."""
    return Mutants(sources, run_dir.folder("mutants"))
