"""Fixtures with a pgbouncer and a pgkeeper of the next ledger format."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer.build import binary, source_dir
from tests.sweep.controls.mutants import Mutants
from tests.system.conversions import NEWER, newer

if TYPE_CHECKING:
    from pathlib import Path

    from testbed import RunDir
    from tests.fix_keeper import MakeKeeper


@pytest.fixture(scope="session")
def format_mutants(run_dir: RunDir) -> Mutants:
    binary()
    return Mutants(source_dir(), run_dir.folder("formats"))


@pytest.fixture(scope="session")
def newer_binary(format_mutants: Mutants) -> Path:
    return format_mutants.binary(newer())


@pytest.fixture
def make_newer_keeper(
    make_keeper: MakeKeeper, monkeypatch: pytest.MonkeyPatch, run_dir: RunDir, request: object
) -> MakeKeeper:
    """Hangers of a pgkeeper that knows the next format as well."""
    folder = run_dir.folder(f"newer-{id(request)}")
    (folder / "sitecustomize.py").write_text(
        f"import protocol.ledger_layouts\nprotocol.ledger_layouts.FORMAT_VERSION = {NEWER}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return make_keeper
