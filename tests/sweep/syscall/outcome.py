"""What a run of a workload left behind, and how two runs differ."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONTEXT = 60

# PostgreSQL's log of the workload's users (log_line_prefix of the test bed): pid and message.
_LOGGED = re.compile(r" \[(\d+)\] sweeper\w*@postgres (\w+:  .*)")
# How far a server had come when its connection was closed on purpose.
_UNSETTLED = re.compile(
    "could not (send|receive)|connection to client lost|administrator command|protocol sync"
    # Its places in the log, and how often it looked for one.
    "|logical decoding|DETAIL:  (Streaming transactions|There are no running)"
)
# A statement's number is PgBouncer's and grows from run to run; a client's port is the kernel's.
_NUMBER = re.compile(r"(PGBOUNCER_|127\.0\.0\.1:)\d+")
_WORK = ("LOG:  statement", "LOG:  execute")
# connect_query is a part of the login: it runs again when the login has to begin anew.
CONNECT_QUERY = "SET work_mem = 3072"
# The janitor may come between a login or check and who waits for the server: it is checked then.
CHECK_QUERY = "SELECT 'checked'"
# varcache.c ends each SET with a semicolon, as no workload does. And where an answer fills the
# buffer exactly, upstream may release its server, and reset it, one query late.
# How often the janitor checks a server that rests is a matter of time.
_BETWEEN = re.compile(f"LOG:  statement: (SET .*;|DISCARD ALL|{CHECK_QUERY})$")
_WRONG = re.compile(
    "could not go on|damaged|not held|ledger is full|Assert|FATAL|Sanitizer|runtime error|Traceback"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The clients' transcripts, the rows in their order, what each server did, sorted.

    `wrong` are findings that need no comparison: what never happens in an exact run.
    """

    transcripts: Mapping[str, bytes]
    acts: tuple[str, ...]
    logged: tuple[tuple[str, ...], ...]
    wrong: tuple[str, ...] = ()


def server_log(text: str) -> tuple[tuple[str, ...], ...]:
    """What each of the server's sessions did according to its log, in its order; sorted.

    One that ran no statement is left out: a server login dies with the process that was at it,
    and the next one begins another. A check of a server that nobody had since the last is, too.
    """
    sessions: dict[str, list[str]] = {}
    for pid, line in _LOGGED.findall(_NUMBER.sub(r"\1n", text)):
        if _UNSETTLED.search(line):
            continue
        lines = sessions.setdefault(pid, [])
        if not (line.endswith(CHECK_QUERY) and lines[-1:] in ([], [line])):
            lines.append(line)
    return tuple(sorted(tuple(lines) for lines in sessions.values() if any(map(_is_work, lines))))


def without_order(outcome: Outcome) -> Outcome:
    """What is left to compare where servers are at work at the same time, and which one is whose is
    open: what was done and how often, without what PgBouncer itself says between its clients.
    """
    lines = (line for session in outcome.logged for line in session if not _BETWEEN.match(line))
    logged = (tuple(sorted(lines)),)
    return replace(outcome, acts=tuple(sorted(outcome.acts)), logged=logged)


def _is_work(line: str) -> bool:
    return line.startswith(_WORK) and not line.endswith(CONNECT_QUERY)


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
        found += _compare_logs(reference.logged, outcome.logged)
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


def _compare_logs(want: tuple[tuple[str, ...], ...], got: tuple[tuple[str, ...], ...]) -> list[str]:
    """A statement too much or too little, or else one in another session or order."""
    flat_want, flat_got = (tuple(line for one in log for line in one) for log in (want, got))
    if Counter(flat_want) != Counter(flat_got):
        return [_compare("log of the server", flat_want, flat_got)]
    more, less = Counter(got) - Counter(want), Counter(want) - Counter(got)
    return [f"sessions of the server: {list(more)} instead of {list(less)}"]


def _compare(what: str, want: tuple[str, ...], got: tuple[str, ...]) -> str:
    more, less = Counter(got) - Counter(want), Counter(want) - Counter(got)
    if not more and not less:
        at = next(i for i, (a, b) in enumerate(zip(want, got, strict=True)) if a != b)
        return f"{what}: in another order: {got[at : at + 3]} instead of {want[at : at + 3]}"
    return f"{what}: too much {dict(more)}, missing {dict(less)}"
