"""The table, compared with a file letter by letter; see test_golden.py of the commands."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pgkeeper.trial.figures import Books, Report
from pgkeeper.trial.table import amount, report_text, result_line
from tests.unit.trial.results import HELD, LOST, REPORT

GOLDEN = Path(__file__).parent / "golden"
BAD = replace(HELD, survived=1, different=1, differences=("byte 3 of 9: b'a' became b'b'",))
CUT = replace(HELD, mode="bulk", kills=HELD.kills[:1], books=None, cut_short=True)


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("held", REPORT),
        ("not-held", Report((replace(BAD, books=Books(told=9, missing=2, duplicates=1)), LOST))),
        ("interrupted", Report((HELD, LOST, CUT), interrupted=True)),
        ("nothing", Report((), interrupted=True)),
    ],
)
def test_the_table(name: str, report: Report) -> None:
    path = GOLDEN / f"{name}.txt"
    text = report_text(report) + "\n"
    if os.environ.get("PGKEEPER_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (2_500_000_000, "2.5 GB"),
    ],
)
def test_amounts(count: int, text: str) -> None:
    assert amount(count) == text


def test_a_line_while_it_runs() -> None:
    assert result_line(HELD) == "busy, patched: 2 of 2 sessions survived 2 kills"
    assert result_line(BAD).endswith("1 of 2 sessions survived 2 kills, 1 answers differ")
