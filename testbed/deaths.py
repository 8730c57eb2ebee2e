"""The ways in which a pgbouncer dies, each followed by the wait for its successor."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.process import send
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.keeper import Keeper

    Death = Callable[[Keeper], None]

_MEMORY = Path("/sys/fs/cgroup/memory")


def killed(keeper: Keeper) -> None:
    """SIGKILL, as `docker kill` sends it."""
    keeper.kill_bouncer()


def crashed(keeper: Keeper) -> None:
    """SIGSEGV: what a wild pointer comes to."""
    keeper.kill_bouncer(signal.SIGSEGV)


def aborted(keeper: Keeper) -> None:
    """SIGABRT: what a failed assertion comes to."""
    keeper.kill_bouncer(signal.SIGABRT)


def stopped_and_killed(keeper: Keeper) -> None:
    """SIGSTOP at an arbitrary instruction, and SIGKILL when the clients have been waiting."""
    before = keeper.status().pgbouncer
    assert before.pid is not None  # noqa: S101 (as everywhere in the bed: it was active)
    send(before.pid, signal.SIGSTOP)
    wait_until(lambda: _state(before.pid) == "T", what="pgbouncer stands still", poll_s=0)
    time.sleep(random.uniform(0, 0.03))  # noqa: S311 (how long the outage lasts, no secret)
    send(before.pid, signal.SIGKILL)
    keeper.wait_active(after=before.incarnation)


_CRASHES: tuple[Death, ...] = (crashed, aborted)
_KILLS: tuple[Death, ...] = (killed, stopped_and_killed)


def random_deaths(seed: int) -> Iterator[Death]:
    """Any of them, without end; no crash follows a crash, for then the hanger bides its time."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    while True:
        death = chance.choice(_CRASHES + _KILLS)
        yield death
        if death in _CRASHES:
            yield chance.choice(_KILLS)


def can_limit_memory() -> bool:
    """Whether this machine lets us make a memory cgroup (version 1) of our own."""
    return os.geteuid() == 0 and (_MEMORY / "memory.limit_in_bytes").exists()


@contextlib.contextmanager
def memory_limit(pid: int, more: int, name: str) -> Iterator[None]:
    """Let process `pid` have `more` bytes beyond what it has now: the kernel kills it at the next.

    `name` is the cgroup's. The limit goes with the process; the cgroup is removed in the end.
    """
    group = _MEMORY / name
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(more))
        # What it has stays charged to where it was.
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        wait_until(lambda: _removed(group), what="the cgroup is gone", seconds=5)


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def _state(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
