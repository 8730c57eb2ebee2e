"""Where the tarball comes from, in which order, and that only the pinned one is accepted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer import apt
from pgkeeper.bouncer import source as source_module
from pgkeeper.bouncer.base import BuildError, ChecksumError, parse_base
from pgkeeper.bouncer.source import SourceFileError, SourceUnavailableError, obtain

from .conftest import PACKAGING, RELEASE, TARBALL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pgkeeper.bouncer.base import Base

    from .conftest import Project


@pytest.fixture
def base(project: Project) -> Base:
    path = project.patches / "BASE"
    return parse_base(path, path.read_bytes())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


class Origins:
    """Stands in for apt and upstream: what they give and that they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.given: dict[str, bytes] = {}
        monkeypatch.setattr(apt, "fetch", self._origin("apt"))
        monkeypatch.setattr(source_module, "_download", self._origin("upstream"))

    def _origin(self, name: str) -> Callable[[Base, Path], Path]:
        def fetch(base: Base, directory: Path) -> Path:
            self.asked.append(name)
            if name not in self.given:
                raise BuildError(f"{name}: out of reach")
            tarball = directory / base.tarball.name
            tarball.write_bytes(self.given[name])
            return tarball

        return fetch


@pytest.fixture
def origins(monkeypatch: pytest.MonkeyPatch) -> Origins:
    return Origins(monkeypatch)


def quiet(line: str) -> None:
    """Progress that nobody reads."""


@pytest.mark.parametrize("name", [TARBALL, "renamed.tgz", "x.dsc", "", "upstream"])
def test_a_named_source(
    project: Project, base: Base, store: Path, origins: Origins, name: str
) -> None:
    folder = project.tarball.parent
    if name == "renamed.tgz":
        project.tarball.rename(folder / name)
    elif name == "upstream":
        project.tarball.rename(folder / RELEASE.rpartition("/")[2])
        name = ""
    elif name == "x.dsc":
        (folder / name).touch()
    kept = obtain(base, folder / name, store, quiet)
    assert kept == store / TARBALL
    assert origins.asked == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.tar.gz", "no such file"), ("x.dsc", f"{TARBALL} is not there"), ("", "is not there")],
)
def test_a_named_source_without_the_tarball(
    project: Project, base: Base, store: Path, name: str, reason: str
) -> None:
    project.tarball.unlink()
    (project.tarball.parent / "x.dsc").touch()
    with pytest.raises(SourceFileError, match=reason):
        obtain(base, project.tarball.parent / name, store, quiet)


def test_a_changed_named_source_is_refused_and_not_kept(
    project: Project, base: Base, store: Path, origins: Origins
) -> None:
    project.tarball.write_bytes(project.tarball.read_bytes() + b"x")
    with pytest.raises(ChecksumError, match=TARBALL):
        obtain(base, project.tarball, store, quiet)
    assert list(store.iterdir()) == []
    assert origins.asked == []


def test_a_changed_packaging_beside_a_dsc_is_refused(
    project: Project, base: Base, store: Path
) -> None:
    dsc = project.tarball.parent / "x.dsc"
    dsc.touch()
    packaging = dsc.parent / PACKAGING
    packaging.write_bytes(b"packaging")
    obtain(base, dsc, store, quiet)
    packaging.write_bytes(b"Packaging")
    with pytest.raises(ChecksumError, match=PACKAGING):
        obtain(base, dsc, store, quiet)


def test_apt_is_asked_once_and_the_store_afterwards(
    project: Project, base: Base, store: Path, origins: Origins
) -> None:
    origins.given["apt"] = project.tarball.read_bytes()
    obtain(base, None, store, quiet)
    assert obtain(base, None, store, quiet).read_bytes() == project.tarball.read_bytes()
    assert origins.asked == ["apt"]


def test_upstream_comes_after_apt(
    project: Project, base: Base, store: Path, origins: Origins
) -> None:
    origins.given["upstream"] = project.tarball.read_bytes()
    lines: list[str] = []
    obtain(base, None, store, lines.append)
    assert origins.asked == ["apt", "upstream"]
    assert "apt: out of reach" in lines


def test_a_changed_file_from_apt_ends_the_search(
    project: Project, base: Base, store: Path, origins: Origins
) -> None:
    origins.given = {"apt": b"changed", "upstream": project.tarball.read_bytes()}
    with pytest.raises(ChecksumError, match="from apt-get source"):
        obtain(base, None, store, quiet)
    assert origins.asked == ["apt"]
    assert list(store.iterdir()) == []


def test_a_damaged_store_is_fetched_anew(
    project: Project, base: Base, store: Path, origins: Origins
) -> None:
    origins.given["apt"] = project.tarball.read_bytes()
    kept = obtain(base, None, store, quiet)
    kept.write_bytes(b"damaged")
    assert obtain(base, None, store, quiet).read_bytes() == project.tarball.read_bytes()


def test_when_nobody_has_it_one_line_says_all(base: Base, store: Path, origins: Origins) -> None:
    with pytest.raises(SourceUnavailableError) as caught:
        obtain(base, None, store, quiet)
    assert caught.value.reasons == ("apt: out of reach", "upstream: out of reach")
    assert "--source FILE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_upstream_out_of_reach_is_one_line(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with pytest.raises(BuildError, match="refused") as caught:
        source_module._download(base, tmp_path)
    assert str(caught.value).startswith(f"{RELEASE}: ")


def test_the_store_keeps_a_copy_of_its_own(project: Project, base: Base, store: Path) -> None:
    obtain(base, project.tarball, store, quiet)
    shutil.rmtree(project.tarball.parent)
    assert obtain(base, None, store, quiet).is_file()
