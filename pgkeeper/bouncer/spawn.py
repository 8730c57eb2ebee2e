"""Starting pgbouncer so that it can outlive us, and saying how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer.pidfd import Pidfd
from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "SOCKET_ENVIRONMENT",
    "CannotStartError",
    "Child",
    "Exit",
    "Foster",
    "Launch",
    "NoKeeperSupportError",
    "UserMissingError",
    "check_keeper_support",
    "start",
]

#: Where pgbouncer finds the hanger, whatever keeper_socket in its ini says.
SOCKET_ENVIRONMENT: Final = "PGBOUNCER_KEEPER_SOCKET"

#: What `pgbouncer --version` prints when it has our patch.
_VERSION_LINE: Final = "keeper:"
_VERSION_TIMEOUT: Final = 10.0

# The service manager's socket is the hanger's: pgbouncer's own READY=1 would speak for it.
_NOT_INHERITED: Final = frozenset(
    {"NOTIFY_SOCKET", "FDSTORE", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
)


class CannotStartError(PgkeeperError):
    """`binary` could not be started; `reason` says why."""

    def __init__(self, binary: Path, reason: str) -> None:
        self.binary = binary
        self.reason = reason
        super().__init__(f"cannot start {binary}: {reason}")


class NoKeeperSupportError(PgkeeperError):
    """`binary` is a pgbouncer without our patch."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        super().__init__(f"{binary} has no keeper support: build it with `pgkeeper build`")


class UserMissingError(PgkeeperError):
    """We are root and the ini at `path` names no user to run pgbouncer as."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(
            f"{path}: PgBouncer does not run as root: set user in [pgbouncer],"
            " or start pgkeeper as an unprivileged user"
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: the binary, its ini, and the hanger's socket it is to connect to."""

    binary: Path
    ini: Path
    socket: Path


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: `code` or `signal`; neither is known of one that was not our child."""

    code: int | None = None
    signal: int | None = None

    @classmethod
    def of(cls, returncode: int) -> Exit:
        """From `subprocess`, which gives signals as negative numbers."""
        return cls(signal=-returncode) if returncode < 0 else cls(code=returncode)

    @property
    def known(self) -> bool:
        """Whether anything is known of it."""
        return self.code is not None or self.signal is not None

    @property
    def by_itself(self) -> bool:
        """Whether the process is to blame: an error status, or a signal that nobody sends.

        SIGKILL comes from outside (an operator, the OOM killer); SIGTERM ends pgbouncer with 0.
        """
        outside = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
        if self.signal is not None:
            return self.signal not in outside
        return bool(self.code)

    def __str__(self) -> str:
        if self.signal is not None:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(self.signal).name}"
            return f"killed by signal {self.signal}"
        return "unknown" if self.code is None else f"exit status {self.code}"


class Child:
    """A pgbouncer that we started: reap it with `wait` once its `pidfd` says that it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], pidfd: Pidfd) -> None:
        self.pid = process.pid
        self.pidfd = pidfd
        self._process = process

    def wait(self) -> Exit:
        """Reap the process; blocks until it has ended."""
        return Exit.of(self._process.wait())


class Foster(Child):
    """A pgbouncer that another hanger started: how it ended, only its parent will be told.

    Its parent has ended, so what reaps orphans reaps it.
    """

    def __init__(self, pid: int, pidfd: Pidfd) -> None:
        self.pid = pid
        self.pidfd = pidfd

    def wait(self) -> Exit:
        """Nothing is known of it but that it has ended."""
        return Exit()


def start(launch: Launch, *, environ: Mapping[str, str] | None = None) -> Child:
    """Start pgbouncer in a session of its own, so that our terminal's Ctrl-C does not reach it.

    Its output goes to our stderr; core dumps are off, since they would delay the news of its death
    by seconds.  Nothing ties its life to ours.  Raises `CannotStartError`.
    """
    inherited = os.environ if environ is None else environ
    environment = {name: inherited[name] for name in inherited if name not in _NOT_INHERITED}
    environment[SOCKET_ENVIRONMENT] = str(launch.socket)
    try:
        process = subprocess.Popen(
            [launch.binary, launch.ini],
            stdin=subprocess.DEVNULL,
            stdout=2,
            stderr=2,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise CannotStartError(launch.binary, os.strerror(error.errno or 0)) from None
    # A core filter of nothing is for the case that core_pattern is a pipe, which ignores the limit.
    with contextlib.suppress(OSError, ValueError):
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        Path(f"/proc/{process.pid}/coredump_filter").write_text("0", encoding="ascii")
    return Child(process, Pidfd.open(process.pid))


async def check_keeper_support(binary: Path) -> None:
    """Ask `binary` for its version.  Raises `CannotStartError`, `NoKeeperSupportError`."""
    loop = asyncio.get_running_loop()
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 - does not wait for it
            [binary, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise CannotStartError(binary, os.strerror(error.errno or 0)) from None
    ended = asyncio.Event()
    with process, Pidfd.open(process.pid) as pidfd:
        loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(_VERSION_TIMEOUT):
                await ended.wait()
        except TimeoutError:
            raise CannotStartError(binary, "it does not answer to --version") from None
        finally:
            loop.remove_reader(pidfd)
            if process.poll() is None:
                process.kill()
        output = process.communicate()[0]
    lines = output.decode("utf-8", "replace").splitlines()
    if not any(line.startswith(_VERSION_LINE) for line in lines):
        raise NoKeeperSupportError(binary)
