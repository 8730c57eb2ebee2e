"""Patches apply exactly or not at all, and a failure names the place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer.base import BaseFileError
from pgkeeper.bouncer.patching import Patch, PatchError, apply, read_series

if TYPE_CHECKING:
    from pathlib import Path

LINES = [f"line {number}\n" for number in range(1, 21)]
CHANGE = """\
Description: DEP-3 header
--- a/src/x.c
+++ b/src/x.c
@@ -2,3 +2,3 @@
 line 2
-line 3
+LINE 3
 line 4
@@ -12,3 +12,3 @@
 line 12
-line 13
+LINE 13
 line 14
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/x.c").write_text("".join(LINES))
    return tmp_path


def patch(text: str) -> Patch:
    return Patch("hooks/one.patch", text.encode())


def test_a_patch_applies_even_if_lines_moved(tree: Path) -> None:
    (tree / "src/x.c").write_text("new first line\n" + "".join(LINES))
    apply(patch(CHANGE), tree)
    text = (tree / "src/x.c").read_text()
    assert "LINE 3\n" in text
    assert "LINE 13\n" in text
    assert [path.name for path in (tree / "src").iterdir()] == ["x.c"]


def test_changed_context_is_a_failing_hunk(tree: Path) -> None:
    text = "".join(LINES).replace("line 14\n", "line fourteen\n")
    (tree / "src/x.c").write_text(text)
    with pytest.raises(PatchError) as caught:
        apply(patch(CHANGE), tree)
    assert (caught.value.file, caught.value.hunk) == ("src/x.c", 2)
    assert str(caught.value) == (
        "patches/hooks/one.patch does not apply: hunk 2 fails in src/x.c at line 12"
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("src/x.c", "src/y.c", "a file it changes is not there"),
        ("@@ -12,3 +12,3 @@", "@@ -12,9 +12,9 @@", "unexpected end of file in patch"),
    ],
)
def test_other_failures_are_one_line(tree: Path, old: str, new: str, reason: str) -> None:
    with pytest.raises(PatchError) as caught:
        apply(patch(CHANGE.replace(old, new)), tree)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_patch(tree: Path) -> None:
    with pytest.raises(PatchError, match="Only garbage was found in the patch input"):
        apply(patch("not a patch\n"), tree)


def test_a_patch_applied_already(tree: Path) -> None:
    apply(patch(CHANGE), tree)
    with pytest.raises(PatchError, match=r"src/x\.c already has the change"):
        apply(patch(CHANGE), tree)


def test_a_series_is_read_like_quilt_does(tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    for name in ("one", "two"):
        (tmp_path / "hooks" / name).write_text(name)
    series = tmp_path / "series"
    series.write_text("# ours\n\nhooks/two -p1 # why\nhooks/one\n")
    assert read_series(series, tmp_path) == (Patch("hooks/two", b"two"), Patch("hooks/one", b"one"))


@pytest.mark.parametrize(
    ("line", "reason"), [("hooks/gone", "No such file"), ("a -p0", "only -p1")]
)
def test_a_bad_series_names_the_file(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "series").write_text(line)
    with pytest.raises(BaseFileError, match=reason):
        read_series(tmp_path / "series", tmp_path)
