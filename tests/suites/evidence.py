"""Whether the pgbouncers of a run of PgBouncer's own suite were really kept, by their logs."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.errors import BadLogError
from testbed.logfile import LogFile
from tests.suites.stand_in import HANGER_LOG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# The suite gives each of its pgbouncers a folder, and in it this log.
_BOUNCER_LOG = "test.log"
_ADOPTED = re.compile(r" keeper: incarnation \d+ adopted ")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the logs say.

    `bouncers` counts pgbouncers of the suite, `unkept` has a line for each that was not kept as
    it should be, `unheld` counts by reason the sessions that would not have survived.
    """

    bouncers: int
    unkept: tuple[str, ...]
    unheld: Counter[str]


def collect(folder: Path) -> Evidence:
    """Read the logs of all pgbouncers whose folders lie somewhere below `folder`."""
    logs = sorted(folder.rglob(_BOUNCER_LOG))
    unheld: Counter[str] = Counter()
    unkept = []
    for log in logs:
        hanger = LogFile(log.with_name(HANGER_LOG))
        events = list(_events(hanger.read()))
        unheld.update(event["reason"] for event in events if event["event"] == "session-unheld")
        wrong = [*_wrong(events, LogFile(log)), *_broken(hanger), *_broken(LogFile(log))]
        wrong += [f"{path.name} was left" for path in log.parent.iterdir() if path.is_socket()]
        if wrong:
            unkept.append(f"{log.parent.relative_to(folder)}: {'; '.join(wrong)}")
    return Evidence(len(logs), tuple(unkept), unheld)


def _events(text: str) -> Iterator[dict[str, Any]]:
    """The hanger's own lines; the others are pgbouncer's."""
    for line in text.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _wrong(events: list[dict[str, Any]], bouncer: LogFile) -> Iterable[str]:
    names = Counter(event["event"] for event in events)
    if not events:
        yield "it has no hanger"
        return
    adopted = len(_ADOPTED.findall(bouncer.read()))
    if not adopted or adopted != names["bouncer-active"]:
        yield f"{adopted} adoptions, of which the hanger knows {names['bouncer-active']}"
    if (
        events[-1]["event"] != "hanger-stopped"
        or names["hanger-stopped"] != names["hanger-started"]
    ):
        yield "its hanger did not end in order"
    for event in events:
        bad = event["level"] == "error" or event["event"] == "sessions-lost"
        died = event["event"] == "bouncer-ended" and event["level"] == "warning"
        if bad or died:
            yield json.dumps(event)


def _broken(log: LogFile) -> Iterable[str]:
    try:
        log.check()
    except BadLogError as error:
        yield str(error)
