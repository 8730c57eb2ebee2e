"""What it costs the hanger to be watched: scrapes of its metrics, and lists of its sessions.

With so many idle sessions: how long a scrape (or a list) takes, what CPU time of the hanger, and
how long anything else waits meanwhile. The last is asked all the time over another connection; the
same without a scrape stands beside it. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import statistics
import sys
import threading
import time
from typing import TYPE_CHECKING

from benchmarks.cpu import cpu_seconds
from benchmarks.herd import Herd
from benchmarks.instructions import SETTINGS
from pgkeeper.control.report import TopQuery
from testbed import binaries
from testbed.keeper import Keeper
from testbed.postgres import Postgres
from testbed.rundir import RunDir
from testbed.waiting import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STATEMENTS = 4
_PAUSE = 1.1  # seconds; an answer is shared for one


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__)
    parser.add_argument("--sessions", type=int, default=9000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(argv)
    port = free_port()
    settings = {
        **SETTINGS,
        "max_client_conn": options.sessions + 50,
        "max_prepared_statements": _STATEMENTS,
        "listen_backlog": 1024,
    }
    with (
        RunDir() as run_dir,
        Postgres(run_dir) as postgres,
        Keeper(
            run_dir,
            postgres,
            binaries.patched(),
            settings=settings,
            standby=True,
            options=["--metrics", str(port)],
        ) as keeper,
        Herd(run_dir, keeper, options.sessions, _STATEMENTS),
    ):
        print(f"{options.sessions} sessions, {options.rounds} rounds; milliseconds")
        print("                      takes (median)    CPU of the hanger    longest wait of others")
        for title, act in (
            ("nothing", lambda: time.sleep(0.2)),
            ("scrape", lambda: _get(port, "/metrics")),
            ("status", keeper.status),
            ("top", lambda: keeper.client.top(TopQuery())),
            ("sessions", keeper.sessions),
        ):
            _measure(title, act, options.rounds, keeper, port)
    return 0


def _measure(title: str, act: Callable[[], object], rounds: int, keeper: Keeper, port: int) -> None:
    pid = keeper.hanger.pid
    took, cpu, longest = [], [], []
    for _ in range(rounds):
        time.sleep(_PAUSE)
        before, start = cpu_seconds(pid), time.perf_counter()
        act()
        took.append(time.perf_counter() - start)
        cpu.append(cpu_seconds(pid) - before)
        time.sleep(_PAUSE)
        with _Waiting(port) as waiting:
            act()
        longest.append(waiting.longest)
    print(
        f"{title:<20}{statistics.median(took) * 1000:>16.1f}"
        f"{statistics.median(cpu) * 1000:>21.1f}"
        f"{statistics.median(longest) * 1000:>19.1f} ({max(longest) * 1000:.1f})"
    )


class _Waiting:
    """Asks for the hanger's health without end; `longest` is the longest answer, in seconds."""

    def __init__(self, port: int) -> None:
        self.longest = 0.0
        self._port = port
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> _Waiting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._end.is_set():
            start = time.perf_counter()
            _get(self._port, "/healthz")
            self.longest = max(self.longest, time.perf_counter() - start)


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


if __name__ == "__main__":
    sys.exit(main())
