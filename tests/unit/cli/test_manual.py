"""docs/man is what the commands' help says, and sets without complaints.

PGKEEPER_UPDATE_GOLDEN=1 writes the pages anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pgkeeper.cli import COMMANDS
from pgkeeper.cli.manual import pages

FOLDER = Path(__file__).parents[3] / "docs" / "man"


def test_every_page_is_up_to_date() -> None:
    made = pages()
    if os.environ.get("PGKEEPER_UPDATE_GOLDEN"):
        for name, text in made.items():
            (FOLDER / name).write_text(text)
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == made
    assert set(made) == {"pgkeeper.1", *(f"pgkeeper-{name}.1" for name in COMMANDS)}


@pytest.mark.skipif(shutil.which("groff") is None, reason="NOT TESTED: there is no groff")
@pytest.mark.parametrize("name", sorted(pages()))
def test_it_sets_without_a_warning(name: str) -> None:
    done = subprocess.run(
        # -c -b -u: no escape sequences and no overstriking in their place
        ["groff", "-man", "-Tutf8", "-ww", "-Wfont", "-P-c", "-P-b", "-P-u", FOLDER / name],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert "Example" in done.stdout
    assert "OPTIONS" in done.stdout
