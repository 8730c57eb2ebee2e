"""PgBouncer, verified, patched, compiled and kept in a cache.

A build is named after everything that went into it, so an answer from the cache is always the
binary that building now would give. It grows in a hidden folder beside its final name and gets
that name by one rename when it is complete: an interrupted or failed build is never found.

The Debian build's options are used except systemd's: the hanger speaks to systemd, and pgbouncer
must not take its NOTIFY_SOCKET for its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer import toolchain
from pgkeeper.bouncer.base import (
    BaseFileError,
    BuildError,
    ChecksumError,
    parse_base,
    patches_dir,
    sha256,
)
from pgkeeper.bouncer.patching import Patch, apply, read_series
from pgkeeper.bouncer.source import obtain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeeper.bouncer.base import Base

__all__ = [
    "PATCHED",
    "VANILLA",
    "NotBuiltError",
    "Variant",
    "binary",
    "cache_dir",
    "cached_binary",
    "source_dir",
]

CACHE_ENV: Final = "PGKEEPER_CACHE"
_SYSTEM_CACHE: Final = Path("/var/cache/pgkeeper")
_CONFIGURE: Final = ("--with-cares=yes", "--with-pam", "--without-systemd")
_CFLAGS: Final = "-g -O2 -fstack-protector-strong -fstack-clash-protection"
_CPPFLAGS: Final = "-D_FORTIFY_SOURCE=2"
_LDFLAGS: Final = "-Wl,-z,relro -Wl,-z,now"
_SANITIZE: Final = "-fsanitize=address,undefined"
_SANITIZE_CFLAGS: Final = f"-g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all {_SANITIZE}"


class NotBuiltError(BuildError):
    """The variant asked for is not in the cache."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        options = "".join(f" --{option}" for option in variant.options)
        super().__init__(
            f"PgBouncer ({variant.label}) is not built yet: run pgkeeper build{options}"
        )


@dataclass(frozen=True, slots=True)
class Variant:
    """Which PgBouncer: without our patches (`vanilla`), with PgBouncer's own assertions
    (`cassert`), with the address and undefined behaviour sanitizers (`sanitize`)."""

    vanilla: bool = False
    cassert: bool = False
    sanitize: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The options of `pgkeeper build` that select this variant, without their dashes."""
        chosen = (
            ("vanilla", self.vanilla),
            ("cassert", self.cassert),
            ("sanitize", self.sanitize),
        )
        return tuple(name for name, wanted in chosen if wanted)

    @property
    def label(self) -> str:
        """What a build's name says of the variant, such as `keeper` or `vanilla-cassert`."""
        options = self.options if self.vanilla else ("keeper", *self.options)
        return "-".join(options)

    @property
    def configure(self) -> tuple[str, ...]:
        """The arguments of PgBouncer's configure script."""
        options = [*_CONFIGURE, "CC=cc"]
        if self.cassert:
            options.append("--enable-cassert")
        if self.sanitize:
            return (*options, f"CFLAGS={_SANITIZE_CFLAGS}", f"LDFLAGS={_SANITIZE}")
        return (*options, f"CFLAGS={_CFLAGS}", f"CPPFLAGS={_CPPFLAGS}", f"LDFLAGS={_LDFLAGS}")


PATCHED: Final = Variant()
VANILLA: Final = Variant(vanilla=True)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that goes into a build, read once, so that its name and its content cannot differ."""

    variant: Variant
    base: Base
    name: str
    patches: tuple[Patch, ...]
    keeper: tuple[tuple[str, bytes], ...]


def binary(
    variant: Variant = PATCHED,
    *,
    source: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """The pgbouncer executable of `variant`, from the cache or built now.

    `source` names the tarball (see `source.obtain`) and is verified even when the cache has the
    answer; `progress` gets one line a step (default: stderr). Raises BuildError.
    """
    report = progress or _report
    recipe = _recipe(variant)
    cache = cache_dir()
    store = cache / "sources"
    if source is not None:
        obtain(recipe.base, source, store, report)
    found = _find(recipe)
    if found is not None:
        return found / "pgbouncer"
    builds = cache / "builds"
    try:
        builds.mkdir(parents=True, exist_ok=True)
        with _locked(builds / f".{recipe.name}.lock", report):
            found = _find(recipe) or _build(recipe, builds, store, report)
    except OSError as error:
        raise BuildError(f"{error.filename or builds}: {error.strerror}") from error
    return found / "pgbouncer"


def cached_binary(variant: Variant = PATCHED) -> Path | None:
    """The executable if the cache has it; never builds. Raises BaseFileError or ChecksumError."""
    found = _find(_recipe(variant))
    return found / "pgbouncer" if found else None


def source_dir(variant: Variant = PATCHED) -> Path:
    """The source tree of a finished build, upstream's test/ included; raises NotBuiltError."""
    found = _find(_recipe(variant))
    if found is None:
        raise NotBuiltError(variant)
    return found / "source"


def cache_dir() -> Path:
    """Where builds are kept: `$PGKEEPER_CACHE`, else a user's own cache folder, else root's.

    Root's is the system's, since a process that gave up root must still be able to run the binary.
    """
    if override := os.environ.get(CACHE_ENV):
        return Path(override).absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).absolute() / "pgkeeper"
    if os.geteuid() == 0:
        return _SYSTEM_CACHE
    return Path.home() / ".cache" / "pgkeeper"


def _find(recipe: Recipe) -> Path | None:
    places = [cache_dir()]
    if CACHE_ENV not in os.environ:
        places.append(_SYSTEM_CACHE)
    for place in places:
        build = place / "builds" / recipe.name
        if os.access(build / "pgbouncer", os.X_OK):
            return build
    return None


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _recipe(variant: Variant) -> Recipe:
    patches = patches_dir()
    base_content = (patches / "BASE").read_bytes()
    base = parse_base(patches / "BASE", base_content)
    applied = read_series(patches / "debian" / "series", patches)
    for patch in applied:
        _verify_patch(patch, base)
    keeper: tuple[tuple[str, bytes], ...] = ()
    if not variant.vanilla:
        applied += read_series(patches / "series", patches)
        files = sorted(path for path in (patches / "keeper").glob("*.[ch]") if path.is_file())
        keeper = tuple((path.name, path.read_bytes()) for path in files)
    digest = hashlib.sha256()
    for name, content in (
        ("BASE", base_content),
        ("configure", "\0".join(variant.configure).encode()),
        ("machine", _machine().encode()),
        *((patch.name, patch.content) for patch in applied),
        *keeper,
    ):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    name = f"{base.version}-{variant.label}-{digest.hexdigest()[:12]}"
    return Recipe(variant, base, name, applied, keeper)


def _verify_patch(patch: Patch, base: Base) -> None:
    expected = base.patches.get(Path(patch.name).name)
    if expected is None:
        raise BaseFileError(Path("patches/BASE"), f"does not pin {patch.name}")
    if (actual := sha256(patch.content)) != expected:
        raise ChecksumError(Path(patch.name).name, "patches/debian", expected, actual)


def _machine() -> str:
    """A cache may be shared by machines whose libraries differ."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return f"{platform.machine()} {release.get('ID')} {release.get('VERSION_ID')}"


@contextmanager
def _locked(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the build's lock; it goes with the process, so an interrupted one blocks nobody."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another build of the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(recipe: Recipe, builds: Path, store: Path, report: Callable[[str], None]) -> Path:
    """Build under the lock and return the finished folder."""
    prefix = f".{recipe.name}.tmp-"
    for stale in builds.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)  # the compiler of a killed build may still write
    toolchain.check()
    tarball = obtain(recipe.base, None, store, report)
    growing = Path(tempfile.mkdtemp(dir=builds, prefix=prefix))
    try:
        growing.chmod(0o755)
        tree = growing / "source"
        tree.mkdir()
        log = builds / f"{recipe.name}.log"
        log.unlink(missing_ok=True)
        _unpack(tarball, tree, log)
        _patch(recipe, tree, report)
        _compile(recipe, tree, log, report)
        _finish(recipe.base, growing, log)
        finished = builds / recipe.name
        # A folder without a usable binary may be left over from a removed executable.
        shutil.rmtree(finished, ignore_errors=True)
        growing.rename(finished)
        log.unlink()
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return finished


def _unpack(tarball: Path, tree: Path, log: Path) -> None:
    command = ["tar", "-xzf", str(tarball), "--strip-components=1", "--no-same-owner"]
    toolchain.run("unpacking", command, tree, log)


def _patch(recipe: Recipe, tree: Path, report: Callable[[str], None]) -> None:
    for name, content in recipe.keeper:
        folder = tree / ("src" if name.endswith(".c") else "include") / "keeper"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    for patch in recipe.patches:
        report(f"applying patches/{patch.name}")
        apply(patch, tree)


def _compile(recipe: Recipe, tree: Path, log: Path, report: Callable[[str], None]) -> None:
    report("configuring")
    # Debuggers and sanitizers are to find the sources where they end up.
    moved = f"-ffile-prefix-map={tree.parent}={tree.parent.with_name(recipe.name)}"
    options = [
        f"{option} {moved}" if option.startswith("CFLAGS=") else option
        for option in recipe.variant.configure
    ]
    toolchain.run("configure", ["./configure", *options], tree, log)
    jobs = len(os.sched_getaffinity(0))
    report(f"compiling PgBouncer {recipe.base.version} ({recipe.variant.label})")
    toolchain.run("make", ["make", f"-j{jobs}", "pgbouncer"], tree, log)


def _finish(base: Base, growing: Path, log: Path) -> None:
    """Put the executable in its place, on disk, and see it start."""
    executable = growing / "pgbouncer"
    (growing / "source" / "pgbouncer").rename(executable)
    (growing / "source" / "pgbouncer").symlink_to(Path("..") / "pgbouncer")
    toolchain.run("pgbouncer --version", [str(executable), "--version"], growing, log)
    if f"PgBouncer {base.version}".encode() not in log.read_bytes():
        raise toolchain.BuildStepError("pgbouncer --version", f"not {base.version}", log)
    executable.chmod(0o755)
    with executable.open("rb") as file:
        os.fsync(file.fileno())
