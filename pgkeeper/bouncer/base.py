"""`patches/BASE`: which PgBouncer is built from, and the check that files are what it pins."""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Archive",
    "Base",
    "BaseFileError",
    "BuildError",
    "ChecksumError",
    "Pinned",
    "parse_base",
    "patches_dir",
    "sha256",
    "verify",
]

PATCHES_ENV: Final = "PGKEEPER_PATCHES"


class BuildError(PgkeeperError):
    """PgBouncer could not be built; nothing half-built is left behind."""


class BaseFileError(BuildError):
    """`patches/BASE`, or a file it needs beside it, is missing or cannot be read."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class ChecksumError(BuildError):
    """A file is not the one that is pinned, by `patches/BASE` or whoever asks for it."""

    def __init__(self, name: str, origin: str, expected: str, actual: str) -> None:
        self.name = name
        self.origin = origin
        self.expected = expected
        self.actual = actual
        super().__init__(f"{name} from {origin}: sha256 is {actual}, but {expected} is pinned")


@dataclass(frozen=True, slots=True)
class Pinned:
    """A file known by name and by the lower-case hex SHA-256 of its content."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Archive:
    """A source tarball, and where it is to be had.

    `release` is upstream's https address of it; `package`, `revision` and `suite` name the
    distribution's source package that carries the same tarball.
    """

    version: str
    release: str
    package: str
    revision: str
    suite: str
    tarball: Pinned


@dataclass(frozen=True, slots=True)
class Base(Archive):
    """The content of `patches/BASE`.

    `packaging` is the archive `patches/debian/` was taken from, and `patches` pins each file of
    that folder by SHA-256.
    """

    packaging: Pinned
    patches: Mapping[str, str]


def patches_dir() -> Path:
    """The folder that holds BASE, series, debian/, hooks/ and keeper/.

    It is `$PGKEEPER_PATCHES`, else `patches/` beside the package, as in a checkout.
    Raises BaseFileError when there is none.
    """
    override = os.environ.get(PATCHES_ENV)
    patches = Path(override) if override else Path(__file__).resolve().parents[2] / "patches"
    if not (patches / "BASE").is_file():
        raise BaseFileError(
            patches / "BASE", f"not found; run from a checkout or set {PATCHES_ENV}"
        )
    return patches


def parse_base(path: Path, content: bytes) -> Base:
    """Read `content`, the bytes of the file at `path`; raises BaseFileError."""
    try:
        table = tomllib.loads(content.decode())
        distribution = table["distribution"]
        base = Base(
            version=str(table["version"]),
            release=str(table["release"]),
            package=str(distribution["package"]),
            revision=str(distribution["revision"]),
            suite=str(distribution["suite"]),
            tarball=_pinned(table["tarball"]),
            packaging=_pinned(table["packaging"]),
            patches={str(name): _digest(value) for name, value in table["patches"].items()},
        )
    except KeyError as error:
        raise BaseFileError(path, f"the key {error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BaseFileError(path, f"cannot be read: {error}") from error
    if not base.release.startswith("https://"):
        raise BaseFileError(path, "release must be an https address")
    return base


def _pinned(table: Mapping[str, object]) -> Pinned:
    name = str(table["name"])
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not a plain file name")
    return Pinned(name, _digest(table["sha256"]))


def _digest(value: object) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{value!r} is not a SHA-256 in lower-case hex")
    return value


def sha256(content: bytes) -> str:
    """The SHA-256 of `content` in lower-case hex."""
    return hashlib.sha256(content).hexdigest()


def verify(path: Path, pinned: Pinned, origin: str) -> None:
    """Raise ChecksumError unless the file at `path`, which came from `origin`, is `pinned`."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != pinned.sha256:
        raise ChecksumError(pinned.name, origin, pinned.sha256, actual)
