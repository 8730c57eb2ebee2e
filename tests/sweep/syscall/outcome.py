"""What a run of a workload left behind, and how two runs differ."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONTEXT = 60

# PostgreSQL's log of the workload's users (log_line_prefix of the test bed): pid and message.
_LOGGED = re.compile(r" \[(\d+)\] sweeper\w*@postgres (\w+:  .*)")
# How far a server had come when its connection was closed on purpose.
_UNSETTLED = re.compile(
    "could not (send|receive)|connection to client lost|administrator command|protocol sync"
)
# A statement's number is PgBouncer's and grows from run to run.
_NUMBER = re.compile(r"PGBOUNCER_\d+")
_WRONG = re.compile(
    "could not go on|damaged|not held|ledger is full|Assert|FATAL|Sanitizer|runtime error|Traceback"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The clients' transcripts, the rows in their order, the server's log, sorted.

    `wrong` are findings that need no comparison: what never happens in an exact run.
    """

    transcripts: Mapping[str, bytes]
    acts: tuple[str, ...]
    logged: tuple[str, ...]
    wrong: tuple[str, ...] = ()


def server_log(text: str) -> tuple[str, ...]:
    """What the server's sessions did according to its log, sorted.

    One that ran no statement is left out: a server login dies with the process that was at it,
    and the next one begins another.
    """
    sessions: dict[str, list[str]] = {}
    for pid, line in _LOGGED.findall(_NUMBER.sub("PGBOUNCER_n", text)):
        if not _UNSETTLED.search(line):
            sessions.setdefault(pid, []).append(line)
    worked = (
        lines
        for lines in sessions.values()
        if any(line.startswith(("LOG:  statement", "LOG:  execute")) for line in lines)
    )
    return tuple(sorted(itertools.chain.from_iterable(worked)))


def alarms(text: str) -> list[str]:
    """The lines of the hanger's and PgBouncer's output that never stand there in an exact run."""
    return [line for line in text.splitlines() if _WRONG.search(line)]


def differences(reference: Outcome, outcome: Outcome) -> list[str]:
    """What differs from the run that nobody killed, in words; empty if nothing does."""
    found = list(outcome.wrong)
    for name in sorted({*reference.transcripts, *outcome.transcripts}):
        want, got = reference.transcripts.get(name, b""), outcome.transcripts.get(name, b"")
        if want != got:
            found.append(_first_difference(name, want, got))
    if reference.acts != outcome.acts:
        found.append(_compare("acts", reference.acts, outcome.acts))
    if reference.logged != outcome.logged:
        found.append(_compare("log of the server", reference.logged, outcome.logged))
    return found


def _first_difference(name: str, want: bytes, got: bytes) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b),
        min(len(want), len(got)),
    )
    start, end = max(at - _CONTEXT, 0), at + _CONTEXT
    return (
        f"client {name}: {len(got)} bytes instead of {len(want)}, the first difference at {at}:\n"
        f"    want {want[start:at]!r} | {want[at:end]!r}\n"
        f"    got  {got[start:at]!r} | {got[at:end]!r}"
    )


def _compare(what: str, want: tuple[str, ...], got: tuple[str, ...]) -> str:
    more, less = Counter(got) - Counter(want), Counter(want) - Counter(got)
    if not more and not less:
        return f"{what}: in another order: {got}"
    return f"{what}: too much {dict(more)}, missing {dict(less)}"
