"""CPU time of a transaction in even steps, so that the scheduler has no part in it.

lockstep.c is all clients and all servers of a pooler in one process, on the same processor as the
pooler, and neither preempts the other (SCHED_BATCH). In each step the pooler finds all sockets
ready and handles them one after the other. Its CPU time for so many steps is what its work costs;
`benchmarks.cpu`, with pgbench and PostgreSQL, varies by several percent with how many sockets
happen to be ready when it wakes. Nothing else is left in the caches either, and little is waited
for, so that a transaction costs half of what it costs there, and whatever the keeper adds counts
double.

The unpatched and the kept one take turns of a few milliseconds. Where in memory a process happens
to lie makes a difference of its own, up to a percent, so each is started several times. Needs a C
compiler, and a processor that nothing else uses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cpu import cpu_seconds
from benchmarks.pair import pair

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from testbed.pooler import Pooler

PROTOCOLS = ("simple", "extended")
_SESSIONS = (1, 16)
_SOURCE = Path(__file__).with_suffix(".c")
_DATABASE = "steps"


class LockstepError(Exception):
    """The measuring program has ended; it has said on stderr what it missed."""


class Lockstep:
    """The measuring program with its clients and servers. A context manager.

    It listens at `port` as soon as it is made; `join` connects its clients.
    """

    def __init__(self, program: Path, sessions: int, protocol: str) -> None:
        self.sessions = sessions
        self._process = subprocess.Popen(
            [program, str(sessions), protocol],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._read())

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, and with it all of its connections; again without harm."""
        assert self._process.stdin is not None  # noqa: S101 (it is a pipe)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def join(self, pooler: Pooler, pooler_pid: int, processor: int) -> None:
        """Connect the clients, and share that processor with the pooler. Raises `LockstepError`."""
        self._say(f"{pooler.host} {pooler.port} postgres {_DATABASE}")
        self._read()
        for pid in (pooler_pid, self._process.pid):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {processor})
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))

    def play(self, rounds: int) -> None:
        """Let each client ask so many times. Raises `LockstepError`."""
        self._say(str(rounds))
        self._read()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 (it is a pipe)
        print(line, file=self._process.stdin, flush=True)

    def _read(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 (it is a pipe)
        line = self._process.stdout.readline()
        if not line:
            raise LockstepError
        return line


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of CPU time a transaction, and what the kept one needs more, as a share.

    Means of the lives; `error` is the standard error of `more`.
    """

    protocol: str
    sessions: int
    unpatched: float
    keeper: float
    more: float
    error: float
    lives: int


def cost(protocol: str, sessions: int, lives: Sequence[tuple[float, float]]) -> Cost:
    """From what the unpatched and the kept one needed in each of at least two lives."""
    unpatched, keeper = (statistics.mean(one) for one in zip(*lives, strict=True))
    more = [kept / plain - 1 for plain, kept in lives]
    error = statistics.stdev(more) / len(more) ** 0.5
    return Cost(protocol, sessions, unpatched, keeper, statistics.mean(more), error, len(lives))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lockstep", description=__doc__)
    parser.add_argument("--lives", type=int, default=10, help="of each program; at least 2")
    parser.add_argument("--turns", type=int, default=200, help="of each program in a life")
    parser.add_argument("--transactions", type=int, default=1000, help="a turn")
    parser.add_argument("--sessions", type=int, action="append", help="at a time; can be repeated")
    parser.add_argument("--protocol", choices=PROTOCOLS, action="append")
    parser.add_argument("--processor", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--pgbouncer", type=Path, help="another patched binary than the built one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "lockstep"
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, _SOURCE], check=True)
        for protocol in options.protocol or PROTOCOLS:
            for sessions in options.sessions or _SESSIONS:
                lives = [_live(program, protocol, sessions, options) for _ in range(options.lives)]
                costs.append(cost(protocol, sessions, lives))
    if options.json:
        print(json.dumps([asdict(cost) for cost in costs]))
        return 0
    print("CPU us of a transaction, sessions at a time   unpatched   keeper   more")
    for one in costs:
        print(
            f"{one.protocol:<10}{one.sessions:>35}{one.unpatched:>12.3f}{one.keeper:>9.3f}"
            f"   {one.more:+.2%} +- {one.error:.2%}"
        )
    return 0


def _live(
    program: Path, protocol: str, sessions: int, options: argparse.Namespace
) -> tuple[float, float]:
    """Microseconds a transaction of the unpatched and of the kept one, in one life of both."""
    settings = {"default_pool_size": sessions, "server_idle_timeout": 0}
    with contextlib.ExitStack() as stack:
        steps = [stack.enter_context(Lockstep(program, sessions, protocol)) for _ in range(2)]
        plain, kept = ({_DATABASE: _route(step)} for step in steps)
        both = stack.enter_context(
            pair(options.pgbouncer, settings=settings, databases=(plain, kept))
        )
        for step in steps:  # before the poolers, which see to it that all clients have left
            stack.callback(step.close)
        poolers: tuple[tuple[Pooler, int], ...] = (
            (both.unpatched, both.unpatched.pid),
            (both.kept, both.kept.bouncer_pid),
        )
        for step, (pooler, pid) in zip(steps, poolers, strict=True):
            step.join(pooler, pid, options.processor)
        spent: tuple[list[float], list[float]] = ([], [])
        for number in range(options.turns + 1):
            for who in (0, 1) if number % 2 == 0 else (1, 0):
                spent[who].append(_turn(steps[who], poolers[who][1], options.transactions))
        # The first turn fills the caches.
        return statistics.mean(spent[0][1:]), statistics.mean(spent[1][1:])


def _turn(step: Lockstep, pid: int, transactions: int) -> float:
    """Microseconds of the process a transaction."""
    rounds = transactions // step.sessions
    before = cpu_seconds(pid)
    step.play(rounds)
    return (cpu_seconds(pid) - before) * 1e6 / (rounds * step.sessions)


def _route(step: Lockstep) -> str:
    return f"host=127.0.0.1 port={step.port} dbname={_DATABASE} pool_mode=transaction"


if __name__ == "__main__":
    sys.exit(main())
