"""How long sessions wait when pgbouncer is killed: from SIGKILL to the answers of all of them.

So many sessions have prepared so many statements each. In each round every session executes one of
them and the clock runs until the last answer: once without a kill, for that is what the pooler and
PostgreSQL need in any case, and once with a SIGKILL right before the first is asked.
"""

from __future__ import annotations

import argparse
import json
import select
import signal
import statistics
import struct
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from benchmarks.instructions import SETTINGS
from testbed import binaries
from testbed.keeper import Keeper
from testbed.postgres import Postgres
from testbed.process import send
from testbed.rawclient import RawClient, frontend, text
from testbed.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Sequence

_SYNC = frontend("S")
_IDLE = frontend("Z", b"I")
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Milliseconds from the start of a round to the first, the median and the last answer."""

    first: float
    median: float
    last: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adoption", description=__doc__)
    parser.add_argument("--sessions", type=int, default=5000)
    parser.add_argument("--statements", type=int, default=200, help="of each session")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--standby", action="store_true", help="a second pgbouncer waits")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    settings = {
        **SETTINGS,
        "max_client_conn": options.sessions + 50,
        "max_prepared_statements": options.statements,
    }
    with (
        RunDir() as run_dir,
        Postgres(run_dir) as postgres,
        Keeper(
            run_dir, postgres, binaries.patched(), settings=settings, standby=options.standby
        ) as keeper,
    ):
        clients = [_session(keeper, options.statements) for _ in range(options.sessions)]
        try:
            quiet, killed, adoptions = [], [], []
            for number in range(options.rounds):
                ask = _execute(f"s{number % options.statements}")
                quiet.append(_round(clients, ask))
                before = keeper.status().pgbouncer
                assert before.pid is not None  # noqa: S101 (it was active)
                killed.append(_round(clients, ask, kill=before.pid))
                status = keeper.wait_active(after=before.incarnation)
                adoptions.append(status.adoptions.last_ms or 0.0)
        finally:
            for client in clients:
                client.close()
    _print(options, quiet, killed, adoptions)
    return 0


def _print(
    options: argparse.Namespace, quiet: list[Pause], killed: list[Pause], adoptions: list[float]
) -> None:
    if options.json:
        rounds = {"quiet": quiet, "killed": killed}
        answers = {name: [asdict(pause) for pause in pauses] for name, pauses in rounds.items()}
        print(json.dumps({**answers, "adoption_ms": adoptions}))
        return
    print(f"{options.sessions} sessions, {options.statements} statements each; medians of rounds")
    print("milliseconds to the answers     first   median     last")
    for title, pauses in (("without a kill", quiet), ("after SIGKILL", killed)):
        first, median, last = (
            statistics.median(getattr(pause, name) for pause in pauses)
            for name in ("first", "median", "last")
        )
        print(f"{title:<28}{first:>9.1f}{median:>9.1f}{last:>9.1f}")
    print(f"from SIGKILL to active: {statistics.median(adoptions):.1f} ms")


def _session(keeper: Keeper, statements: int) -> RawClient:
    """Logged in, with its statements; their texts are shared, their names are its own."""
    client = RawClient(keeper.host, keeper.port, timeout=_PATIENCE_S).login()
    parses = (
        frontend("P", text(f"s{number}"), text(f"SELECT {number}"), b"\0\0")
        for number in range(statements)
    )
    client.send(b"".join(parses) + _SYNC)
    size = statements * len(frontend("1")) + len(_IDLE)
    answer = client.read_bytes(size)
    assert answer.endswith(_IDLE)  # noqa: S101 (an error would be longer)
    return client


def _execute(name: str) -> bytes:
    bind = frontend("B", text(""), text(name), bytes(6))
    return bind + frontend("E", text(""), struct.pack("!i", 0)) + _SYNC


def _round(clients: list[RawClient], ask: bytes, *, kill: int = 0) -> Pause:
    """Ask all at once and wait for all; with `kill` that process dies first."""
    sockets = {client.socket.fileno(): client.socket for client in clients}
    answers = dict.fromkeys(sockets, b"")
    times: list[float] = []
    with select.epoll() as poll:
        for number in sockets:
            poll.register(number, select.EPOLLIN)
        begin = time.perf_counter()
        if kill:
            send(kill, signal.SIGKILL)
        for one in sockets.values():
            one.sendall(ask)
        while len(times) < len(clients):
            events = poll.poll(_PATIENCE_S)
            if not events:
                raise TimeoutError(f"{len(times)} of {len(clients)} were answered")
            for number, _ in events:
                answers[number] += sockets[number].recv(65536)
                if answers[number].endswith(_IDLE):
                    times.append((time.perf_counter() - begin) * 1000)
    return Pause(times[0], statistics.median(times), times[-1])


if __name__ == "__main__":
    sys.exit(main())
