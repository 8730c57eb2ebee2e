"""`apt-get source` with a private configuration; the system's apt is only read.

Everything apt writes (lists, caches, logs, locks) goes to a temporary folder, so it works as any
user. The machine's own settings (proxies, mirrors, keys, credentials) are kept: the configuration
is `apt-config dump` with our folders put over it, and the source entries are the machine's own
Debian entries with `deb-src` for `deb` and the suite wanted for the suite installed. See
apt.conf(5) for the order of precedence and sources.list(5) for both formats of entries.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer.base import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pgkeeper.bouncer.base import Archive

__all__ = ["AptError", "Sources", "derive_deb822", "derive_one_line", "fetch"]

# An entry is a Debian archive's if it is for one of these suites and has the component main;
# other vendors' archives that use the same names merely fail to have the suite wanted.
_DEBIAN_SUITES: Final = frozenset(
    [
        "bullseye",
        "bookworm",
        "trixie",
        "forky",
        "duke",
        "sid",
        "unstable",
        "testing",
        "stable",
        "oldstable",
        "oldoldstable",
    ]
)
_SECURITY: Final = "-security"
_COMPONENT: Final = "main"
_ONE_LINE: Final = re.compile(r"\s*deb(?:-src)?\s+(?:\[([^]]*)\]\s*)?(\S+)\s+(\S+)\s+(\S.*)")
_TIMEOUT_S: Final = 600

# Hooks would run the machine's own programs on the machine's own caches.
_DROPPED: Final = re.compile(r"(?i)(APT::Update::(Pre|Post)-Invoke|DPkg::|RPM::|Binary|quiet)")

_PRIVATE: Final = """\
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{root}/sources.list.d";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "/dev/null";
Dir::State "{root}/state";
Dir::State::Lists "{root}/state/lists";
Dir::State::extended_states "{root}/state/extended_states";
Dir::Cache "{root}/cache";
Dir::Cache::Archives "{root}/cache/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Log "{root}/log";
APT::Sandbox::User "{user}";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"""


class AptError(BuildError):
    """apt could not give the source: `reason` says why, in a few words."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"apt-get source: {reason}")


@dataclass(frozen=True, slots=True)
class Sources:
    """Derived entries in apt's two formats; either text may be empty."""

    deb822: str
    one_line: str

    def __bool__(self) -> bool:
        return bool(self.deb822 or self.one_line)


def fetch(base: Archive, directory: Path) -> Path:
    """Download `base`'s tarball into `directory` and return its path, unverified.

    Raises AptError when there is no apt, no Debian archive among the machine's entries, or the
    archive cannot be reached or no longer carries this version.
    """
    for tool in ("apt-get", "apt-config"):
        if shutil.which(tool) is None:
            raise AptError(f"{tool} is not installed")
    with tempfile.TemporaryDirectory(prefix="pgkeeper-apt-") as name:
        root = Path(name)
        environment = _configure(base, root)
        update = _run(["apt-get", "-q", "update"], root, environment)
        download = root / "download"
        download.mkdir()
        # The tarball is the same in every revision, so any that is there will do.
        for package in (f"{base.package}={base.revision}", base.package):
            command = ["apt-get", "-q", "source", "--download-only", "--tar-only", package]
            source = _run(command, download, environment)
            tarball = download / base.tarball.name
            if tarball.is_file():
                return Path(shutil.move(tarball, directory / tarball.name))
        raise AptError(_complaint(update, source) or f"{base.tarball.name} is not in the archive")


def _configure(base: Archive, root: Path) -> dict[str, str]:
    etc = _run(
        ["apt-config", "shell", "L", "Dir::Etc::sourcelist/f", "P", "Dir::Etc::sourceparts/d"],
        root,
        _environment(),
    )
    paths = dict(item.split("=", 1) for item in shlex.split(etc.stdout))
    sources = _machine_sources(
        Path(paths.get("L", "/etc/apt/sources.list")),
        Path(paths.get("P", "/etc/apt/sources.list.d")),
        base.suite,
    )
    if not sources:
        raise AptError(f"no entry of this machine is for a Debian archive with suite {base.suite}")
    for folder in ("sources.list.d", "state/lists/partial", "cache/archives/partial", "log"):
        (root / folder).mkdir(parents=True)
    (root / "sources.list.d/private.sources").write_text(sources.deb822)
    (root / "sources.list.d/private.list").write_text(sources.one_line)
    dump = _run(["apt-config", "dump"], root, _environment()).stdout
    kept = "".join(f"{line}\n" for line in dump.splitlines() if not _DROPPED.match(line))
    # Root's apt would fetch as _apt, which cannot enter a private folder.
    user = "root" if os.geteuid() == 0 else ""
    (root / "apt.conf").write_text(kept + _PRIVATE.format(root=root, user=user))
    return _environment(APT_CONFIG=str(root / "apt.conf"))


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **more}


def _run(
    command: list[str], directory: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AptError(f"{' '.join(command[:3])} took longer than {_TIMEOUT_S} s") from error


def _complaint(*runs: subprocess.CompletedProcess[str]) -> str:
    """The first error apt printed, without its mark."""
    for run in runs:
        for line in run.stderr.splitlines():
            if line.startswith(("E:", "Err:", "W: Failed")):
                return " ".join(line.split(":", 1)[1].split())
    return ""


def _machine_sources(source_list: Path, parts: Path, suite: str) -> Sources:
    deb822 = [derive_deb822(text, suite) for text in _read(sorted(parts.glob("*.sources")))]
    lists = [source_list, *sorted(parts.glob("*.list"))]
    one_line = [derive_one_line(text, suite) for text in _read(lists)]
    return Sources("\n".join(filter(None, deb822)), "".join(one_line))


def _read(paths: Iterable[Path]) -> list[str]:
    texts = []
    for path in paths:
        try:
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:  # another user's private entries: not ours to use
            continue
    return texts


def derive_deb822(text: str, suite: str) -> str:
    """The Debian entries of a `.sources` file, as `deb-src` entries for `suite`.

    Keeps every other field as it stands, except Signed-By when its files are not there: then
    apt's trusted.gpg.d decides.
    """
    return "\n".join(filter(None, (_derive_stanza(stanza, suite) for stanza in _stanzas(text))))


def _stanzas(text: str) -> list[dict[str, str]]:
    """Fields with their values as written, continuation lines included."""
    stanzas: list[dict[str, str]] = [{}]
    field = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if not line.strip():
            stanzas.append({})
        elif line[0] in " \t":
            if field in stanzas[-1]:
                stanzas[-1][field] += f"\n{line}"
        else:
            field, _, value = line.partition(":")
            stanzas[-1][field := field.strip().lower()] = value.strip()
    return [stanza for stanza in stanzas if stanza]


def _derive_stanza(stanza: dict[str, str], suite: str) -> str:
    suites = _derive_suites(stanza.get("suites", "").split(), suite)
    components = stanza.get("components", "").split()
    enabled = stanza.get("enabled", "yes").lower() not in {"no", "false", "off", "0", "without"}
    if not (suites and _COMPONENT in components and "uris" in stanza and enabled):
        return ""
    kept = {
        "types": "deb-src",
        "uris": stanza["uris"],
        "suites": " ".join(suites),
        "components": _COMPONENT,
    }
    for field, value in stanza.items():
        if field == "signed-by":
            value = _present_keys(value)
        if value and field not in {*kept, "enabled", "architectures"}:
            kept[field] = value
    return "".join(f"{field.title()}: {value}\n" for field, value in kept.items())


def derive_one_line(text: str, suite: str) -> str:
    """The Debian entries of a `sources.list` file, as `deb-src` lines for `suite`."""
    lines: dict[str, None] = {}
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.split("#", 1)[0].rstrip())
        if match is None or _COMPONENT not in match[4].split():
            continue
        options = [_present_option(option) for option in (match[1] or "").split()]
        written = " ".join(filter(None, options))
        for derived in _derive_suites([match[3]], suite):
            prefix = f"deb-src [{written}]" if written else "deb-src"
            lines[f"{prefix} {match[2]} {derived} {_COMPONENT}\n"] = None
    return "".join(lines)


def _derive_suites(suites: Iterable[str], wanted: str) -> list[str]:
    derived: dict[str, None] = {}
    for suite in suites:
        name = suite.removesuffix(_SECURITY)
        if name in _DEBIAN_SUITES:
            derived[wanted + suite[len(name) :]] = None
    return list(derived)


def _present_option(option: str) -> str:
    key, _, value = option.partition("=")
    if key == "arch":
        return ""
    if key != "signed-by":
        return option
    keys = _present_keys(value)
    return f"{key}={keys}" if keys else ""


def _present_keys(value: str) -> str:
    """`value` of Signed-By without key files that do not exist; embedded keys are kept."""
    if "BEGIN PGP" in value:
        return value
    separator = "," if "," in value else " "
    keys = [key for key in re.split(r"[,\s]+", value) if key]
    present = [key for key in keys if not key.startswith("/") or Path(key).is_file()]
    return separator.join(present)
