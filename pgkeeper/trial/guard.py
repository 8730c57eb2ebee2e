"""Clears up behind a run, however the run ended.

Started by `RunDir` as a script of its own, in its own session, with a pipe as standard input. The
pipe ends when the owner closes it or dies, be it by SIGKILL; then every process that carries the
run's mark in its environment is ended and the run's directory removed. What still ran is written
to standard output, one line a process: an owner that stopped everything itself reads nothing.

Standard library only, and nothing of ours: it is run with `python -I -S`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

# Children inherit it, and theirs too, so a successor that the hanger starts is found as well.
MARK = "PGKEEPER_RUN_ID"

_PATIENCE_S = 3.0


def marked(run_id: str, name: str = "") -> list[int]:
    """The pids of living processes whose environment says `run_id/name`, or any name if empty.

    PostgreSQL's backends overwrite their environment with the process title and are not found;
    they end with the postmaster, which is.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _carries(int(entry.name), run_id, name):
            found.append(int(entry.name))
    return sorted(found)


def describe(pid: int) -> str:
    """`pid command line`, for a message; the program name alone can be read of a zombie."""
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return f"{pid} {line}"
    return f"{pid} (gone)"


def _carries(pid: int, run_id: str, name: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    wanted = f"{MARK}={run_id}/{name}".encode()
    return any(
        entry == wanted if name else entry.startswith(wanted) for entry in environment.split(b"\0")
    )


def _signal_all(run_id: str, number: signal.Signals) -> None:
    for pid in marked(run_id):
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                # Looked at again behind the handle: the pid may have passed to a stranger.
                if _carries(pid, run_id, ""):
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)


def end_all(run_id: str) -> None:
    """End every marked process: SIGQUIT first, then SIGKILL until none is left.

    SIGQUIT is PostgreSQL's immediate shutdown: the postmaster ends its backends and removes its
    System V shared memory segment, which would outlive a SIGKILL.
    """
    _signal_all(run_id, signal.SIGQUIT)
    deadline = time.monotonic() + _PATIENCE_S
    while marked(run_id):
        if time.monotonic() > deadline:
            _signal_all(run_id, signal.SIGKILL)
        time.sleep(0.01)


def main(run_id: str, directory: str) -> None:
    """Wait for the end of standard input, then clear up; see the module."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    left = [describe(pid) for pid in marked(run_id)]
    end_all(run_id)
    shutil.rmtree(directory, ignore_errors=True)
    # Nobody reads when the owner was killed.
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), "".join(f"{line}\n" for line in left).encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
