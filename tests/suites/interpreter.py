"""A Python for PgBouncer's own suite: packages and an interpreter that its account can use."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.account import reachable
from testbed.errors import NotFoundError

if TYPE_CHECKING:
    from testbed.rundir import RunDir

# `./dev setup` fills it from tests/suites/requirements.txt. Not in our own environment: the suite
# needs other versions, and pytest would load its plugins into our tests.
PACKAGES = Path(sys.prefix) / "pgbouncer-suite"

_HANGER = ("pgkeeper", "protocol", "click", "construct", "structlog")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter, the folder of the packages, and the folders of its shared libraries."""

    executable: Path
    packages: Path
    libraries: tuple[Path, ...]


def usable_interpreter(run_dir: RunDir) -> Interpreter:
    """This interpreter and `PACKAGES`, each copied where the account cannot reach it.

    Root's own interpreter often lies in its home, which nobody else may enter. A copy takes about
    a second. Raises `NotFoundError` if the packages are missing.
    """
    if not (PACKAGES / "pytest").is_dir():
        raise NotFoundError("the packages of PgBouncer's own suite", "run ./dev setup")
    packages = PACKAGES
    if not reachable(packages / "pytest" / "__init__.py", run_dir.account):
        packages = run_dir.path / "suite-packages"
        if not packages.exists():
            _copy(PACKAGES, packages, ())
    executable = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_path("stdlib"))
    if all(reachable(path, run_dir.account) for path in (executable, standard / "os.py")):
        return Interpreter(executable, packages, ())
    root = run_dir.path / "python"
    if not root.exists():
        _copy_interpreter(executable, standard, root)
    return Interpreter(root / "bin" / executable.name, packages, (root / "lib",))


def hanger_packages(run_dir: RunDir) -> Path:
    """A folder with pgkeeper and what it needs, beside which the suite's own packages must not be.

    A copy: in our own environment much else lies beside them.
    """
    folder = run_dir.path / "hanger-packages"
    if not folder.exists():
        folder.mkdir(mode=0o755)
        for name in _HANGER:
            file = importlib.import_module(name).__file__
            assert file is not None
            _copy(Path(file).parent, folder / name, ("__pycache__",))
    return folder


def _copy_interpreter(executable: Path, standard: Path, root: Path) -> None:
    """The usual layout: an interpreter finds its library by its own path (getpath.py)."""
    _copy(
        standard,
        root / "lib" / standard.name,
        ("__pycache__", "config-*", "dist-packages", "idlelib", "site-packages", "test", "tkinter"),
    )
    (root / "bin").mkdir(mode=0o755)
    _copy_file(executable, root / "bin" / executable.name)
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        library = sysconfig.get_config_var("INSTSONAME")
        _copy_file(Path(sysconfig.get_config_var("LIBDIR")) / library, root / "lib" / library)


def _copy(source: Path, target: Path, unwanted: tuple[str, ...]) -> None:
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns(*unwanted), copy_function=_copy_file
    )
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def _copy_file(source: str | Path, target: str | Path) -> None:
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if os.access(source, os.X_OK) else 0o644)
