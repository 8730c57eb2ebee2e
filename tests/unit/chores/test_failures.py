"""docs/failures.md names tests that exist, and shows one for each failure."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_SWEEPS = {
    name: _ROOT / f"tests/sweep/syscall/test_{file}.py"
    for name, file in (("sweep", "sweep"), ("sweep/hanger", "hanger"))
}


def rows() -> list[tuple[str, str]]:
    """The first and the last cell of each row of the tables of failures alone and in pairs."""
    _, _, section = (_ROOT / "docs/failures.md").read_text().partition("## Alone and in pairs\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(row[0], row[-1]) for row in cells if row[-1] not in ("---", "FILE: test")]


def named(cell: str) -> tuple[Path, list[str]]:
    """The file and the functions that a last cell means."""
    file, _, tests = re.sub(r" \(.*?\)", "", cell).partition(": ")
    path = _SWEEPS.get(file, _ROOT / f"tests/system/test_{file}.py")
    return path, [f"test_{name}" for name in tests.split(", ")]


def test_there_are_alone_and_in_pairs() -> None:
    assert len(rows()) > 30


def test_what_is_named_exists() -> None:
    missing = []
    for failure, cell in rows():
        path, tests = named(cell)
        text = path.read_text() if path.exists() else ""
        missing += [(failure, name) for name in tests if f"def {name}(" not in text]
    assert missing == []


def test_every_test_of_pairs_is_named() -> None:
    file = _ROOT / "tests/system/test_deaths_in_pairs.py"
    told = {
        name
        for _, cell in rows()
        for path, tests in [named(cell)]
        if path == file
        for name in tests
    }
    assert set(re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)) == told
