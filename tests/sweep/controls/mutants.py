"""Builds of pgbouncer in which one rule of the ledger is broken on purpose."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Change:
    """In `file` of the source tree the text `found`, which stands there once, gives way.

    `found` is as short as it can be without being ambiguous, so that it outlives what changes
    around it.
    """

    file: str
    found: str
    instead: str = ""


class StaleChangeError(Exception):
    """The source has changed, so that a rule is no longer broken by what broke it."""

    def __init__(self, change: Change, count: int) -> None:
        self.change = change
        super().__init__(f"{change.file} has {change.found!r} {count} times instead of once")


class MutantBuildError(Exception):
    """A changed source does not compile; `output` is what make printed."""

    def __init__(self, output: str) -> None:
        self.output = output
        super().__init__(f"make failed:\n{output}")


class Mutants:
    """Compiles changed pgbouncers, each into a folder of its own, and keeps them.

    `source` is the tree of a finished build (`pgkeeper.bouncer.build.source_dir`): only what a
    change touches is compiled again. `folder` must be one that the servers' account can enter.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._made: dict[tuple[Change, ...], Path] = {}

    def binary(self, changes: Iterable[Change]) -> Path:
        """The executable with these changes. Raises `StaleChangeError`, `MutantBuildError`."""
        key = tuple(changes)
        if key not in self._made:
            self._made[key] = self._build(key, self._folder / f"mutant-{len(self._made) + 1}")
        return self._made[key]

    def _build(self, changes: tuple[Change, ...], place: Path) -> Path:
        tree = place / "source"
        # Times are kept: what is older than its object file is not compiled.
        shutil.copytree(self._source, tree, symlinks=True)
        executable = tree / "pgbouncer"
        # A finished build has put it beside its tree.
        executable.unlink()
        for name, text in changed(tree, changes).items():
            (tree / name).write_text(text)
        # The tree was configured elsewhere, and says so.
        where = (f"abs_top_srcdir={tree}", f"abs_top_builddir={tree}")
        done = subprocess.run(
            ["make", *where, "pgbouncer"],
            cwd=tree,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise MutantBuildError(done.stdout)
        binary = executable.rename(place / "pgbouncer")
        shutil.rmtree(tree)
        place.chmod(0o755)
        return binary


def changed(tree: Path, changes: Iterable[Change]) -> dict[str, str]:
    """The new text of each file that the changes touch. Raises `StaleChangeError`."""
    texts: dict[str, str] = {}
    for change in changes:
        text = texts.get(change.file) or (tree / change.file).read_text()
        if (count := text.count(change.found)) != 1:
            raise StaleChangeError(change, count)
        texts[change.file] = text.replace(change.found, change.instead)
    return texts
