"""The hanger with a pgbouncer of a few lines."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system.scripted import ScriptedHanger

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def hanger() -> Iterator[ScriptedHanger]:
    # Not tmp_path: socket names are short, and other users must get there.
    with tempfile.TemporaryDirectory(prefix="hanger-") as directory:
        made = ScriptedHanger(Path(directory))
        try:
            yield made
        finally:
            print(made.logged())
            made.close()
