"""Where PgBouncer's tarball comes from: a named file, the cache, apt, upstream; always verified.

A tarball that is had but is not the one that is pinned ends the search: falling through to another
origin would hide that someone changed it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer import apt
from pgkeeper.bouncer.base import BuildError, ChecksumError, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeeper.bouncer.base import Archive, Base

__all__ = ["SourceFileError", "SourceUnavailableError", "obtain", "obtain_pinned"]

_TIMEOUT_S: Final = 60


class SourceFileError(BuildError):
    """What `--source` names does not hold PgBouncer's tarball."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"--source {path}: {reason}")


class SourceUnavailableError(BuildError):
    """No origin has the tarball; `reasons` says why, one entry an origin tried."""

    def __init__(self, base: Archive, reasons: tuple[str, ...]) -> None:
        self.reasons = reasons
        tried = " | ".join(reasons)
        super().__init__(
            f"no source of {base.package} {base.version}: {tried} | give it with --source FILE"
            f" ({base.tarball.name})"
        )


def obtain(base: Base, source: Path | None, store: Path, progress: Callable[[str], None]) -> Path:
    """The verified tarball, kept in the folder `store` for the next build.

    `source` may be the tarball itself under any name, a `.dsc` beside it, or the folder of either;
    when it is None `obtain_pinned` is asked.
    Raises SourceFileError, SourceUnavailableError or ChecksumError.
    """
    if source is None:
        return obtain_pinned(base, store, progress)
    store.mkdir(parents=True, exist_ok=True)
    return _keep(_named(base, source), store / base.tarball.name, base, str(source))


def obtain_pinned(base: Archive, store: Path, progress: Callable[[str], None]) -> Path:
    """The verified tarball from `store`, apt or upstream, asked in this order; kept in the store.

    Raises SourceUnavailableError or ChecksumError.
    """
    store.mkdir(parents=True, exist_ok=True)
    kept = store / base.tarball.name
    if kept.is_file():
        try:
            verify(kept, base.tarball, str(kept))
        except ChecksumError:
            progress(f"the kept {kept} is not the one that is pinned: fetching it anew")
        else:
            return kept
    return _fetch(base, kept, progress)


def _named(base: Base, source: Path) -> Path:
    """The tarball `source` stands for; the packaging archive beside it is verified if present."""
    upstream_name = Path(base.release).name
    if source.is_dir():
        candidates = [source / base.tarball.name, source / upstream_name]
    elif source.suffix == ".dsc":
        candidates = [source.parent / base.tarball.name]
    else:
        candidates = [source]
    if not source.exists():
        raise SourceFileError(source, "no such file")
    for tarball in candidates:
        if tarball.is_file():
            packaging = tarball.parent / base.packaging.name
            if tarball != source and packaging.is_file():
                verify(packaging, base.packaging, str(packaging.parent))
            return tarball
    raise SourceFileError(source, f"{base.tarball.name} is not there")


def _fetch(base: Archive, kept: Path, progress: Callable[[str], None]) -> Path:
    reasons = []
    with tempfile.TemporaryDirectory(prefix="pgkeeper-source-") as name:
        for origin, fetch in (("apt-get source", apt.fetch), (base.release, _download)):
            progress(f"fetching {base.tarball.name}: {origin}")
            try:
                tarball = fetch(base, Path(name))
            except BuildError as error:
                reasons.append(error.message)
                progress(error.message)
            else:
                return _keep(tarball, kept, base, origin)
    raise SourceUnavailableError(base, tuple(reasons))


def _download(base: Archive, directory: Path) -> Path:
    tarball = directory / base.tarball.name
    try:
        with (
            urllib.request.urlopen(base.release, timeout=_TIMEOUT_S) as response,  # noqa: S310 - parse_base admits https only
            tarball.open("wb") as file,
        ):
            shutil.copyfileobj(response, file)
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise BuildError(f"{base.release}: {reason}") from error
    return tarball


def _keep(tarball: Path, kept: Path, base: Archive, origin: str) -> Path:
    """Copy `tarball` into the store; only a verified file ever bears the store's name."""
    handle, name = tempfile.mkstemp(dir=kept.parent, prefix=f".{kept.name}.")
    os.close(handle)
    copy = Path(name)
    try:
        try:
            shutil.copyfile(tarball, copy)
        except OSError as error:
            raise SourceFileError(tarball, error.strerror or str(error)) from error
        verify(copy, base.tarball, origin)
        copy.chmod(0o644)
        copy.replace(kept)
    finally:
        copy.unlink(missing_ok=True)
    return kept
