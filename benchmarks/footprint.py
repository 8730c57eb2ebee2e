"""What is there while nothing happens: memory of idle sessions, and CPU time of the hanger."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figures import Bar, Figure
from benchmarks.load import pgbench_for
from benchmarks.pair import Pair, pair
from protocol.ledger_layouts import SLOT, UNIT
from testbed.ledgers import check_ledger, ledger_of
from testbed.rawclient import RawClient
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.scale import Scale
    from testbed.keeper import Keeper
    from testbed.pooler import Pooler

_CLIENTS = 16


def memory(scale: Scale) -> Iterator[Figure]:
    """Bytes that a session more costs each program, and the ledger, while it rests.

    Anonymous memory alone (proc(5), smaps_rollup): the ledger, which all map, is counted by what
    its committed slots need. The first half of the sessions is not counted, and with it what
    an allocator takes once and for all.
    """
    with pair(None, clients=scale.idle) as both:
        group, unit = "memory of an idle session", "bytes"
        (plain,) = _growth(both.unpatched, scale.idle, [lambda: _anonymous(both.unpatched.pid)])
        hanger, kept = both.kept.hanger.pid, both.kept.bouncer_pid
        looks: list[Callable[[], float]] = [
            lambda: _anonymous(kept),
            lambda: _ledger_bytes(both.kept),
            lambda: _anonymous(hanger),
        ]
        grown = _growth(both.kept, scale.idle, looks)
        yield Figure(group, "pgbouncer", unit, plain, grown[0])
        yield Figure(group, "ledger", unit, None, grown[1], bar=Bar(2000, ratio=False))
        yield Figure(group, "hanger", unit, None, grown[2], bar=Bar(1000, ratio=False))


def _growth(pooler: Pooler, count: int, looks: Sequence[Callable[[], float]]) -> list[float]:
    """What each look finds more, a session, from half of the sessions to all."""
    with _sessions(pooler, count // 2):
        half = [look() for look in looks]
        with _sessions(pooler, count - count // 2):
            full = [look() for look in looks]
    return [(b - a) / (count - count // 2) for a, b in zip(half, full, strict=True)]


@contextlib.contextmanager
def _sessions(pooler: Pooler, count: int) -> Iterator[None]:
    """So many that have logged in and asked once."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = RawClient(pooler.host, pooler.port)
            stack.callback(client.close)
            client.login().query("SELECT 1")
        yield


def _ledger_bytes(keeper: Keeper) -> float:
    usage = check_ledger(keeper)
    with ledger_of(keeper) as view:
        iobuf = view.geometry.iobuf_size
    slots = sum(usage.slots.values()) * SLOT.size
    return float(slots + usage.units * UNIT + usage.iobufs * iobuf)


def _anonymous(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Anonymous:"))
    return int(line.split()[1]) * 1024


def hanger(scale: Scale) -> Iterator[Figure]:
    """The hanger's CPU time while nothing connects: sessions rest, and sessions work."""
    with pair(None, clients=scale.idle) as both, _sessions(both.kept, scale.idle):
        wait_until(
            lambda: both.kept.status().sessions.clients_held >= scale.idle,
            what="all sessions are held",
        )
        group, unit, bar = "CPU of the hanger", "% of a core", Bar(0.1, ratio=False)
        rest = _share(both, scale.still_s)
        yield Figure(group, f"{scale.idle} sessions rest", unit, None, rest, bar=bar)
        busy = _busy_share(both, scale)
        yield Figure(group, f"and {_CLIENTS} work", unit, None, busy, bar=bar)


def _share(both: Pair, seconds: float) -> float:
    """Percent of a core over a time, after what came before has been dealt with."""
    pid = both.kept.hanger.pid
    time.sleep(1)
    began, before = time.perf_counter(), _cpu_seconds(pid)
    time.sleep(seconds)
    return 100 * (_cpu_seconds(pid) - before) / (time.perf_counter() - began)


def _busy_share(both: Pair, scale: Scale) -> float:
    """The same in the middle of a load whose clients have logged in before."""
    with ThreadPoolExecutor(1) as pool:
        conninfo = both.kept.conninfo(connect_timeout=60)
        seconds = int(scale.still_s) + 4
        load = pool.submit(pgbench_for, both.run_dir, conninfo, _CLIENTS, seconds)
        held = scale.idle + _CLIENTS
        wait_until(
            lambda: both.kept.status().sessions.clients_held >= held, what="the load has begun"
        )
        share = _share(both, scale.still_s)
        load.result()
    return share


def _cpu_seconds(pid: int) -> float:
    """Time on a CPU, user and system (proc(5), /proc/PID/schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
