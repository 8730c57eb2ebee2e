"""The end of the service: who says goodbye, who is left alone, what is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeeper.hanger import farewell
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.listeners import Pause
from pgkeeper.states import Event, ProcessState
from protocol.control import ReleaseAll

if TYPE_CHECKING:
    from pgkeeper.hanger.supervisor import Supervisor

__all__ = ["Closing"]


class Closing:
    """Ends what a supervisor has; `begun` says that nothing is accepted or started any more."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.begun = False
        self._supervisor = supervisor

    async def release(self) -> tuple[int, int]:
        """End all sessions; nothing is accepted or started any more.  Counts of what was held."""
        supervisor = self._supervisor
        self.begun = True
        supervisor.listeners.pause(Pause.STOPPING)
        supervisor.absence.finish()
        vault = supervisor.holdings.vault
        clients, servers = vault.clients, vault.servers
        await self._end_owner()
        if vault:
            await supervisor.absence.end_sessions(
                farewell.ADMIN_SHUTDOWN, HangerEvent.SESSIONS_ENDED
            )
        return clients, servers

    async def stop(self, *, leave_owner: bool) -> None:
        """End the hanger.  `leave_owner`: a pgbouncer that serves goes on without us.

        Otherwise nothing is left behind: no process, no file, no session.
        """
        supervisor = self._supervisor
        self._stop_acting()
        await supervisor.absence.settle()
        leave_owner = leave_owner and supervisor.census.owner is not None
        if not leave_owner:
            await self.release()
        for process in supervisor.census:
            if process.child is not None and not process.owner:
                process.dismiss()
                await process.reach(ProcessState.DEAD, within=supervisor.settings.patience.death)
            elif process.owner or process.child is None:
                supervisor.forget(process)
        self._let_go(unlink=not leave_owner)

    def abandon(self) -> None:
        """Another hanger has everything: let go of ours, end nothing."""
        supervisor = self._supervisor
        self._stop_acting()
        for process in supervisor.census:
            supervisor.forget(process)
        supervisor.listeners.store = None
        supervisor.holdings.leave()
        self._let_go(unlink=False)

    def hurry(self) -> None:
        """A second wish to stop: whoever still says goodbye is killed."""
        owner = self._supervisor.census.owner
        if owner is not None and owner.state is ProcessState.LEAVING:
            owner.kill("told to stop twice")

    async def _end_owner(self) -> None:
        """Let the owner say goodbye, or kill it, and wait for its death."""
        owner = self._supervisor.census.owner
        if owner is None:
            return
        patience = self._supervisor.settings.patience
        if owner.state is ProcessState.ACTIVE and owner.link is not None:
            owner.feed(Event.RELEASE_ALL)
            owner.link.send(ReleaseAll())
            owner.set_deadline(patience.farewell, "it did not end after RELEASE_ALL")
        elif owner.state is not ProcessState.LEAVING:
            owner.kill("the service ends")
        await owner.reach(ProcessState.DEAD, within=patience.farewell + patience.death)

    def _stop_acting(self) -> None:
        supervisor = self._supervisor
        self.begun = True
        supervisor.listeners.pause(Pause.STOPPING)
        supervisor.absence.finish()
        supervisor.crashes.cancel()
        supervisor.standby_crashes.cancel()

    def _let_go(self, *, unlink: bool) -> None:
        supervisor = self._supervisor
        supervisor.reception.close()
        supervisor.refusals.close()
        supervisor.listeners.close(unlink=unlink)
        supervisor.holdings.close()
