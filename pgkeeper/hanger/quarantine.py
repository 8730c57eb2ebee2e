"""A crash that repeats on one session's bytes is to cost that session only.

Before pgbouncer handles an event of a socket it notes in the ledger whose it is.  Its successor
reads the same bytes again; if it dies of them as well, a third one need not try.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pgkeeper.control.report import token_name
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.farewell import end_session
from pgkeeper.hanger.vault import is_server
from pgkeeper.log import get_logger
from protocol.ledger import LedgerDamaged
from protocol.ledger_layouts import HANDLED_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pgkeeper.hanger.holdings import Holdings
    from pgkeeper.hanger.process import Process
    from pgkeeper.ledger.segment import Segment

__all__ = ["ENDED", "LIMIT", "WINDOW", "Quarantine"]

log = get_logger()

#: SQLSTATE (internal_error, which no driver takes for a reason to try the same again) and text.
ENDED: Final = (
    "XX000",
    "pgbouncer has died twice of what this session sent or received: the session is ended",
)

#: So many sessions at most are ended within so many seconds.  Where more crash it is not they who
#: are to blame: they are held, and the next start waits longer each time.
LIMIT: Final = 5
WINDOW: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Suspect:
    """Whose event was being handled: its token, its slot if any, and the token of its link."""

    token: int
    slot: int | None = None
    linked: int | None = None
    linked_slot: int | None = None


class Quarantine:
    """Decides after each death of a serving pgbouncer whether a session is ended for it.

    `clock` gives seconds.  Only to be asked while nobody may touch the held sockets.
    """

    def __init__(self, clock: Callable[[], float], holdings: Holdings) -> None:
        self._clock = clock
        self._holdings = holdings
        self._last: int | None = None
        self._ended: deque[float] = deque(maxlen=LIMIT)
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many sessions were ended, by reason."""
        return self._counts

    def judge(self, process: Process) -> bool:
        """Judge a death; True: what it died of is gone.

        SIGKILL from outside is no session's fault, not even the kernel's for want of memory,
        which all of them use.  Nor is a process that hangs without running.
        """
        end = process.end
        if not process.looped and (end is None or not end.by_itself):
            self._last = None
            return False
        reason = "loop" if process.looped else "crash"
        segment = self._holdings.segment
        suspect = None if segment is None else _suspect(segment)
        if segment is None or suspect is None:
            self._last = None
            return False
        log.warning(
            HangerEvent.SESSION_BLAMED,
            token=token_name(suspect.token),
            incarnation=process.incarnation,
            reason=reason,
        )
        before, self._last = self._last, suspect.token
        if suspect.token != before or self._holdings.vault.get(suspect.token) is None:
            return False
        if not self._may_end(suspect):
            return False
        self._end(segment, suspect, reason)
        return True

    def _may_end(self, suspect: _Suspect) -> bool:
        now = self._clock()
        if len(self._ended) == LIMIT and now - self._ended[0] < WINDOW:
            log.error(
                HangerEvent.QUARANTINE_EXHAUSTED, token=token_name(suspect.token), ended=LIMIT
            )
            return False
        self._ended.append(now)
        return True

    def _end(self, segment: Segment, suspect: _Suspect, reason: str) -> None:
        slot = suspect.linked_slot if is_server(suspect.token) else suspect.slot
        tokens = (suspect.token, *([] if suspect.linked is None else [suspect.linked]))
        told = end_session(self._holdings.vault, segment.view(), slot, tokens, ENDED)
        self._last = None
        self._counts[reason] += 1
        log.error(
            HangerEvent.SESSION_QUARANTINED,
            token=token_name(suspect.token),
            linked=None if suspect.linked is None else token_name(suspect.linked),
            reason=reason,
            told=told,
        )


def _suspect(segment: Segment) -> _Suspect | None:
    """Whose event was being handled when the last writer died; None: nobody's."""
    word = segment.handled
    if word & HANDLED_TOKEN:
        token = word & ~HANDLED_TOKEN
        return _Suspect(token) if token else None
    view = segment.view()
    try:
        copy = view.committed_copy(word) if word else None
    except LedgerDamaged:
        return None  # it is not adopted
    if copy is None or not copy.is_socket:
        return None
    linked = None
    if copy.link:
        try:
            linked = view.committed_copy(copy.link)
        except LedgerDamaged:
            linked = None
    if linked is None or not linked.is_socket:
        return _Suspect(copy.token, word)
    return _Suspect(copy.token, word, linked.token, copy.link)
