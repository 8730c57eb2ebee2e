"""The hanger as a whole: opens its sockets, answers the admin socket, and ends."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer.spawn import Launch, UserMissingError, check_keeper_support
from pgkeeper.config import BouncerIni
from pgkeeper.control.report import ReleaseReport
from pgkeeper.errors import PgkeeperError
from pgkeeper.handoff.execute import Handoff
from pgkeeper.hanger.accounts import list_sessions
from pgkeeper.hanger.addresses import addresses
from pgkeeper.hanger.binding import AddressInUseError, CannotListenError
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.fdstore import FdStore
from pgkeeper.hanger.keeper_socket import KeeperSocket
from pgkeeper.hanger.limits import raise_descriptor_limit
from pgkeeper.hanger.listeners import Pause
from pgkeeper.hanger.supervisor import Supervisor
from pgkeeper.hanger.top import kill, top
from pgkeeper.hanger.watchdog import Watchdog
from pgkeeper.log import Event, get_logger
from pgkeeper.options import uid_of
from pgkeeper.states import ProcessState
from pgkeeper.systemd import notify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pgkeeper.bouncer.inspection import Sighting
    from pgkeeper.control.report import HandoffReport, Session, Status, Top, TopQuery
    from pgkeeper.hanger.addresses import Address
    from pgkeeper.hanger.process import Process
    from pgkeeper.hanger.recovery import Kept
    from pgkeeper.hanger.settings import Settings

__all__ = ["NotSupervisingError", "ReplacedError", "Service"]

log = get_logger()

#: Seconds that the service manager has to take our last messages about descriptors.
_LAST_WORDS: Final = 1.0
#: Where we listen, which only a handoff changes.
_MOVES: Final = ("listen_addr", "listen_port", "unix_socket_dir")
#: Seconds until an address that cannot be had again is tried once more.
_LISTEN_AGAIN: Final = 1.0


class NotSupervisingError(PgkeeperError):
    """The hanger was told to start what it does not start."""

    def __init__(self) -> None:
        super().__init__(
            "this hanger does not start pgbouncer (--no-supervise): start the new one yourself,"
            " then hand over without naming a binary or ini"
        )


class ReplacedError(PgkeeperError):
    """This hanger has handed everything to another one, which has our sockets."""

    def __init__(self) -> None:
        super().__init__("this hanger has just been replaced: ask again")


class Service:
    """Implements `pgkeeper.control.handlers.Keeper`.

    `ended` is set when the service is over by the operator's wish: released, shut down at
    pgbouncer's console, or `handed_over` to another hanger.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        ini: BouncerIni,
        launch: Launch,
        allow_uids: frozenset[int] = frozenset(),
        kept: Kept | None = None,
    ) -> None:
        self.ended = asyncio.Event()
        self.handed_over = False
        self._is_hanger = False
        self._loop = loop
        self._wanted: tuple[Address, ...] = ()
        self._left_behind = False
        self._settings = settings
        self._ini = ini
        self._bouncer_uid = None if ini.user is None else uid_of(ini.user)
        self._socket_owner = self._bouncer_uid if os.geteuid() == 0 else None
        self._again: asyncio.TimerHandle | None = None
        self.allowed_uids = allow_uids | {os.geteuid(), 0}
        if os.geteuid() == 0 and self._bouncer_uid is not None:
            self.allowed_uids |= {self._bouncer_uid}
        self.supervisor = Supervisor(loop, settings, ini, launch, self.ended.set, self._drained)
        self._kept = kept
        self.store = FdStore.offered(loop)
        if self.store is not None:
            self.supervisor.holdings.vault.store = self.store
            self.supervisor.listeners.store = self.store
            self.store.know(kept.names if kept is not None else ())
        self._watchdog = Watchdog(
            loop,
            settings.hang_timeout,
            lambda: self.supervisor.census.owner,
            self._heartbeat,
            self._hangs,
        )
        self._socket = KeeperSocket(
            loop, launch.socket, self.allowed_uids, self.supervisor.reception.connected
        )

    @property
    def keeper_socket(self) -> KeeperSocket:
        """Where pgbouncers introduce themselves."""
        return self._socket

    async def check(self) -> None:
        """Check what can be checked.  Raises what makes a hanger impossible, as `PgkeeperError`."""
        ini = self._ini
        self._wanted = addresses(ini)
        raise_descriptor_limit(ini.max_client_conn)
        launch = self.supervisor.launch
        if self._settings.supervise:
            self._check_user(ini)
            await check_keeper_support(launch.binary)

    async def claim(self) -> None:
        """Take the keeper socket: from now on we are the hanger.

        Raises what makes that impossible, as `PgkeeperError`; `close` is still to be called.
        """
        await self.check()
        self._left_behind = self._socket.open()
        self._began()

    def inherit(self, door: int) -> None:
        """Go on as the hanger: `door` is the keeper socket's, the supervisor has all else."""
        self._socket.inherit(door)
        self._began()
        self._watchdog.start()
        self.supervisor.open()

    def abandon(self) -> None:
        """Another hanger has everything: let go of ours, end nothing."""
        self.handed_over = True
        self._watchdog.stop()
        self._socket.close(unlink=False)
        self.supervisor.closing.abandon()
        self.ended.set()

    def _began(self) -> None:
        self._is_hanger = True
        launch = self.supervisor.launch
        log.info(
            Event.HANGER_STARTED,
            pid=os.getpid(),
            socket=str(launch.socket),
            supervise=self._settings.supervise,
            standby=self._settings.standby,
        )

    async def open(self) -> None:
        """Take over what a pgbouncer without hanger has, or listen and start a pgbouncer.

        Raises `PgkeeperError` like `claim`.
        """
        restored = False
        if self._kept is not None:
            restored = await self._restore(self._kept)
        elif self._left_behind:
            await self._wait_for_return(self._settings.patience.left_behind)
        self._watchdog.start()
        if not (restored and len(self.supervisor.listeners)):
            await self._listen(self._wanted)
        self.supervisor.open()
        if not self._settings.supervise and self.supervisor.census.owner is None:
            # Whoever starts pgbouncer may wait for us with that.
            notify("READY=1", "STATUS=waiting for a pgbouncer")
        if self.store is not None and self._kept is not None:
            self.store.keep_only(self.supervisor.stored_names())
        self._kept = None

    async def _restore(self, kept: Kept) -> bool:
        """Go on with what the manager kept; False if its pgbouncer returns and brings it all."""
        patience = self._settings.patience
        try:
            if kept.owner_may_live and await self._wait_for_return(patience.left_behind):
                return False  # it brings everything itself
            await kept.end_owners(patience.death)
            kept.restore(self.supervisor, self._loop.time())
        except PgkeeperError as error:
            log.error(HangerEvent.FD_STORE_UNUSABLE, reason=error.message, lost=len(kept.sockets))
            # The manager's duplicates of these would be in our own way.
            kept.listen(self.supervisor)
        finally:
            kept.close()
        return True

    def _heartbeat(self) -> int | None:
        segment = self.supervisor.holdings.segment
        return None if segment is None else segment.heartbeat

    def _hangs(self, process: Process, sighting: Sighting | None, *, again: bool) -> None:
        """Its heartbeat has stood still: only its death lets another one go on."""
        if not again:
            log.error(
                HangerEvent.BOUNCER_HANGS,
                pid=process.pid,
                incarnation=process.incarnation,
                state=process.state.value,
                kernel_state=None if sighting is None else sighting.state,
            )
            self.supervisor.accounts.hung()
        process.looped = sighting is not None and sighting.runnable
        process.kill(f"no heartbeat for {self._settings.hang_timeout:g} s", again=again)

    def _drained(self) -> None:
        """All sessions have ended, as SHUTDOWN wished that waited for them with nobody listening.

        That is the end, unless something else than we starts the next pgbouncer.
        """
        if self._settings.supervise:
            self.ended.set()
            return
        listeners = self.supervisor.listeners
        try:
            listeners.bind(self._wanted, self._ini, owner=self._socket_owner)
        except CannotListenError as error:
            log.error(HangerEvent.LISTEN_FAILED, address=error.address, reason=error.reason)
            self._again = self._loop.call_later(_LISTEN_AGAIN, self._drained)
        else:
            listeners.resume(Pause.NOT_OPEN)

    def _check_user(self, ini: BouncerIni) -> None:
        if os.geteuid() == 0 and (ini.user is None or uid_of(ini.user) == 0):
            raise UserMissingError(ini.path)

    async def _listen(self, wanted: Iterable[Address]) -> None:
        """Bind what the ini says, unless a serving pgbouncer has it and comes back with it."""
        listeners = self.supervisor.listeners
        patience = self._settings.patience.returning
        while not await self._taken_over():
            try:
                listeners.bind(wanted, self._ini, owner=self._socket_owner)
            except AddressInUseError:
                if not await self._wait_for_return(patience):
                    raise
            else:
                return

    async def _wait_for_return(self, patience: float) -> bool:
        try:
            async with asyncio.timeout(patience):
                await self.supervisor.returned.wait()
        except TimeoutError:
            return False
        return True

    async def _taken_over(self) -> bool:
        """Whether a returning pgbouncer has given its listeners and registered everything.

        If it dies on the way, its addresses are free.
        """
        returning = self.supervisor.census.owner
        if returning is None:
            return False
        patience = self._settings.patience
        if await returning.reach(ProcessState.ACTIVE, within=patience.ready + patience.death):
            return True
        await returning.reach(ProcessState.DEAD, within=patience.death)
        self.supervisor.returned.clear()
        return bool(len(self.supervisor.listeners))

    async def close(self, *, leave_owner: bool = False) -> None:
        """End everything.  `leave_owner`: a pgbouncer that serves goes on without a hanger."""
        if self.handed_over or not self._is_hanger:
            return
        notify("STOPPING=1")
        log.info(Event.HANGER_STOPPING)
        self._watchdog.stop()
        if self._again is not None:
            self._again.cancel()
        leave_owner = leave_owner and self.supervisor.census.owner is not None
        await self.supervisor.closing.stop(leave_owner=leave_owner)
        self._socket.close(unlink=not leave_owner)
        if self.store is not None:
            self.store.flush(_LAST_WORDS)
            self.store.close()
        log.info(Event.HANGER_STOPPED)

    def reload(self) -> None:
        """SIGHUP: read the ini again; a mistake in it changes nothing."""
        try:
            ini = BouncerIni.load(self.supervisor.launch.ini)
        except PgkeeperError as error:
            log.error(HangerEvent.RELOAD, failed=error.message)
            return
        log.info(HangerEvent.RELOAD, ini=str(ini.path))
        for setting in _MOVES:
            if getattr(ini, setting) != getattr(self._ini, setting):
                text = f"{setting} has changed: `pgkeeper handoff` listens there"
                log.warning(Event.CONFIG_WARNING, setting=setting, text=text)
        self._ini = ini
        self.supervisor.reload(ini)

    # Keeper

    def status(self) -> Status:
        """Keeper: how things are now."""
        supervisor = self._supervisor_here()
        return supervisor.accounts.status(
            self._loop.time(),
            supervisor.census,
            supervisor.holdings,
            crash_looping=supervisor.crashes.looping,
            quarantine=supervisor.quarantine.status(supervisor.refusals.count),
        )

    @property
    def vacancy(self) -> float:
        """For how many seconds nobody has served by now."""
        return self.supervisor.accounts.vacancy(self._loop.time())

    def warnings(self) -> Sequence[str]:
        """Keeper: what the operator ought to change in the ini, and why there is no standby."""
        texts = [warning.text for warning in self._ini.warnings()]
        if (trouble := self.supervisor.standby_trouble) is not None:
            texts.append(f"no standby: {trouble}; pgbouncer's log says more")
        return texts

    def sessions(self) -> Iterable[Session]:
        """Keeper: all sessions, clients first."""
        supervisor = self._supervisor_here()
        return list_sessions(supervisor.holdings, supervisor.census)

    async def top(self, query: TopQuery) -> Top:
        """Keeper: some sessions in some order."""
        supervisor = self._supervisor_here()
        return await top(supervisor.holdings, supervisor.census, query)

    def kill(self, name: str) -> None:
        """Keeper: have pgbouncer end a client.  Raises `CannotKillError`."""
        supervisor = self._supervisor_here()
        token = kill(supervisor.holdings, supervisor.census, name)
        log.warning(HangerEvent.SESSION_KILLED, token=token)

    async def handoff(
        self, pgbouncer: Path | None, ini: Path | None, progress: Callable[[str, str], None]
    ) -> HandoffReport:
        """Keeper: replace pgbouncer.  Raises `PgkeeperError`: nothing or everything was done."""
        supervisor = self._supervisor_here()
        launch = None
        new_ini, wanted = self._ini, self._wanted
        listeners = supervisor.listeners
        if self._settings.supervise:
            old = supervisor.launch
            launch = Launch(pgbouncer or old.binary, ini or old.ini, old.socket)
            new_ini = BouncerIni.load(launch.ini)
            self._check_user(new_ini)
            # Names are resolved elsewhere: that may take its time.
            wanted = await asyncio.to_thread(addresses, new_ini)
            listeners.stage(wanted, new_ini, owner=self._socket_owner)
        elif pgbouncer is not None or ini is not None:
            raise NotSupervisingError
        try:
            report = await Handoff(supervisor, launch, progress).run()
        except BaseException:
            listeners.drop_stage()
            raise
        listeners.take_stage()
        self._ini, self._wanted = new_ini, wanted
        supervisor.room.max_client_conn = new_ini.max_client_conn
        return report

    async def release(self) -> ReleaseReport:
        """Keeper: end all sessions; the service ends soon after."""
        clients, servers = await self._supervisor_here().closing.release()
        self._loop.call_soon(self.ended.set)
        return ReleaseReport(clients, servers)

    def _supervisor_here(self) -> Supervisor:
        if self.handed_over:
            raise ReplacedError
        return self.supervisor
