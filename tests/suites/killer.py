"""Kills pgbouncer while somebody else's suite runs."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.keeper import Keeper

_KILL_EVERY_S = 0.2


class Killer:
    """Kills the pgbouncer of a keeper again and again, as a context manager; `kills` counts."""

    def __init__(self, keeper: Keeper) -> None:
        self.kills = 0
        self._keeper = keeper
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self._work_done: Future[None] | None = None

    def __enter__(self) -> Killer:
        self._work_done = self._threads.submit(self._work)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        if self._work_done is not None:
            self._work_done.result()

    def _work(self) -> None:
        while not self._stop.wait(_KILL_EVERY_S):
            self._keeper.kill_bouncer()
            self.kills += 1
