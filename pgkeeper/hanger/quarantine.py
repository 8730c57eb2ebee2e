"""A crash that repeats on one session's bytes is to cost that session only.

Before pgbouncer handles an event of a socket it notes in the ledger whose it is.  Its successor
reads the same bytes again; if it dies of them as well, a third one need not try.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pgkeeper.control.report import Blame, QuarantineStatus, token_name
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.farewell import end_session
from pgkeeper.hanger.login_guard import LoginGuard, neighbourhood
from pgkeeper.hanger.vault import is_server
from pgkeeper.log import get_logger
from protocol.ledger import Kind, LedgerDamaged, SocketState
from protocol.ledger_layouts import HANDLED_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

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
LIMIT: Final = 8
WINDOW: Final = 60.0

#: cannot_connect_now: PgBouncer says the same where it does not want a login yet.
_REFUSED: Final = "57P03"
_LOGIN: Final = frozenset({SocketState.CL_LOGIN, SocketState.CL_WAITING_LOGIN})


@dataclass(frozen=True, slots=True)
class _Suspect:
    """Whose event was being handled: its token, its slot if any, and the token of its link.

    `login`: it had not logged in, or ended with the process, so that a repetition needs a login.
    """

    token: int
    slot: int | None = None
    linked: int | None = None
    linked_slot: int | None = None
    login: bool = False


class Quarantine:
    """Decides after each death of a serving pgbouncer whether a session is ended for it.

    `clock` gives seconds of CLOCK_MONOTONIC.  Only to be asked while nobody may touch the held
    sockets.
    """

    def __init__(self, clock: Callable[[], float], holdings: Holdings) -> None:
        self._clock = clock
        self._holdings = holdings
        self._last: int | None = None
        self._ended: deque[float] = deque(maxlen=LIMIT)
        self._counts: Counter[str] = Counter()
        self.guard = LoginGuard()
        """What is known against addresses."""

    def status(self, refused: int) -> QuarantineStatus:
        """What was done so far; `refused` is how many logins were."""
        return QuarantineStatus(dict(self._counts), refused, self.guard.slowed(self._clock()))

    def blame(self, refused: int) -> Blame:
        """What another hanger needs to go on, but for `guard`; `refused` as for `status`."""
        return Blame(self._last, list(self._ended), dict(self._counts), refused)

    def inherit(self, blame: Blame) -> None:
        """Go on where another hanger was."""
        self._last = blame.last
        self._ended.extend(blame.ended)
        self._counts.update(blame.counts)

    def recall(self) -> None:
        """The last pgbouncer died unseen: if of a crash, that is the first of whom it names."""
        segment = self._holdings.segment
        crashed = segment is not None and segment.died_of and not segment.crash_was_sent
        suspect = _suspect(segment) if segment is not None and crashed else None
        self._last = None if suspect is None else suspect.token

    def refusal(self, peer: str) -> tuple[str, str] | None:
        """SQLSTATE and text for a new client whose address may not log in now; None: it may."""
        seconds = self.guard.refused(peer, self._clock())
        return _refusal(seconds) if seconds else None

    def judge(self, process: Process) -> bool:
        """Judge a death; True: what it died of is gone.

        A signal from outside is no session's fault, not even the kernel's SIGKILL for want of
        memory, which all of them use, nor a SIGABRT that somebody sent for a core dump.  Nor is a
        process that hangs without running.
        """
        segment = self._holdings.segment
        if not process.looped and not _crashed(process, segment):
            self._last = None
            return False
        reason = "loop" if process.looped else "crash"
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
        if suspect.login and self._refuse(segment, suspect.token):
            return True
        if suspect.token != before or self._holdings.vault.get(suspect.token) is None:
            return False
        if not suspect.login and not self._may_end(suspect):
            return False
        peer = self._holdings.vault.peer(suspect.token)
        self._end(segment, suspect, "login" if suspect.login else reason)
        if peer is not None and not suspect.login:
            # Who comes back with the same is not to be let in at once each time.
            self._note(peer)
        return True

    def _note(self, peer: str) -> float:
        """Count a crash against an address; for how many seconds it may not log in now."""
        seconds = self.guard.crashed(peer, self._clock())
        if seconds:
            log.error(
                HangerEvent.LOGINS_REFUSED, address=neighbourhood(peer), seconds=round(seconds)
            )
        return seconds

    def _refuse(self, segment: Segment, token: int) -> bool:
        """Count a login's crash against its address; whether that may not log in now.

        Whoever else was logging in from there may bring the same, and has nothing to lose yet.
        """
        vault, view = self._holdings.vault, segment.view()
        peer = vault.peer(token)
        seconds = 0.0 if peer is None else self._note(peer)
        if peer is None or not seconds:
            return False
        logins, watermark = _logins(segment)
        for held in tuple(vault.held()):
            new = held.token not in logins and held.token > watermark and not is_server(held.token)
            if held.peer is None or neighbourhood(held.peer) != neighbourhood(peer):
                continue
            if held.token == token or held.token in logins or new:
                slot = logins.get(held.token)
                end_session(vault, view, slot, (held.token,), _refusal(seconds))
                self._counts["login"] += 1
        self._last = None
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


def _crashed(process: Process, segment: Segment | None) -> bool:
    """Whether it is to blame for its end; of one that is not our child only the ledger tells."""
    if segment is not None and segment.crash_was_sent:
        return False
    if process.end is not None and process.end.known:
        return process.end.by_itself
    return segment is not None and bool(segment.died_of)


def _suspect(segment: Segment) -> _Suspect | None:
    """Whose event was being handled when the last writer died; None: nobody's."""
    word = segment.handled
    if word & HANDLED_TOKEN:
        token = word & ~HANDLED_TOKEN
        return _Suspect(token, login=not is_server(token)) if token else None
    view = segment.view()
    try:
        copy = view.committed_copy(word) if word else None
    except LedgerDamaged:
        return None  # it is not adopted
    if copy is None or not copy.is_socket:
        return None
    if copy.kind is Kind.CLIENT and copy.state in _LOGIN:
        return _Suspect(copy.token, word, login=True)
    linked = None
    if copy.link:
        try:
            linked = view.committed_copy(copy.link)
        except LedgerDamaged:
            linked = None
    if linked is None or not linked.is_socket:
        return _Suspect(copy.token, word)
    return _Suspect(copy.token, word, linked.token, copy.link)


def _logins(segment: Segment) -> tuple[dict[int, int], int]:
    """Token and slot of the clients that have not logged in, and the last token that has a slot."""
    view = segment.view()
    logins = {
        copy.token: slot
        for slot, copy in view.iter_slots([])
        if copy.kind is Kind.CLIENT and copy.state in _LOGIN
    }
    try:
        return logins, view.act().watermark
    except LedgerDamaged:
        return logins, (1 << 64) - 1  # nobody counts as new


def _refusal(seconds: float) -> tuple[str, str]:
    return (
        _REFUSED,
        "pgbouncer has died of logins from this address: no new ones for"
        f" {math.ceil(seconds)} seconds",
    )
