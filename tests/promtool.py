"""promtool, which checks metrics and alert rules: the machine's own, or Debian's in our cache.

`python -m tests.promtool`, run by `./dev setup`, takes it out of Debian's package prometheus, which
is not installed: that would start a server. Where it cannot be had it says so, and the checks are
skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pgkeeper.bouncer.build import cache_dir

_PACKAGE = "prometheus"
_PLACE = "usr/bin/promtool"
_TIMEOUT_S = 300


class NoPromtoolError(Exception):
    """It cannot be had here; the text says why."""


def found() -> Path | None:
    """The program, if there is one."""
    for path in (shutil.which("promtool"), _kept()):
        if path is not None and os.access(path, os.X_OK):
            return Path(path)
    return None


def promtool(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run it, with `given` as its input; skips the test where there is none."""
    program = found()
    if program is None:
        pytest.skip("NOT CHECKED by promtool: there is none (./dev setup says why)")
    return subprocess.run(
        [program, *words], input=given, capture_output=True, check=False, timeout=60
    )


def fetch() -> None:
    """Put it into the cache. Raises `NoPromtoolError`."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise NoPromtoolError(f"there is no {tool}")
    kept = _kept()
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it is there whole or not at all.
    with tempfile.TemporaryDirectory(dir=kept.parent) as name:
        folder = Path(name)
        _run(folder, "dpkg-deb", "--extract", str(_download(folder)), ".")
        program = folder / _PLACE
        if not program.is_file():
            raise NoPromtoolError(f"the package {_PACKAGE} has no {_PLACE}")
        program.rename(kept)


def main() -> None:
    """See the module."""
    if found() is not None:
        return
    try:
        fetch()
    except (NoPromtoolError, OSError) as error:
        print(f"promtool: left out, metrics and alerts are not checked: {error}", file=sys.stderr)


def _kept() -> Path:
    return cache_dir() / "tools" / "promtool"


def _download(folder: Path) -> Path:
    """The package, whose checksum apt sees to. Only root can renew the lists of packages."""
    try:
        _apt(folder, "download", _PACKAGE)
    except NoPromtoolError:
        _apt(folder, "update")
        _apt(folder, "download", _PACKAGE)
    packages = list(folder.glob(f"{_PACKAGE}_*.deb"))
    if len(packages) != 1:
        raise NoPromtoolError(f"apt-get has brought {len(packages)} packages")
    return packages[0]


def _apt(folder: Path, *words: str) -> None:
    # Nobody but us may enter the folder, so it is no place for apt's own user.
    options = ("APT::Sandbox::User=root", "DPkg::Lock::Timeout=300", "Acquire::http::Timeout=30")
    _run(folder, "apt-get", "-q", *(f"-o{option}" for option in options), *words)


def _run(folder: Path, *command: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoPromtoolError(str(error)) from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise NoPromtoolError(" ".join([f"{command[0]}: exit status {done.returncode}", *last]))


if __name__ == "__main__":
    main()
