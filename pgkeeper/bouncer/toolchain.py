"""Compilers, headers and the steps that use them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer.base import BuildError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["HEADERS", "TOOLS", "BuildStepError", "MissingError", "check", "run"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """A tool or header, and the Debian package that has it."""

    name: str
    package: str


TOOLS: Final = (
    Requirement("cc", "gcc"),
    Requirement("make", "make"),
    Requirement("pkg-config", "pkg-config"),
    Requirement("patch", "patch"),
    Requirement("tar", "tar"),
    Requirement("gzip", "gzip"),
)
HEADERS: Final = (
    Requirement("stdio.h", "libc6-dev"),
    Requirement("event2/event.h", "libevent-dev"),
    Requirement("openssl/ssl.h", "libssl-dev"),
    Requirement("ares.h", "libc-ares-dev"),
    Requirement("security/pam_appl.h", "libpam0g-dev"),
)
_ERROR: Final = re.compile(r"(configure: )?error: |: (fatal )?error: |undefined reference|\*\*\* ")


class MissingError(BuildError):
    """Tools or headers are missing: `missing` names them, `packages` the Debian packages."""

    def __init__(self, missing: Sequence[Requirement]) -> None:
        self.missing = tuple(item.name for item in missing)
        self.packages = tuple(item.package for item in missing)
        super().__init__(
            f"missing to build PgBouncer: {', '.join(self.missing)}"
            f" (Debian, Ubuntu: apt-get install {' '.join(self.packages)})"
        )


class BuildStepError(BuildError):
    """A step of the build failed; `line` is its first error, `log` holds all it printed."""

    def __init__(self, step: str, line: str, log: Path) -> None:
        self.step = step
        self.line = line
        self.log = log
        super().__init__(f"{step} failed: {line} (all of it: {log})")


def check(tools: Sequence[Requirement] = TOOLS, headers: Sequence[Requirement] = HEADERS) -> None:
    """Raise MissingError, naming everything at once, unless all of it is there."""
    missing = [tool for tool in tools if shutil.which(tool.name) is None]
    if not any(tool.name == "cc" for tool in missing):
        missing += _missing_headers(headers)
    if missing:
        raise MissingError(missing)


def _missing_headers(headers: Sequence[Requirement]) -> list[Requirement]:
    """Ask the preprocessor, which knows every folder the compiler will look into."""
    probe = "".join(
        f"#if !__has_include(<{header.name}>)\nmissing {number}\n#endif\n"
        for number, header in enumerate(headers)
    )
    done = subprocess.run(
        ["cc", "-E", "-P", "-x", "c", "-"],
        input=probe,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^missing (\d+)$", done.stdout, re.MULTILINE)
    return [headers[int(number)] for number in found]


def run(step: str, command: Sequence[str], tree: Path, log: Path) -> None:
    """Run a step of the build in `tree`, its output appended to `log`; raises BuildStepError.

    The step is a process group of its own and ends with this call, however this call ends.
    """
    # A make that calls us must not lend its job server, nor a shell its own flags.
    inherited = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CFLAGS", "CPPFLAGS", "LDFLAGS", "CC"}
    environment = {key: value for key, value in os.environ.items() if key not in inherited}
    start = log.stat().st_size if log.exists() else 0
    with (
        log.open("ab") as output,
        subprocess.Popen(
            command,
            cwd=tree,
            env={**environment, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        ) as process,
    ):
        try:
            status = process.wait()
        except BaseException:
            # make's compilers end with it: nothing writes into a tree about to be removed.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if status:
        printed = log.read_bytes()[start:].decode(errors="replace").splitlines()
        errors = (line for line in printed if _ERROR.search(line))
        raise BuildStepError(step, next(errors, f"exit status {status}").strip(), log)
