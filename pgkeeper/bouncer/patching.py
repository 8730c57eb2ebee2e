"""Patches as quilt keeps them, applied with zero fuzz."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer.base import BaseFileError, BuildError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Patch", "PatchError", "apply", "read_series"]

_FILE: Final = re.compile(r"(?:patching|checking) file '?(.+?)'?$")
_HUNK: Final = re.compile(r"Hunk #(\d+) (?:FAILED|ignored) at (\d+)")
_REVERSED: Final = re.compile(r"Reversed \(or previously applied\) patch detected")
_NO_FILE: Final = re.compile(r"can't find file to patch|No file to patch")
_FATAL: Final = re.compile(r"patch: \*{4} (.+)")


class PatchError(BuildError):
    """A patch does not apply. `file` is the file it failed in and `hunk` the first failing hunk's
    number in it, from 1; both are None where patch(1) does not say."""

    def __init__(self, patch: str, reason: str, file: str | None, hunk: int | None) -> None:
        self.patch = patch
        self.file = file
        self.hunk = hunk
        super().__init__(f"patches/{patch} does not apply: {reason}")


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch at level -p1; `name` is its path relative to the patches folder."""

    name: str
    content: bytes


def read_series(series: Path, patches: Path) -> tuple[Patch, ...]:
    """The patches that the quilt file `series` lists, in order; `patches` is the patches folder.

    Names are relative to the folder of `series`; blank lines and `#` comments are skipped.
    Raises BaseFileError when a file is missing or a patch level other than -p1 is asked for.
    """
    listed = []
    for line in _bytes(series).decode().splitlines():
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[1:] not in ([], ["-p1"]):
            raise BaseFileError(series, f"{words[0]}: only -p1 patches are known")
        path = series.parent / words[0]
        listed.append(Patch(path.relative_to(patches).as_posix(), _bytes(path)))
    return tuple(listed)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BaseFileError(path, error.strerror or str(error)) from error


def apply(patch: Patch, tree: Path) -> None:
    """Apply `patch` to the source `tree`; raises PatchError at the first hunk that fails.

    Lines may have moved, their context may not have changed. After an error the tree is of no use.
    """
    done = subprocess.run(
        ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch", "--batch", "--forward", "-r", "-"],
        cwd=tree,
        input=patch.content,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode == 0:
        return
    raise _explain(patch.name, done.stdout.decode(errors="replace"))


def _explain(name: str, output: str) -> PatchError:
    """What patch(1) printed, as an error that names the place."""
    file: str | None = None
    for line in output.splitlines():
        if match := _FILE.match(line):
            file = match[1]
        elif match := _HUNK.match(line):
            return PatchError(
                name, f"hunk {match[1]} fails in {file} at line {match[2]}", file, int(match[1])
            )
        elif _REVERSED.match(line):
            return PatchError(name, f"{file} already has the change", file, None)
        elif _NO_FILE.match(line):
            return PatchError(name, "a file it changes is not there", None, None)
        elif match := _FATAL.match(line):
            return PatchError(name, match[1], file, None)
    return PatchError(name, " ".join(output.split()) or "patch failed", file, None)
