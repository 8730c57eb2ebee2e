"""Performing the plan of a handoff on real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer.spawn import check_keeper_support
from pgkeeper.errors import PgkeeperError
from pgkeeper.handoff.plan import Old, Picture, Step, Verdict, plan
from pgkeeper.hanger.accounts import handoff_report
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.formats import OURS
from pgkeeper.log import get_logger
from pgkeeper.states import Event, ProcessState
from protocol.control import Freeze, Thaw

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from pgkeeper.bouncer.spawn import Launch
    from pgkeeper.control.report import HandoffReport
    from pgkeeper.hanger.process import Process
    from pgkeeper.hanger.supervisor import Supervisor

__all__ = ["Handoff", "HandoffFailedError", "LeavingError"]

log = get_logger()

_TEXTS: Final[dict[Step, str]] = {
    Step.START_NEW: "starting the new pgbouncer",
    Step.AWAIT_STANDBY: "waiting until it stands by",
    Step.DISCARD_NEW: "ending the new pgbouncer",
    Step.FREEZE: "freezing the old pgbouncer",
    Step.CHECK_FORMAT: "checking that the new pgbouncer can read the ledger",
    Step.FENCE_OLD: "ending the old pgbouncer",
    Step.THAW: "letting the old pgbouncer go on",
    Step.ACTIVATE_NEW: "handing over the sessions",
    Step.AWAIT_READY: "waiting until the new pgbouncer has adopted them",
    Step.KEEP_NEW: "the new pgbouncer serves",
    Step.FENCE_NEW: "ending the new pgbouncer",
    Step.START_BACK: "starting the old pgbouncer again",
    Step.AWAIT_BACK: "waiting until it stands by",
    Step.ACTIVATE_BACK: "handing the sessions back",
    Step.AWAIT_BACK_READY: "waiting until the old pgbouncer has adopted them",
    Step.FENCE_BACK: "ending it as well",
}

_COMING: Final = (ProcessState.ADOPTING, ProcessState.RETURNING)
_GOING: Final = (ProcessState.LEAVING, ProcessState.FENCED)
#: Told to stand still, whether it does already or not.
_STILL: Final = (ProcessState.FREEZING, ProcessState.FROZEN)

_ENDS: Final[dict[Verdict, str]] = {
    Verdict.UNTOUCHED: "the old pgbouncer goes on, untouched",
    Verdict.WENT_BACK: "back on the old one, which has adopted the sessions",
    Verdict.NOBODY: "nobody serves at the moment, the sessions are held",
}


class LeavingError(PgkeeperError):
    """pgbouncer is ending on purpose, so there is nothing to hand over."""

    def __init__(self) -> None:
        super().__init__("pgbouncer is ending its sessions: there is nothing to hand over")


class HandoffFailedError(PgkeeperError):
    """A handoff did not succeed: `reason` says what went wrong, `verdict` who serves now."""

    def __init__(self, reason: str, verdict: Verdict) -> None:
        self.reason = reason
        self.verdict = verdict
        super().__init__(f"handoff failed: {reason}; {_ENDS[verdict]}")


class Handoff:
    """One planned replacement.

    `launch` is what is to serve; None takes the pgbouncer that stands by already, started by
    somebody else, which is the only way where the hanger does not start any itself.
    `progress(step, text)` is told each step.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        launch: Launch | None,
        progress: Callable[[str, str], None],
    ) -> None:
        self._supervisor = supervisor
        self._launch = launch
        self._progress = progress
        self._patience = supervisor.settings.patience
        self._old_launch = supervisor.launch
        self._new: Process | None = None
        self._back: Process | None = None
        self._reason = ""
        self._perform: dict[Step, Callable[[], Awaitable[bool]]] = {
            Step.START_NEW: self._start_new,
            Step.AWAIT_STANDBY: self._await_standby,
            Step.DISCARD_NEW: self._discard_new,
            Step.FREEZE: self._freeze,
            Step.CHECK_FORMAT: self._check_format,
            Step.FENCE_OLD: self._fence_owner,
            Step.THAW: self._thaw,
            Step.ACTIVATE_NEW: self._activate_new,
            Step.AWAIT_READY: self._await_ready,
            Step.KEEP_NEW: self._keep_new,
            Step.FENCE_NEW: self._fence_owner,
            Step.START_BACK: self._start_back,
            Step.AWAIT_BACK: self._await_back,
            Step.ACTIVATE_BACK: self._activate_back,
            Step.AWAIT_BACK_READY: self._await_back_ready,
            Step.FENCE_BACK: self._fence_owner,
        }

    async def run(self) -> HandoffReport:
        """Carry it out.  Raises `LeavingError`, `HandoffFailedError`.

        However it ends, by cancellation too, supervision goes on from what is then the case.
        """
        try:
            verdict = await self._follow(plan(await self._picture()))
        finally:
            for process in (self._new, self._back):
                if process is not None and process.alive and not process.owner:
                    self._let_go(process)
            self._supervisor.changing = False
            self._supervisor.arrange()
        if verdict is not Verdict.REPLACED or self._new is None or self._new.ready is None:
            log.error(HangerEvent.HANDOFF_FAILED, reason=self._reason, verdict=verdict.value)
            raise HandoffFailedError(self._reason, verdict)
        report = handoff_report(self._new, self._new.ready, self._supervisor.accounts.last_pause_ms)
        log.info(HangerEvent.HANDOFF_DONE, pid=report.pid, incarnation=report.incarnation)
        return report

    async def _picture(self) -> Picture:
        """Who serves.  One that is about to is awaited; nobody does where each one crashes."""
        owner = self._supervisor.census.owner
        if owner is not None and owner.state in _COMING:
            await owner.reach(ProcessState.ACTIVE, within=self._patience.ready)
            owner = self._supervisor.census.owner
        if owner is None:
            self._supervisor.changing = True  # nobody else may be activated from now on
            return Picture(Old.DEAD)
        if owner.state in _GOING:
            raise LeavingError
        return Picture()

    async def _follow(self, steps: Generator[Step, bool, Verdict]) -> Verdict:
        step = next(steps)
        while True:
            self._progress(step.value, _TEXTS[step])
            log.info(HangerEvent.HANDOFF_STEP, step=step.value)
            try:
                step = steps.send(await self._perform[step]())
            except StopIteration as end:
                verdict: Verdict = end.value
                return verdict

    def _fail(self, reason: str) -> bool:
        """Remember the first thing that went wrong: the rest follows from it."""
        self._reason = self._reason or reason
        return False

    # the new one

    async def _start_new(self) -> bool:
        if self._launch is None:
            self._new = self._supervisor.census.successor
            if self._new is None:
                return self._fail("no other pgbouncer stands by")
            self._new.reserved = True
            return True
        try:
            await check_keeper_support(self._launch.binary)
        except PgkeeperError as error:
            return self._fail(error.message)
        self._new = self._supervisor.spawn(self._launch, reserved=True)
        if self._new is not None:
            self._new.staged = True
        return self._new is not None or self._fail("the new pgbouncer could not be started")

    async def _await_standby(self) -> bool:
        assert self._new is not None  # noqa: S101 - START_NEW has succeeded
        if await self._new.reach(ProcessState.STANDBY, within=self._patience.hello):
            self._supervisor.changing = True
            return True
        return self._fail(f"the new pgbouncer {_why(self._new)}")

    async def _discard_new(self) -> bool:
        if self._new is not None and self._new.alive:
            self._let_go(self._new)
            if self._new.child is not None:
                await self._new.reach(ProcessState.DEAD, within=self._patience.death)
        return True

    def _let_go(self, process: Process) -> None:
        if process.child is not None:
            process.dismiss()
        else:
            process.reserved = False  # somebody else's standby stands by as before

    async def _activate_new(self) -> bool:
        return self._activate(self._new) or self._fail(f"the new pgbouncer {_why(self._new)}")

    async def _await_ready(self) -> bool:
        assert self._new is not None  # noqa: S101 - it was activated
        ready = await self._new.reach(ProcessState.ACTIVE, within=self._patience.ready)
        return ready or self._fail(f"the new pgbouncer did not adopt: it {_why(self._new)}")

    async def _keep_new(self) -> bool:
        self._supervisor.keep(self._launch or self._old_launch)
        return True

    # the old one

    async def _freeze(self) -> bool:
        owner = self._supervisor.census.owner
        if owner is None or owner.link is None or owner.state is not ProcessState.ACTIVE:
            return False
        wish = self._format(owner)
        owner.feed(Event.FREEZE)
        self._supervisor.holdings.ask_for(wish)
        owner.link.send(Freeze(wish))
        return await owner.reach(ProcessState.FROZEN, within=self._patience.frozen)

    def _format(self, owner: Process) -> int:
        """The newest that all sides know; the present one where there is none."""
        present = self._supervisor.holdings.format
        if owner.formats is None or self._new is None or self._new.formats is None:
            return present
        wish = min(OURS.newest, owner.formats.newest, self._new.formats.newest)
        known = all(wish in it for it in (OURS, owner.formats, self._new.formats))
        return wish if known else present

    async def _check_format(self) -> bool:
        return self._reads(self._new)

    def _reads(self, process: Process | None) -> bool:
        number = self._supervisor.holdings.format
        if process is not None and process.formats is not None and number in process.formats:
            return True
        return self._fail(f"the ledger is written in format {number}, which it does not know")

    async def _fence_owner(self) -> bool:
        owner = self._supervisor.census.owner
        if owner is None:
            return True
        owner.dismiss()
        dead = await owner.reach(ProcessState.DEAD, within=self._patience.death)
        return dead or self._fail(f"pgbouncer {owner.pid} cannot be killed")

    async def _thaw(self) -> bool:
        owner = self._supervisor.census.owner
        if owner is None:
            return False
        if owner.link is not None and owner.state in _STILL:
            owner.dismissed = False
            owner.feed(Event.THAW)
            owner.link.send(Thaw())
        return True

    # going back

    async def _start_back(self) -> bool:
        if self._supervisor.settings.supervise:
            self._back = self._supervisor.spawn(self._old_launch, reserved=True)
        return self._back is not None

    async def _await_back(self) -> bool:
        assert self._back is not None  # noqa: S101 - START_BACK has succeeded
        return await self._back.reach(ProcessState.STANDBY, within=self._patience.hello)

    async def _activate_back(self) -> bool:
        return self._activate(self._back)

    async def _await_back_ready(self) -> bool:
        assert self._back is not None  # noqa: S101 - it was activated
        return await self._back.reach(ProcessState.ACTIVE, within=self._patience.ready)

    def _activate(self, process: Process | None) -> bool:
        if process is None or process.state is not ProcessState.STANDBY or process.link is None:
            return False
        if self._supervisor.census.owner is not None or not self._reads(process):
            return False
        self._supervisor.activate(process)
        return True


def _why(process: Process | None) -> str:
    """What is wrong with a process, after "the new pgbouncer"."""
    if process is None:
        return "was not started"
    if process.refused is not None:
        return f"was refused: {process.refused}"
    if process.end is not None:
        return f"ended ({process.end})"
    return "took too long"
