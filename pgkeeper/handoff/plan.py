"""The planned replacement of a serving pgbouncer, as a generator of steps; pure, no I/O.

`plan(picture)` yields a `Step`, is sent whether it succeeded, and returns a `Verdict`.  It may
start from any picture that an interrupted plan left behind.  `Picture` says who is alive and who
may touch the sessions.  Why the order is right:

1. Nothing happens to the old one before the new one stands by (fully started, with ledger and
   listeners).  A new one that cannot start, or is refused, costs nothing.
2. FREEZE lets the old one finish what is under way and stop at a commit, in a format that the new
   one reads.  If it wrote in such a format before, its failure changes nothing, since SIGKILL at
   any moment is just as good; else the old one is thawed and keeps the sessions, or,
   if it has died of that, its binary is started again.
3. No one is activated before the former owner is known to be dead (`Picture.check`).  A process
   that cannot be killed is thawed and keeps the sessions.
   Where nobody serves (the old one crashes again and again) the plan begins with its death.
4. The new binary and ini are remembered only when the new one is ready, so whoever starts pgbouncer
   after an interruption starts what is known to work.
5. A new one that does not get ready is killed, and the old binary is started again.  Adoption acts
   on no socket until it has read all, so a failed one leaves the sessions as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["ImpossiblePictureError", "Old", "Picture", "Step", "Verdict", "Wing", "after", "plan"]


class Old(Enum):
    """The pgbouncer that serves when the plan begins."""

    SERVING = "serving"
    FROZEN = "frozen"
    DEAD = "dead"


class Wing(Enum):
    """A pgbouncer that waits in the wings: the new one, or the old binary started again."""

    ABSENT = "absent"
    STARTED = "started"
    STANDBY = "standby"
    ADOPTING = "adopting"
    ACTIVE = "active"
    DEAD = "dead"


class Step(Enum):
    """What is to be done next; each succeeds or fails."""

    START_NEW = "start-new"
    """Start the new binary with the new ini."""
    AWAIT_STANDBY = "await-standby"
    """Wait until it has connected and was welcomed."""
    DISCARD_NEW = "discard-new"
    """Kill the new one before it was activated; it owns nothing."""
    FREEZE = "freeze"
    """Ask the old one to stop at a commit, and wait a little for it."""
    CHECK_FORMAT = "check-format"
    """See that the new one can read what was committed last."""
    FENCE_OLD = "fence-old"
    """Kill the old one and wait for its death."""
    THAW = "thaw"
    """Let the old one go on; fails if it has died."""
    ACTIVATE_NEW = "activate-new"
    """Hand ledger and sockets to the new one."""
    AWAIT_READY = "await-ready"
    """Wait until it has adopted the sessions."""
    KEEP_NEW = "keep-new"
    """Remember the new binary and ini for restarts."""
    FENCE_NEW = "fence-new"
    """Kill the new one, which may have touched the sessions, and wait for its death."""
    START_BACK = "start-back"
    """Start the old binary with the old ini again."""
    AWAIT_BACK = "await-back"
    """Wait until it has connected and was welcomed."""
    ACTIVATE_BACK = "activate-back"
    """Hand ledger and sockets to it."""
    AWAIT_BACK_READY = "await-back-ready"
    """Wait until it has adopted the sessions."""
    FENCE_BACK = "fence-back"
    """Kill it as well and wait for its death."""


class Verdict(Enum):
    """How it ended."""

    REPLACED = "replaced"
    """The new one serves."""
    UNTOUCHED = "untouched"
    """The old one serves as if nothing had been."""
    WENT_BACK = "went back"
    """The old binary serves again, in a new process."""
    NOBODY = "nobody"
    """Nobody serves; sessions are held, and restarting is left to supervision."""


class ImpossiblePictureError(Exception):
    """A rule of the plan is broken; `rule` says which.  Never seen unless the plan is wrong."""

    def __init__(self, picture: Picture, rule: str) -> None:
        self.picture = picture
        self.rule = rule
        super().__init__(f"{rule}: {picture}")


@dataclass(frozen=True, slots=True)
class Picture:
    """Who is where; `kept` says that the new binary is what restarts will use."""

    old: Old = Old.SERVING
    new: Wing = Wing.ABSENT
    back: Wing = Wing.ABSENT
    kept: bool = False

    def check(self) -> None:
        """Raises `ImpossiblePictureError` if sessions could be harmed or lost."""
        owning = (Wing.ADOPTING, Wing.ACTIVE)
        owners = (self.old is not Old.DEAD, self.new in owning, self.back in owning)
        if sum(owners) > 1:
            raise ImpossiblePictureError(self, "two processes may touch the sessions")
        if self.kept and self.new is not Wing.ACTIVE:
            raise ImpossiblePictureError(self, "a binary is remembered that has not proved itself")
        if self.back is not Wing.ABSENT and self.new is not Wing.DEAD:
            raise ImpossiblePictureError(self, "going back while the new one lives")


_S = Step
_W = Wing

#: What each step changes when it succeeds, and when it fails; what is not named stays.
_EFFECTS: dict[Step, tuple[dict[str, object], dict[str, object]]] = {
    _S.START_NEW: ({"new": _W.STARTED}, {"new": _W.DEAD}),
    _S.AWAIT_STANDBY: ({"new": _W.STANDBY}, {}),
    _S.DISCARD_NEW: ({"new": _W.DEAD}, {"new": _W.DEAD}),
    _S.FREEZE: ({"old": Old.FROZEN}, {}),
    _S.CHECK_FORMAT: ({}, {}),
    _S.FENCE_OLD: ({"old": Old.DEAD}, {}),
    _S.THAW: ({"old": Old.SERVING}, {"old": Old.DEAD}),
    _S.ACTIVATE_NEW: ({"new": _W.ADOPTING}, {"new": _W.DEAD}),
    _S.AWAIT_READY: ({"new": _W.ACTIVE}, {}),
    _S.KEEP_NEW: ({"kept": True}, {"kept": True}),
    _S.FENCE_NEW: ({"new": _W.DEAD}, {}),
    _S.START_BACK: ({"back": _W.STARTED}, {"back": _W.DEAD}),
    _S.AWAIT_BACK: ({"back": _W.STANDBY}, {}),
    _S.ACTIVATE_BACK: ({"back": _W.ADOPTING}, {"back": _W.DEAD}),
    _S.AWAIT_BACK_READY: ({"back": _W.ACTIVE}, {}),
    _S.FENCE_BACK: ({"back": _W.DEAD}, {}),
}


def after(picture: Picture, step: Step, succeeded: bool) -> Picture:
    """The picture once `step` has succeeded or failed.  Raises `ImpossiblePictureError`."""
    success, failure = _EFFECTS[step]
    changed = replace(picture, **(success if succeeded else failure))  # type: ignore[arg-type]
    changed.check()
    return changed


class _Track:
    """Runs steps and keeps the picture; checks it after each."""

    def __init__(self, picture: Picture) -> None:
        picture.check()
        self.picture = picture

    def do(self, step: Step) -> Generator[Step, bool, bool]:
        succeeded = yield step
        self.picture = after(self.picture, step, succeeded)
        return succeeded


def plan(picture: Picture | None = None) -> Generator[Step, bool, Verdict]:
    """The steps from `picture` (None: from the beginning) to the end."""
    track = _Track(picture or Picture())
    if track.picture.old is not Old.DEAD:
        verdict = yield from _prepare(track)
        if verdict is not None:
            return verdict
    elif not (yield from _stand_by(track)):
        yield from track.do(Step.DISCARD_NEW)
        return Verdict.NOBODY
    if track.picture.back is Wing.ABSENT:
        verdict = yield from _replace(track)
        if verdict is not None:
            return verdict
    return (yield from _go_back(track))


def _prepare(track: _Track) -> Generator[Step, bool, Verdict | None]:
    """Up to the death of the old one; a verdict if it never comes to that."""
    asked = track.picture.old is Old.FROZEN
    ready = yield from _stand_by(track)
    ready = ready and track.picture.new is Wing.STANDBY
    if ready:
        if track.picture.old is Old.SERVING:
            yield from track.do(Step.FREEZE)
            asked = True
        ready = (yield from track.do(Step.CHECK_FORMAT)) and (yield from track.do(Step.FENCE_OLD))
    if ready:
        return None
    if track.picture.new is not Wing.DEAD:
        yield from track.do(Step.DISCARD_NEW)
    if asked and not (yield from track.do(Step.THAW)):
        return (yield from _go_back(track))
    return Verdict.UNTOUCHED


def _stand_by(track: _Track) -> Generator[Step, bool, bool]:
    """Start the new one if there is none yet; false if it came to nothing."""
    if track.picture.new is Wing.ABSENT and not (yield from track.do(Step.START_NEW)):
        return False
    return track.picture.new is not Wing.STARTED or (yield from track.do(Step.AWAIT_STANDBY))


def _replace(track: _Track) -> Generator[Step, bool, Verdict | None]:
    """From the death of the old one to the new one's service, or to its death."""
    if track.picture.new is Wing.STANDBY:
        yield from track.do(Step.ACTIVATE_NEW)
    if track.picture.new is Wing.ADOPTING:
        yield from track.do(Step.AWAIT_READY)
    if track.picture.new is Wing.ACTIVE:
        if not track.picture.kept:
            yield from track.do(Step.KEEP_NEW)
        return Verdict.REPLACED
    if track.picture.new is not Wing.DEAD and not (yield from track.do(Step.FENCE_NEW)):
        return Verdict.NOBODY  # it cannot be killed, so nobody else may begin
    return None


def _go_back(track: _Track) -> Generator[Step, bool, Verdict]:
    """From the death of the new one to the service of the old binary."""
    if track.picture.back is Wing.ABSENT:
        yield from track.do(Step.START_BACK)
    if track.picture.back is Wing.STARTED:
        yield from track.do(Step.AWAIT_BACK)
    if track.picture.back is Wing.STANDBY:
        yield from track.do(Step.ACTIVATE_BACK)
    if track.picture.back is Wing.ADOPTING:
        yield from track.do(Step.AWAIT_BACK_READY)
    if track.picture.back is Wing.ACTIVE:
        return Verdict.WENT_BACK
    if track.picture.back is not Wing.DEAD:
        yield from track.do(Step.FENCE_BACK)
    return Verdict.NOBODY
