#!/usr/bin/env python3
"""What CI runs on a clean checkout: `./dev test`, at most 90 minutes, no process left behind.

Exit status: that of `./dev test`, or 124 when the time is up. Processes the tests left running
are named on stderr and ended; being the subreaper (prctl(2)) of everything below, this process
sees them however they daemonized.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LIMIT_S = 90 * 60
GRACE_S = 10
PR_SET_CHILD_SUBREAPER = 36


def children() -> dict[int, str]:
    """The names of this process's living children by process id, from proc_pid_stat(5)."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text(errors="replace").rpartition(")")
        except OSError:  # it ended meanwhile
            continue
        state, parent = rest.split()[:2]
        if int(parent) == os.getpid() and state != "Z":
            found[int(stat.parent.name)] = name.partition("(")[2]
    return found


def reap() -> None:
    """Collect every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def sweep() -> None:
    """End everything below this process: SIGTERM, and SIGKILL after a grace period."""
    deadline = time.monotonic() + GRACE_S
    asked: set[int] = set()
    while left := children():
        late = time.monotonic() > deadline
        for pid, name in left.items():
            if pid not in asked or late:
                print(f".ci/run: ending what was left behind: {name} ({pid})", file=sys.stderr)
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.05)
        reap()
    reap()


def main() -> int:
    """Run the tests and clean up after them."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(128 + signum))
    try:
        tests = subprocess.Popen(["./dev", "test"], cwd=Path(__file__).resolve().parents[1])
        return tests.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f".ci/run: not finished after {LIMIT_S // 60} minutes", file=sys.stderr)
        return 124
    finally:
        sweep()


if __name__ == "__main__":
    sys.exit(main())
