"""docs/kinds.md names tests that exist, and every workload of the sweep."""

from __future__ import annotations

import re
from pathlib import Path

from tests.sweep.syscall.workloads import WORKLOADS

_ROOT = Path(__file__).parents[3]
# Workloads that test_cancel.py makes for itself.
_OWN = {"cancels", "cancels-of-peers"}


def cells() -> list[str]:
    """The last cell of each row, without what stands in parentheses."""
    rows = [line for line in (_ROOT / "docs/kinds.md").read_text().splitlines() if line[:1] == "|"]
    last = [row.strip("| ").rpartition("|")[2] for row in rows]
    return [re.sub(r"\(.*?\)", "", cell).strip() for cell in last]


def named() -> tuple[set[str], set[str]]:
    """Workloads, `*` standing for any part of a name, and files."""
    workloads, files = set(), set()
    for part in (part.strip() for cell in cells() for part in cell.split(";")):
        words = {word for word in re.split(r",? ", part.removeprefix("sweep ")) if word}
        if part.startswith("sweep "):
            workloads |= words
        else:
            files |= words
    return workloads, files - {"shown", "by", "---", "-"}


def test_what_is_named_exists() -> None:
    workloads, files = named()
    assert len(workloads) > 40
    existing = {workload.name for workload in WORKLOADS} | _OWN
    patterns = {name.replace("*", ".*") for name in workloads}
    assert [p for p in patterns if not any(re.fullmatch(p, name) for name in existing)] == []
    assert [name for name in files if not (_ROOT / f"tests/system/test_{name}.py").exists()] == []


def test_every_workload_is_named() -> None:
    patterns = [name.replace("*", ".*") for name in named()[0] if name != "*"]
    names = [workload.name for workload in WORKLOADS]
    assert [n for n in names if not any(re.fullmatch(p, n) for p in patterns)] == []
