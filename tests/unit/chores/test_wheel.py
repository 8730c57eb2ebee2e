"""What is installed without the repository is whole: sdist, wheel, and the command in a venv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from pgkeeper.bouncer.build import PATCHED, binary

ROOT = Path(__file__).parents[3]

_SDIST = "import sys, setuptools.build_meta as m; print(m.build_sdist(sys.argv[1]))"
_NOT_SOURCE = (".git", ".venv", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")


def run(*words: str | Path, cwd: Path, path: str | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PGKEEPER_"))}
    if cache := os.environ.get("PGKEEPER_CACHE"):
        environment["PGKEEPER_CACHE"] = cache
    if path is not None:
        environment["PATH"] = path
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=cwd,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source archive."""
    folder = tmp_path_factory.mktemp("sdist")
    # Building writes beside the sources.
    tree = folder / "tree"
    ignore = shutil.ignore_patterns(*_NOT_SOURCE)
    shutil.copytree(ROOT, tree, symlinks=True, ignore=ignore)
    name = run(sys.executable, "-c", _SDIST, folder, cwd=tree).splitlines()[-1]
    with tarfile.open(folder / name) as archive:
        archive.extractall(folder, filter="data")
    return folder / name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    folder = sdist.parent
    words = ("-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-index")
    run(sys.executable, *words, "--no-build-isolation", "--wheel-dir", folder, sdist, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A fresh virtual environment with the wheel, and nothing of the checkout in its way."""
    folder = wheel.parent / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    words = ("-m", "pip", "--disable-pip-version-check", "--python", python, "install")
    run(sys.executable, *words, "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    # What it depends on is taken from here; a line in a .pth does not make that a site folder.
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import pgkeeper; print(pgkeeper.__file__)", cwd=folder)
    assert Path(where).is_relative_to(folder)
    return folder


def test_the_sdist_is_the_whole_tree(sdist: Path) -> None:
    for name in ("dev", "README.md", "requirements.txt", "docker", "docs", "patches", "tests"):
        assert (sdist / name).exists(), name
    ours = {path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")}
    assert ours == {path.relative_to(sdist) for path in (sdist / "tests").rglob("*.py")}
    assert os.access(sdist / "dev", os.X_OK)


def test_the_wheel_has_all_that_a_build_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        prefix = "pgkeeper/patches/"
        found = {
            name.removeprefix(prefix): archive.read(name)
            for name in names
            if name.startswith(prefix)
        }
    source = ROOT / "patches"
    wanted = {
        str(path.relative_to(source)): path.read_bytes()
        for path in source.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert found == wanted
    for wanted_name in ("pgkeeper/py.typed", "protocol/py.typed"):
        assert wanted_name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/patches/COPYRIGHT") for name in names)
    assert not [name for name in names if name.startswith(("tests", "testbed", "demo"))]


def test_the_command_works_without_the_repository(installed: Path) -> None:
    command = installed / "bin" / "pgkeeper"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(command, "--version", cwd=installed) == f"pgkeeper {version}"
    assert "patches/BASE" in run(command, "build", "--help", cwd=installed)
    assert run(command, "completion", "zsh", cwd=installed).startswith("#compdef pgkeeper")


def test_it_builds_the_same_pgbouncer(installed: Path) -> None:
    """Builds are named after all that goes into them, so that the cache has it already."""
    wanted = str(binary(PATCHED))
    assert run(installed / "bin" / "pgkeeper", "build", cwd=installed) == wanted


def test_a_patch_that_is_missing_is_noticed(installed: Path) -> None:
    """The control for the test above."""
    (patch,) = installed.rglob("keeper/acts.c")
    hidden = patch.rename(patch.with_suffix(".hidden"))
    try:
        check = "from pgkeeper.bouncer.build import cached_binary; print(cached_binary())"
        assert run(installed / "bin" / "python", "-c", check, cwd=installed) == "None"
    finally:
        hidden.rename(patch)


def test_the_manual_is_installed(installed: Path) -> None:
    folder = installed / "share" / "man" / "man1"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        path.name: path.read_text() for path in (ROOT / "docs" / "man").iterdir()
    }
