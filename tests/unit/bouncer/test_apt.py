"""The private apt configuration: derived from the machine's entries, touching nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer import apt
from pgkeeper.bouncer.base import parse_base, patches_dir

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeeper.bouncer.base import Base

BOOKWORM = """\
# a comment
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: {key}

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Check-Valid-Until: no
Signed-By: /nowhere/debian.gpg
"""


def test_deb822_entries_keep_mirror_and_key_and_change_type_and_suite(tmp_path: Path) -> None:
    key = tmp_path / "debian.gpg"
    key.touch()
    assert apt.derive_deb822(BOOKWORM.format(key=key), "trixie") == (
        "Types: deb-src\nUris: http://mirror.example/debian\nSuites: trixie\nComponents: main\n"
        f"Signed-By: {key}\n"
        "\n"
        "Types: deb-src\nUris: http://mirror.example/debian-security\n"
        "Suites: trixie-security\nComponents: main\nCheck-Valid-Until: no\n"
    )


def test_deb822_keeps_an_embedded_key() -> None:
    key = " -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc/def\n -----END PGP PUBLIC KEY BLOCK-----"
    stanza = f"Types: deb\nURIs: u\nSuites: trixie\nComponents: main\nSigned-By:\n{key}\n"
    assert apt.derive_deb822(stanza, "trixie").endswith(f"Signed-By: \n{key}\n")


@pytest.mark.parametrize(
    "change",
    [
        ("Suites: trixie", "Suites: noble"),
        ("Suites: trixie", "Suites: trixie-pgdg"),
        ("Components: main", "Components: stable"),
        ("Types: deb", "Types: deb\nEnabled: no"),
    ],
)
def test_deb822_entries_of_others_are_left_out(change: tuple[str, str]) -> None:
    stanza = "Types: deb\nURIs: http://m.example/debian\nSuites: trixie\nComponents: main\n"
    assert apt.derive_deb822(stanza, "trixie")
    assert not apt.derive_deb822(stanza.replace(*change), "trixie")


def test_one_line_entries() -> None:
    text = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/nowhere/key.gpg trusted=yes] http://m.example/debian bookworm main # x
deb http://m.example/debian bookworm-updates main
deb-src [arch=amd64] mirror+file:/etc/apt/mirrors/debian.list stable contrib main
deb-src [arch=amd64] mirror+file:/etc/apt/mirrors/debian.list stable main
deb http://m.example/debian-security bookworm-security main
deb https://packages.example/linux/debian bookworm stable
deb http://archive.example/ubuntu noble main
"""
    assert apt.derive_one_line(text, "trixie") == (
        "deb-src [trusted=yes] http://m.example/debian trixie main\n"
        "deb-src mirror+file:/etc/apt/mirrors/debian.list trixie main\n"
        "deb-src http://m.example/debian-security trixie-security main\n"
    )


class Machine:
    """Fake apt-get and apt-config first on PATH, and the /etc/apt they speak of."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.etc = folder / "etc"
        self.seen = folder / "seen"
        self.parts = self.etc / "sources.list.d"
        self.parts.mkdir(parents=True)
        self.seen.mkdir()
        self.tools = folder / "bin"
        self.tools.mkdir()
        self.tool(
            "apt-config",
            f"""if [ "$1" = shell ]; then
                echo "L='{self.etc}/sources.list'"; echo "P='{self.parts}/'"
            else
                echo 'Acquire::http::Proxy "http://proxy.example:3142";'
                echo 'APT::Update::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb";'
            fi""",
        )
        monkeypatch.setenv("PATH", str(self.tools), prepend=":")

    def tool(self, name: str, script: str) -> None:
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def apt_get(self, source: str) -> None:
        """`source` is what the fake's `apt-get source` does."""
        self.tool(
            "apt-get",
            f"""case "$*" in
                *update*) cp -r "${{APT_CONFIG%/*}}"/. {self.seen};;
                *) {source};;
            esac""",
        )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "machine", monkeypatch)


@pytest.fixture
def base() -> Base:
    path = patches_dir() / "BASE"
    return parse_base(path, path.read_bytes())


def test_fetch_uses_a_private_configuration(machine: Machine, base: Base, tmp_path: Path) -> None:
    (machine.parts / "debian.sources").write_text(BOOKWORM)
    (machine.etc / "sources.list").write_text("deb http://old.example/debian bookworm main\n")
    machine.apt_get(f"echo tarball > {base.tarball.name}")
    tarball = apt.fetch(base, tmp_path)
    assert tarball == tmp_path / base.tarball.name
    assert tarball.read_text() == "tarball\n"
    conf = (machine.seen / "apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://proxy.example:3142";' in conf
    assert "Post-Invoke" not in conf
    written = [line for line in conf.splitlines() if line.startswith(("Dir::State", "Dir::Cache"))]
    assert written
    assert all(
        '"/tmp' in line or '""' in line or str(tmp_path.parents[1]) in line for line in written
    )
    one_line = (machine.seen / "sources.list.d/private.list").read_text()
    assert one_line == "deb-src http://old.example/debian trixie main\n"
    deb822 = (machine.seen / "sources.list.d/private.sources").read_text()
    assert deb822.count("Types: deb-src") == 2


def test_a_newer_revision_in_the_archive_still_has_the_tarball(
    machine: Machine, base: Base, tmp_path: Path
) -> None:
    (machine.parts / "debian.sources").write_text(BOOKWORM)
    machine.apt_get(
        f'case "$*" in *=*) echo "E: Version not found" >&2; exit 100;; esac;'
        f" echo tarball > {base.tarball.name}"
    )
    assert apt.fetch(base, tmp_path).is_file()


def test_a_machine_without_debian_entries_says_so(
    machine: Machine, base: Base, tmp_path: Path
) -> None:
    (machine.etc / "sources.list").write_text("deb http://archive.example/ubuntu noble main\n")
    with pytest.raises(apt.AptError, match="no entry of this machine is for a Debian archive"):
        apt.fetch(base, tmp_path)


def test_the_first_error_of_apt_is_the_reason(machine: Machine, base: Base, tmp_path: Path) -> None:
    (machine.parts / "debian.sources").write_text(BOOKWORM)
    machine.apt_get('echo "W: something" >&2; echo "E: Unable to find  a source" >&2; exit 100')
    with pytest.raises(apt.AptError) as caught:
        apt.fetch(base, tmp_path)
    assert caught.value.reason == "Unable to find a source"


def test_without_apt(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(apt.AptError, match="apt-get is not installed"):
        apt.fetch(base, tmp_path)
