"""How long a client waits when its pgbouncer is killed, beside one that is merely started again.

Three poolers with so many sessions each, which are killed in turns: one with a standby, one without
it, and an unpatched one that is started again the moment it ends, and whose clients connect again
as soon as they notice. A round asks one session, or all of them at once, right after the SIGKILL,
or each of them once within half a second, as clients do that know nothing of each other; the clock
stops at the right answer. Beside it stands the same without a kill.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import select
import signal
import statistics
import sys
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.herd import Herd
from benchmarks.instructions import SETTINGS
from pgkeeper.bouncer.pidfd import Pidfd
from testbed import binaries
from testbed.keeper import Keeper
from testbed.pooler import Pooler
from testbed.postgres import Postgres
from testbed.process import Process
from testbed.rundir import RunDir
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_SERVERS: Final = 20
#: net.core.somaxconn: a shorter backlog would keep those who come back waiting for a second.
_BACKLOG: Final = 4096
#: Seconds before each round: a death is no sequel to the last one's, whose standby just starts.
_REST_S: Final = 0.2
#: Milliseconds over which all are asked one after the other.
_IN_TURN_MS: Final = 500


class Restarted:
    """An unpatched pgbouncer that is started again as soon as the kernel says that it has ended.

    As the hanger does it: told by its pidfd, with nothing in between. A context manager.
    """

    def __init__(
        self, run_dir: RunDir, postgres: Postgres, settings: Mapping[str, str | int | None]
    ) -> None:
        # As root, who then becomes the run's account: so ours is started too.
        user = {} if run_dir.account is None else {"user": run_dir.account.name}
        self.pooler = Pooler(run_dir, postgres, name="unpatched", settings={**settings, **user})
        self._run_dir = run_dir
        self._command: list[str | Path] = [
            run_dir.usable(binaries.vanilla()),
            "-q",
            self.pooler.ini_path,
        ]
        self._ending = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Restarted:
        self._thread.start()
        wait_until(self.pooler.answers, what="the unpatched pgbouncer answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._process.send_signal(signal.SIGKILL)
        self._thread.join()

    @property
    def pid(self) -> int:
        """The one that runs now."""
        return self._process.pid

    def _start(self) -> Process:
        return Process(
            *(self._run_dir, "unpatched", self._command),
            output=self.pooler.output.path,
            privileged=True,
        )

    def _watch(self) -> None:
        while True:
            with Pidfd.open(self._process.pid) as pidfd:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll()
            self._process.wait(10)
            if self._ending.is_set():
                return
            self._process = self._start()


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the poolers with its sessions, and who carries them now."""

    name: str
    herd: Herd
    pid: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds from the SIGKILL (or, `killed` false, from the question) to an answer.

    `answer`: of the one that was asked; the first, the middle and the last of all that were asked
    at once; of those asked in turn the longest wait, and the time (from the SIGKILL, or the
    beginning) until nobody waited any more.
    """

    subject: str
    sessions: int
    killed: bool
    answer: str
    p10: float
    median: float
    p90: float
    highest: float
    rounds: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pause", description=__doc__)
    parser.add_argument("--sessions", type=int, action="append", help="100 and 5000 if not given")
    parser.add_argument("--rounds", type=int, default=20, help="of each kind, alternating")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    figures = []
    for sessions in options.sessions or (100, 5000):
        figures += _measure(sessions, options.rounds)
        if not options.json:
            _print(figures)
            figures.clear()
    if options.json:
        print(json.dumps([asdict(figure) for figure in figures]))
    return 0


def _measure(sessions: int, rounds: int) -> list[Figures]:
    times: dict[tuple[str, bool, str], list[float]] = defaultdict(list)
    with _subjects(sessions) as subjects:
        for number in range(rounds + 1):
            # Who comes first changes, so that a drift favours nobody.
            turn = number % len(subjects)
            for subject in (*subjects[turn:], *subjects[:turn]):
                for killed in (False, True):
                    answers = _answers(subject, number, sessions, killed=killed)
                    if number == 0:
                        continue  # servers are logged in, and caches filled
                    for answer, ms in answers.items():
                        times[subject.name, killed, answer].append(ms)
    return [
        _figures(name, sessions, killed, answer, measured)
        for (name, killed, answer), measured in times.items()
    ]


def _answers(subject: Subject, number: int, sessions: int, *, killed: bool) -> dict[str, float]:
    """A round that asks one session, one that asks all at once, and one that does so in turn."""
    pauses = []
    for asked, over_ms in ((1, 0), (sessions, 0), (sessions, _IN_TURN_MS)):
        pid = subject.pid()
        time.sleep(_REST_S)
        kill = pid if killed else 0
        pauses.append(subject.herd.play(number, kill=kill, asked=asked, over_ms=over_ms))
    one, several, in_turn = pauses
    return {
        "the one asked": one.first,
        "first of all": several.first,
        "median of all": several.median,
        "last of all": several.last,
        "longest in turn": in_turn.longest,
        "caught up in turn": in_turn.caught_up,
    }


@contextlib.contextmanager
def _subjects(sessions: int) -> Iterator[tuple[Subject, ...]]:
    """All three at once; those that are not at work are at rest."""
    settings = {
        **SETTINGS,
        "max_client_conn": sessions + 50,
        "default_pool_size": _SERVERS,
        "listen_backlog": _BACKLOG,
    }
    with contextlib.ExitStack() as stack:
        run_dir = stack.enter_context(RunDir())
        postgres = stack.enter_context(Postgres(run_dir))
        found = []
        for name, standby in (("standby", True), ("no standby", False)):
            keeper = stack.enter_context(
                Keeper(
                    run_dir,
                    postgres,
                    binaries.patched(),
                    name=name.replace(" ", "-"),
                    settings=settings,
                    standby=standby,
                )
            )
            herd = stack.enter_context(Herd(run_dir, keeper, sessions, 1))
            found.append(Subject(name, herd, functools.partial(_serving, keeper)))
        other = stack.enter_context(Restarted(run_dir, postgres, settings))
        herd = stack.enter_context(Herd(run_dir, other.pooler, sessions, 1, returns=True))
        found.append(Subject("unpatched", herd, lambda: other.pid))
        yield tuple(found)


def _serving(keeper: Keeper) -> int:
    """Who serves, once all is as it was before the last kill."""
    pid = keeper.wait_active().pgbouncer.pid
    assert pid is not None  # noqa: S101 (one that is active has a pid)
    return pid


def _figures(name: str, sessions: int, killed: bool, answer: str, ms: list[float]) -> Figures:
    tenths = statistics.quantiles(ms, n=10, method="inclusive")
    return Figures(
        name,
        sessions,
        killed,
        answer,
        tenths[0],
        statistics.median(ms),
        tenths[-1],
        max(ms),
        len(ms),
    )


def _print(figures: list[Figures]) -> None:
    print(f"{figures[0].sessions} sessions, {figures[0].rounds} rounds; milliseconds")
    print("pgbouncer    killed   answer of              p10    median       p90   highest")
    for one in figures:
        print(
            f"{one.subject:<13}{'SIGKILL' if one.killed else 'no':<9}{one.answer:<18}"
            + "".join(f"{ms:>10.1f}" for ms in (one.p10, one.median, one.p90, one.highest))
        )


if __name__ == "__main__":
    sys.exit(main())
