"""A PgBouncer small enough to build in a blink: real tarballs, patches and make, a shell script
for the program."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer import toolchain

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "9.8.7"
TARBALL = f"pgbouncer_{VERSION}.orig.tar.gz"
PACKAGING = f"pgbouncer_{VERSION}-1.debian.tar.xz"
RELEASE = f"https://upstream.invalid/pgbouncer-{VERSION}.tar.gz"

_CONFIGURE = """#!/bin/sh
echo configured >> "$BUILD_TRACE"
echo "$@" > options
"""
_MAKEFILE = """pgbouncer: src/main.sh
\tcp src/main.sh $@
\tchmod +x $@
"""
_MAIN = f"""#!/bin/sh
echo "PgBouncer {VERSION}"
echo one
echo two
echo three
"""


def diff(path: str, old: str, new: str, line: int = 3) -> str:
    """A patch that changes `old` (line number `line` of `_MAIN`) into `new`."""
    return (
        f"--- a/{path}\n+++ b/{path}\n@@ -{line - 1},3 +{line - 1},3 @@\n"
        f' echo "PgBouncer {VERSION}"\n-echo {old}\n+echo {new}\n echo two\n'
    )


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pack(files: dict[str, str]) -> bytes:
    """A release tarball of executable files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"pgbouncer-{VERSION}/{name}")
            member.mode = 0o755
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


@dataclass
class Project:
    """Folders of a project whose PgBouncer is the small one."""

    patches: Path
    cache: Path
    tarball: Path
    trace: Path

    @property
    def compiled(self) -> int:
        """How many times a source tree was configured."""
        return self.trace.read_text().count("configured") if self.trace.exists() else 0

    @property
    def finished(self) -> list[str]:
        """The names a build can be found by, and logs."""
        return sorted(path.name for path in (self.cache / "builds").glob("[!.]*"))

    @property
    def unfinished(self) -> list[str]:
        return sorted(path.name for path in (self.cache / "builds").glob(".*.tmp-*"))

    def write_tarball(self, files: dict[str, str]) -> None:
        """Replace the tarball and pin the new one."""
        self.tarball.write_bytes(pack(files))
        self.write_base()

    def write_base(self) -> None:
        series = self.patches / "debian" / "series"
        pinned = {path.name: digest(path.read_bytes()) for path in series.parent.iterdir()}
        listed = "".join(f'"{name}" = "{value}"\n' for name, value in pinned.items())
        (self.patches / "BASE").write_text(
            f'version = "{VERSION}"\nrelease = "{RELEASE}"\n'
            f'[distribution]\npackage = "pgbouncer"\nrevision = "{VERSION}-1"\nsuite = "trixie"\n'
            f'[tarball]\nname = "{TARBALL}"\nsha256 = "{digest(self.tarball.read_bytes())}"\n'
            f'[packaging]\nname = "{PACKAGING}"\nsha256 = "{digest(b"packaging")}"\n'
            f"[patches]\n{listed}"
        )

    def write_hook(self, text: str) -> None:
        """Make `text` the one hook of the series."""
        (self.patches / "series").write_text("# ours\nhooks/one.patch\n")
        (self.patches / "hooks" / "one.patch").write_text(text)


SMALL = {"configure": _CONFIGURE, "Makefile": _MAKEFILE, "src/main.sh": _MAIN, "include/x.h": ""}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    patches = tmp_path / "patches"
    for folder in ("debian", "hooks", "keeper"):
        (patches / folder).mkdir(parents=True)
    (patches / "debian" / "series").write_text("security\n")
    (patches / "debian" / "security").write_text(diff("src/main.sh", "one", "secure"))
    made = Project(
        patches, tmp_path / "cache", tmp_path / "downloads" / TARBALL, tmp_path / "trace"
    )
    made.tarball.parent.mkdir()
    made.write_tarball(SMALL)
    made.write_hook(diff("src/main.sh", "secure", "kept"))
    monkeypatch.setenv("PGKEEPER_PATCHES", str(patches))
    monkeypatch.setenv("PGKEEPER_CACHE", str(made.cache))
    monkeypatch.setenv("BUILD_TRACE", str(made.trace))
    # What the machine has installed is test_toolchain's business.
    monkeypatch.setattr(toolchain, "check", lambda: None)
    return made
