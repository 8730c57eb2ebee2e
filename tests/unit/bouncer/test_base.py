"""patches/BASE: what it pins, and how it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgkeeper.bouncer.base import (
    BaseFileError,
    ChecksumError,
    Pinned,
    parse_base,
    patches_dir,
    sha256,
    verify,
)
from pgkeeper.bouncer.patching import read_series

BASE = patches_dir() / "BASE"


def test_the_repository_pins_its_release_and_every_distribution_patch() -> None:
    base = parse_base(BASE, BASE.read_bytes())
    debian = BASE.parent / "debian"
    listed = read_series(debian / "series", BASE.parent)
    assert base.version == "1.24.1"
    assert base.version in base.release
    assert {path.name: sha256(path.read_bytes()) for path in debian.iterdir()} == base.patches
    assert [Path(patch.name).name for patch in listed] == list(base.patches)[1:]


def test_every_hook_of_the_repository_is_in_the_series() -> None:
    patches = BASE.parent
    listed = {patch.name for patch in read_series(patches / "series", patches)}
    assert listed == {f"hooks/{path.name}" for path in (patches / "hooks").glob("*.patch")}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('version = "1.24.1"', "", "the key version is missing"),
        ("[tarball]", "[ball]", "the key tarball is missing"),
        ('"https://', '"http://', "release must be an https address"),
        ('sha256 = "d', 'sha256 = "X', "is not a SHA-256"),
        ('name = "pgbouncer_', 'name = "../pgbouncer_', "is not a plain file name"),
        ("version =", "version", "cannot be read"),
        ("[tarball]", "[tarball]\nname = 1", "cannot be read"),
    ],
)
def test_a_damaged_file_is_one_line_with_its_path(old: str, new: str, reason: str) -> None:
    content = BASE.read_text().replace(old, new, 1)
    with pytest.raises(BaseFileError) as caught:
        parse_base(Path("patches/BASE"), content.encode())
    assert str(caught.value).startswith("patches/BASE: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_patches_the_error_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGKEEPER_PATCHES", str(tmp_path))
    with pytest.raises(BaseFileError, match="PGKEEPER_PATCHES"):
        patches_dir()


def test_a_changed_file_is_refused_with_both_checksums(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    verify(file, Pinned("file", sha256(b"content")), "here")
    file.write_bytes(b"Content")
    with pytest.raises(ChecksumError) as caught:
        verify(file, Pinned("file", sha256(b"content")), "here")
    assert caught.value.expected == sha256(b"content")
    assert caught.value.actual == sha256(b"Content")
    assert str(caught.value).startswith("file from here: sha256 is ")
