"""PostgreSQL's own regression tests: its source archive, verified, and of it what the tests need.

`python -m tests.suites.regress_source`, run by `./dev setup`, puts them into the environment. On a
machine that cannot get the archive it says so and leaves them out: that is no reason to do without
all other tests.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from pgkeeper.bouncer.base import Archive, BuildError, Pinned
from pgkeeper.bouncer.build import cache_dir
from pgkeeper.bouncer.source import SourceUnavailableError, obtain_pinned

_PART = "src/test/regress"


def read_pin(path: Path) -> Archive:
    """The archive that regress.toml names. Raises KeyError."""
    table = tomllib.loads(path.read_text())["source"]
    keys = ("version", "release", "package", "revision", "suite")
    return Archive(*(table[key] for key in keys), Pinned(table["name"], table["sha256"]))


PIN = read_pin(Path(__file__).with_name("regress.toml"))
TESTS = Path(sys.prefix) / "postgres-suite" / PIN.version


def unpack(tarball: Path, target: Path) -> None:
    """Put the regression tests of PostgreSQL's source into the new folder `target`.

    It has that name only when it is complete.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name) / "tests"
        with tarfile.open(tarball) as archive:
            for member in archive:
                # All lies in one folder, named after the version.
                path = Path(member.name.partition("/")[2])
                if path.is_relative_to(_PART) and member.isfile():
                    file = folder / path.relative_to(_PART)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    content = archive.extractfile(member)
                    assert content is not None
                    file.write_bytes(content.read())
        folder.rename(target)


def main() -> None:
    """See the module."""
    if TESTS.is_dir():
        return
    store = cache_dir() / "sources"
    try:
        tarball = obtain_pinned(PIN, store, _report)
    except SourceUnavailableError as error:
        _report(f"left out: {' | '.join(error.reasons)} | put {PIN.tarball.name} into {store}")
    except BuildError as error:
        _report(f"left out: {error.message}")
    else:
        unpack(tarball, TESTS)


def _report(line: str) -> None:
    print(f"PostgreSQL's own tests: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
