"""What the kernel says about a process from outside: proc(5)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Sighting", "inspect"]

# Of /proc/PID/stat, counted from the state, which follows the parenthesis: utime and stime.
_TIMES: Final = (11, 12)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A process at one moment.

    - `state`: the kernel's letter: R runs or wants to, S waits, D waits for a device, T is stopped.
    - `traced`: a debugger is attached.
    - `cpu_s`: seconds of processor time it has used.
    """

    state: str
    traced: bool
    cpu_s: float

    @property
    def runnable(self) -> bool:
        """Whether it waits for nothing but the processor."""
        return self.state == "R"


def inspect(pid: int) -> Sighting | None:
    """Look at process `pid`; None where that is impossible: it has gone, or is hidden."""
    folder = Path("/proc") / str(pid)
    try:
        stat = (folder / "stat").read_text().rpartition(")")[2].split()
        status = (folder / "status").read_text().splitlines()
        ticks = sum(int(stat[at]) for at in _TIMES)
    except (OSError, ValueError, IndexError):
        return None
    tracer = next((line.split()[1] for line in status if line.startswith("TracerPid:")), "0")
    return Sighting(stat[0], tracer != "0", ticks / os.sysconf("SC_CLK_TCK"))
