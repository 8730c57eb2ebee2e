"""A child process whose output goes to a file, and what the kernel says of any process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeeper.trial.errors import ProcessFailedError
from pgkeeper.trial.guard import MARK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgkeeper.trial.rundir import RunDir

# Variables that would point a client at another server, or a child at another service manager.
_DROPPED = ("PG", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID")
_KEPT = ("PGKEEPER_CACHE", "PGKEEPER_PATCHES")


def environment(mark: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without libpq's and the service manager's variables, with the run's mark."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith(_DROPPED)
    }
    return {**clean, MARK: mark, **(more or {})}


class Process:
    """A child in a session of its own, so that Ctrl-C in a terminal reaches only its owner.

    It starts in the run's directory. `privileged` keeps root (the hanger); otherwise it runs as
    the run's account.
    """

    def __init__(
        self,
        run_dir: RunDir,
        name: str,
        argv: Sequence[str | Path],
        *,
        output: Path,
        privileged: bool = False,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        account = None if privileged else run_dir.account
        with output.open("ab") as sink:
            self._popen = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=run_dir.path,
                env=environment(f"{run_dir.run_id}/{name}", env),
                start_new_session=True,
                pass_fds=pass_fds,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )

    @property
    def pid(self) -> int:
        """The child's pid, also after its end."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """False once it has ended (it is reaped then)."""
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal that killed it; None while it runs."""
        return self._popen.poll()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._popen.send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit code. Raises `ProcessFailedError` if it still runs after `seconds`."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ProcessFailedError(self.name, f"still running after {seconds:g} s") from None

    def stop(self, number: signal.Signals, seconds: float = 10.0) -> int:
        """Send `number` and wait for the end; the exit code.

        A child that does not end is killed, and `ProcessFailedError` raised: nothing is left,
        and the failure is not hidden.
        """
        self.send_signal(number)
        try:
            return self.wait(seconds)
        except ProcessFailedError:
            self.send_signal(signal.SIGKILL)
            self._popen.wait()
            raise


def descriptors(pid: int) -> list[str]:
    """What each open descriptor of `pid` points to (`socket:[1234]`, a path...), sorted.

    Raises ProcessLookupError or FileNotFoundError if there is no such process.
    """
    targets = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            targets.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # closed between the listing and the look
    return sorted(targets)


def state(pid: int) -> str:
    """The kernel's letter for what `pid` does ("S", "T", "Z"...); empty if it does not exist."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The state follows the program name, which stands in parentheses and may hold any character.
    return text.rpartition(")")[2].split()[0]


def alive(pid: int) -> bool:
    """Whether `pid` exists and is not a zombie."""
    return state(pid) not in ("", "Z", "X")


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that is not our child and wait until a signal that ends it has.

    SIGSTOP and SIGCONT return at once. Raises ProcessLookupError, or `ProcessFailedError` after
    10 s.
    """
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, number)
        if number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGHUP):
            return
        poll = select.poll()  # select() ends at descriptor 1023
        poll.register(handle, select.POLLIN)
        if not poll.poll(10_000):
            raise ProcessFailedError(str(pid), f"still runs 10 s after {number.name}")
    finally:
        os.close(handle)
