"""Whether the pgbouncers of a run of PgBouncer's own suite were really kept, by their logs."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from testbed.errors import BadLogError
from testbed.logfile import LogFile
from tests.suites.stand_in import HANGER_LOG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# The suite gives each of its pgbouncers a folder, and in it this log.
_BOUNCER_LOG = "test.log"
# An event with the number of sessions for each reason, beside these.
_LOST = "sessions-lost"
_NO_REASONS = ("event", "level", "timestamp", "incarnation")
_ADOPTED = re.compile(r" keeper: incarnation \d+ adopted ")
# There is an instant in which nobody knows how many bytes went over such a socket.
_UNIX_LOST = re.compile(
    " client session over a Unix-domain socket could not go on: .* in flight$", re.M
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the logs say.

    `bouncers` counts pgbouncers of the suite, `unkept` has a line for each that was not kept as
    it should be, `unheld` counts by reason the sessions that would not have survived, `kills` the
    processes that were killed, and `lost` by reason the sessions that were lost with them: `unix`
    is what may happen over Unix-domain sockets.
    """

    bouncers: int
    unkept: tuple[str, ...]
    unheld: Counter[str]
    kills: int = 0
    lost: Counter[str] = field(default_factory=Counter)


def collect(folder: Path, *, killed: bool = False) -> Evidence:
    """Read the logs of all pgbouncers whose folders lie somewhere below `folder`.

    `killed`: as they should be, they were killed and had successors.
    """
    logs = sorted(folder.rglob(_BOUNCER_LOG))
    unheld: Counter[str] = Counter()
    unkept = []
    kills = 0
    lost: Counter[str] = Counter()
    for log in logs:
        hanger = LogFile(log.with_name(HANGER_LOG))
        events = list(_events(hanger.read()))
        unheld.update(event["reason"] for event in events if event["event"] == "session-unheld")
        kills += sum(_was_killed(event) for event in events)
        if killed:
            for event in events:
                if event["event"] == _LOST:
                    lost.update({k: v for k, v in event.items() if k not in _NO_REASONS})
            unix = len(_UNIX_LOST.findall(LogFile(log).read()))
            lost.update({"unix": unix, "in-flight": -unix})
            events = [e for e in events if not _follows_from_a_kill(e)]
        wrong = [*_wrong(events), *_broken(hanger), *_broken(LogFile(log))]
        if not killed:
            wrong += _miscounted(events, LogFile(log))
        wrong += [f"{path.name} was left" for path in log.parent.iterdir() if path.is_socket()]
        if wrong:
            unkept.append(f"{log.parent.relative_to(folder)}: {'; '.join(wrong)}")
    return Evidence(len(logs), tuple(unkept), unheld, kills, +lost)


def _events(text: str) -> Iterator[dict[str, Any]]:
    """The hanger's own lines; the others are pgbouncer's."""
    for line in text.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _was_killed(event: dict[str, Any]) -> bool:
    return event["event"] == "bouncer-ended" and event["how"] == "killed by SIGKILL"


def _follows_from_a_kill(event: dict[str, Any]) -> bool:
    """Also a handoff to one that was killed in it: the older one serves on, and it is repeated."""
    handoff = event["event"] == "handoff-failed" and "(killed by SIGKILL)" in event["reason"]
    return _was_killed(event) or event["event"] == _LOST or handoff


def _miscounted(events: list[dict[str, Any]], bouncer: LogFile) -> Iterable[str]:
    known = Counter(event["event"] for event in events)["bouncer-active"]
    adopted = len(_ADOPTED.findall(bouncer.read()))
    if events and (not adopted or adopted != known):
        yield f"{adopted} adoptions, of which the hanger knows {known}"


def _wrong(events: list[dict[str, Any]]) -> Iterable[str]:
    names = Counter(event["event"] for event in events)
    if not events:
        yield "it has no hanger"
        return
    if (
        events[-1]["event"] != "hanger-stopped"
        or names["hanger-stopped"] != names["hanger-started"]
    ):
        yield "its hanger did not end in order"
    for at, event in enumerate(events):
        bad = event["level"] == "error" or event["event"] == _LOST
        died = event["event"] == "bouncer-ended" and event["level"] == "warning"
        if bad or died:
            before = [one["event"] for one in events[:at] if one.get("pid") == event.get("pid")]
            yield f"{json.dumps(event)} after {before}"


def _broken(log: LogFile) -> Iterable[str]:
    try:
        log.check()
    except BadLogError as error:
        yield str(error)
