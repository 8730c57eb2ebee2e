"""The picture is a PNG of some size, drawn of whatever a trial has found."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pgkeeper.trial.figures import Report
from pgkeeper.trial.picture import DrawingError, check_drawing, draw
from tests.unit.trial.results import HELD, LOST, REPORT

if TYPE_CHECKING:
    from pathlib import Path

QUICK = Report((replace(HELD, kills=()), replace(LOST, kills=())), {}, interrupted=True)


@pytest.mark.parametrize(
    "report", [REPORT, Report((HELD,)), Report((LOST,)), QUICK], ids=["both", "one", "lost", "none"]
)
def test_a_picture(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "trial.png"
    draw(report, path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1320, 792)


def test_without_matplotlib_the_trial_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_drawing(tmp_path / "trial.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DrawingError, match=r"pgkeeper\[trial\]"):
        check_drawing(tmp_path / "trial.png")


def test_a_folder_that_is_not_there_is_told_of_before_the_trial(tmp_path: Path) -> None:
    with pytest.raises(DrawingError, match="cannot be written to"):
        check_drawing(tmp_path / "no" / "trial.png")


def test_a_disk_that_does_not_take_it(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(DrawingError, match="directory"):
        draw(REPORT, path)
