"""How long sessions wait when pgbouncer is killed: from SIGKILL to the answers of all of them.

So many sessions have prepared so many statements each. In each round every session executes one of
them and the clock runs until the last answer: once without a kill, for that is what the pooler and
PostgreSQL need in any case, and once with a SIGKILL right before the first is asked. They are asked
all at once, and in another round each once within half a second. The client is herd.c, which checks
each answer. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING

from benchmarks.herd import Herd
from benchmarks.instructions import SETTINGS
from testbed import binaries
from testbed.keeper import Keeper
from testbed.postgres import Postgres
from testbed.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.herd import Pause

_SERVERS = 20
_IN_TURN_MS = 500
#: Which of a round's figures are told, and how they are called.
_AT_ONCE = {"first": "first", "median": "median", "last": "last"}
_IN_TURN = {"longest": "longest wait", "caught_up": "caught up"}
_ADOPTED = re.compile(r"adopted .* in (\d+) us")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adoption", description=__doc__)
    parser.add_argument("--sessions", type=int, default=5000)
    parser.add_argument("--statements", type=int, default=200, help="of each session")
    parser.add_argument("--rounds", type=int, default=9, help="of each kind, alternating")
    parser.add_argument("--standby", action="store_true", help="a second pgbouncer waits")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    settings = {
        **SETTINGS,
        "max_client_conn": options.sessions + 50,
        "max_prepared_statements": options.statements,
        "default_pool_size": _SERVERS,
        "listen_backlog": 1024,
    }
    answers: dict[str, list[Pause]] = defaultdict(list)
    active, adopting = [], []
    with (
        RunDir() as run_dir,
        Postgres(run_dir) as postgres,
        Keeper(
            run_dir, postgres, binaries.patched(), settings=settings, standby=options.standby
        ) as keeper,
        Herd(run_dir, keeper, options.sessions, options.statements) as herd,
    ):
        herd.play(0)
        for number in range(options.rounds):
            for over_ms in (0, _IN_TURN_MS):
                how = "in turn, " if over_ms else ""
                answers[f"{how}no kill"].append(herd.play(number, over_ms=over_ms))
                before = keeper.status().pgbouncer
                pause = herd.play(number, kill=before.pid or 0, over_ms=over_ms)
                answers[f"{how}SIGKILL"].append(pause)
                status = keeper.wait_active(after=before.incarnation)
                active.append(status.adoptions.last_ms or 0.0)
                adopting.append(_adoption_ms(keeper))
    if options.json:
        rounds = {name: [asdict(pause) for pause in pauses] for name, pauses in answers.items()}
        print(json.dumps({"answers": rounds, "active_ms": active, "adoption_ms": adopting}))
    else:
        _print(options, answers, active, adopting)
    return 0


def _adoption_ms(keeper: Keeper) -> float:
    """What the last pgbouncer says that its adoption took."""
    return int(_ADOPTED.findall(keeper.log.read())[-1]) / 1000


def _print(
    options: argparse.Namespace,
    answers: Mapping[str, list[Pause]],
    active: list[float],
    adopting: list[float],
) -> None:
    print(
        f"{options.sessions} sessions, {options.statements} statements each,"
        f" {'a' if options.standby else 'no'} standby; {options.rounds} rounds of each kind"
    )
    print("milliseconds                      lowest    median   highest")
    for title, values in (
        ("SIGKILL to active", active),
        ("  of it, adoption", adopting),
        *(
            (f"{how}: {title}", [getattr(pause, name) for pause in pauses])
            for how, pauses in answers.items()
            for name, title in (_IN_TURN if how.startswith("in turn") else _AT_ONCE).items()
        ),
    ):
        figures = (min(values), statistics.median(values), max(values))
        print(f"{title:<31}" + "".join(f"{figure:>10.1f}" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
