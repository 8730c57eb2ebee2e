"""Decides which pgbouncer serves, starts what is missing, and ends what must end."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer.spawn import start
from pgkeeper.errors import PgkeeperError
from pgkeeper.hanger.absence import Absence
from pgkeeper.hanger.accounts import Accounts, lost_by_reason
from pgkeeper.hanger.advance import Advance
from pgkeeper.hanger.backoff import Backoff
from pgkeeper.hanger.census import Census
from pgkeeper.hanger.closing import Closing
from pgkeeper.hanger.delivery import send_client
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.history import cause_of
from pgkeeper.hanger.holdings import Holdings
from pgkeeper.hanger.limits import Room
from pgkeeper.hanger.listeners import Listeners, Pause
from pgkeeper.hanger.process import Process
from pgkeeper.hanger.quarantine import Quarantine
from pgkeeper.hanger.reception import Reception
from pgkeeper.hanger.refusals import Refusals
from pgkeeper.log import get_logger, lines_later
from pgkeeper.states import Event, ProcessState
from pgkeeper.systemd import notify
from protocol.control import Adopt

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeeper.bouncer.spawn import Launch
    from pgkeeper.config import BouncerIni
    from pgkeeper.hanger.settings import Settings
    from protocol.control import Message

__all__ = ["Supervisor"]

log = get_logger()

#: States in which a pgbouncer takes new clients from us.
_TAKES_CLIENTS = frozenset(
    {ProcessState.ADOPTING, ProcessState.ACTIVE, ProcessState.FREEZING, ProcessState.FROZEN}
)

#: Seconds that the one that serves has for those who waited for it, before a standby is started:
#: that takes a processor for ten milliseconds or more.
_STANDBY_AFTER: Final = 0.1


class Supervisor:
    """Everything about the processes; implements `reception.Reactions`.

    `launch` is what is started; `on_end` is called once when the service has ended by the
    operator's wish at the console; `on_drained` when all sessions are over after a wish that was
    to wait for them, and nobody listens.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        ini: BouncerIni,
        launch: Launch,
        on_end: Callable[[], None],
        on_drained: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.launch = launch
        self.census = Census()
        self.holdings = Holdings()
        self.advance = Advance(loop, self.census, self.holdings.vault)
        self.accounts = Accounts(loop.time())
        self.room = Room(ini.max_client_conn)
        self.quarantine = Quarantine(loop.time, self.holdings)
        self.refusals = Refusals(loop)
        self.listeners = Listeners(loop, self._client, self._room_left)
        self.reception = Reception(loop, self.census, self.holdings, self.listeners, self)
        self.crashes = Backoff(loop, self.arrange)
        self.changing = False
        """A handoff decides who is activated; nobody else does."""
        self.returned = asyncio.Event()
        """A pgbouncer that served without a hanger has come back."""
        self.standby_trouble: str | None = None
        """Why there is no standby, one line; None where there is one, or none is missed yet."""
        self._loop = loop
        self._on_end = on_end
        self._on_drained = on_drained
        self.standby_crashes = Backoff(loop, self.arrange)
        self._open = False
        self.closing = Closing(self)
        self.absence = Absence(
            loop,
            settings,
            self.census,
            self.holdings,
            may_end=lambda: not (self.closing.begun or self.changing),
            on_ended=self._sessions_ended,
            on_over=self._absence_over,
        )

    # who serves

    def open(self) -> None:
        """The listeners are known: begin to accept, to welcome and to start pgbouncers."""
        self._open = True
        self.listeners.resume(Pause.NOT_OPEN)
        self.reception.open_doors()
        if self.census.owner is None:
            self.absence.begin()
        self.arrange()

    @property
    def settled(self) -> bool:
        """Whether nothing is under way that this process alone could bring to an end."""
        return self._open and not (self.closing.begun or self.changing or self.absence.ending)

    def arrange(self) -> None:
        """Do what is missing; does nothing where all is as it should be."""
        if not self._open or self.closing.begun or self.changing or self.absence.ending:
            return
        owner = self.census.owner
        if owner is None:
            successor = self.census.successor_for(self.holdings.format)
            if self.crashes.waiting:
                return  # the last ones died at once
            if successor is not None:
                self.activate(successor)
            elif self.settings.supervise and self.census.starting is None:
                self.spawn(self.launch)
        elif self._wants_standby(owner):
            self.spawn(self.launch)

    def _wants_standby(self, owner: Process) -> bool:
        return (
            self.settings.supervise
            and self.settings.standby
            and owner.state is ProcessState.ACTIVE
            and self.census.successor is None
            and self.census.starting is None
            and not self.standby_crashes.waiting
        )

    def spawn(self, launch: Launch, *, reserved: bool = False) -> Process | None:
        """Start a pgbouncer; None if that is impossible, which is logged and tried again later."""
        try:
            child = start(launch)
        except PgkeeperError as error:
            log.error(HangerEvent.BOUNCER_START_FAILED, reason=error.message)
            if self.census.owner is None:
                self._start_failed(None)
            elif not reserved:
                self.standby_trouble = error.message
                self.standby_crashes.not_started()
            return None
        process = Process(self._loop, child.pid, child.pidfd, self.died, launch=launch, child=child)
        process.reserved = reserved
        process.set_deadline(self.settings.patience.hello, "it did not introduce itself")
        self.census.add(process)
        log.info(HangerEvent.BOUNCER_STARTED, pid=process.pid, binary=str(launch.binary))
        return process

    def activate(self, process: Process) -> None:
        """Give ledger and sockets to a standby; nobody may be their owner."""
        assert self.census.owner is None  # noqa: S101 - two writers would destroy every session
        link = process.link
        if link is None:
            return  # it is about to die, and its death arranges the rest
        process.reserved = False
        self.holdings.guard(self.holdings.incarnation + 1, process.pidfd.fileno())
        process.incarnation = self.holdings.next_incarnation()
        process.feed(Event.ACTIVATE)
        process.set_deadline(self.settings.patience.ready, "it did not get ready")

        def adopt() -> tuple[Message, tuple[int, ...]]:
            down = self.accounts.vacancy(self._loop.time())
            return Adopt(process.incarnation, int(down * 1e6), self.holdings.format), ()

        self.advance.complete(process)
        link.send_later(adopt)
        # Only now: everybody waits for those.
        log.info(
            HangerEvent.BOUNCER_ADOPTING,
            pid=process.pid,
            incarnation=process.incarnation,
            held=len(self.holdings.vault),
        )

    # what the reception tells

    def welcomed(self, process: Process) -> None:
        """Reactions: it stands by, or returns."""
        with lines_later():
            self._welcomed(process)

    def _welcomed(self, process: Process) -> None:
        if process.state is ProcessState.RETURNING:
            log.info(
                HangerEvent.BOUNCER_RETURNING, pid=process.pid, incarnation=process.incarnation
            )
            self.holdings.guard(process.incarnation, process.pidfd.fileno())
            process.set_deadline(self.settings.patience.ready, "it did not register its sockets")
            self.returned.set()
        else:
            process.clear_deadline()
            self.standby_trouble = None
            log.info(HangerEvent.BOUNCER_STANDBY, pid=process.pid)
            self.advance.came()
        self.arrange()

    def refused(self, process: Process) -> None:
        """Reactions: it was told why it is not taken in."""
        if process.child is not None:
            process.set_deadline(self.settings.patience.lost_link, "it was refused")
        else:
            self.forget(process)

    def became_ready(self, process: Process) -> None:
        """Reactions: it serves."""
        ready = process.ready
        assert ready is not None  # noqa: S101 - READY is why we are here
        process.clear_deadline()
        self.absence.finish()
        self.accounts.ready(self._loop.time(), ready)
        log.info(
            HangerEvent.BOUNCER_ACTIVE,
            pid=process.pid,
            incarnation=process.incarnation,
            clients=ready.clients,
            servers=ready.servers,
            adoption_ms=ready.adoption_us / 1000,
            pause_ms=self.accounts.last_pause_ms,
        )
        if any(ready.lost):
            log.error(
                HangerEvent.SESSIONS_LOST,
                incarnation=process.incarnation,
                **lost_by_reason(ready),
            )
        notify(
            "READY=1", f"STATUS=pgbouncer {process.pid} serves, incarnation {process.incarnation}"
        )
        self.listeners.retry()
        self._loop.call_later(_STANDBY_AFTER, self.arrange)

    def said_farewell(self, process: Process) -> None:
        """Reactions: it has ended all sessions, as the operator wished."""
        log.info(HangerEvent.BOUNCER_FAREWELL, pid=process.pid, incarnation=process.incarnation)
        if self.settings.supervise:
            self.listeners.pause(Pause.STOPPING)
        self.holdings.vault.close_all()
        if process.alive and process.state is not ProcessState.FENCED:
            process.set_deadline(self.settings.patience.farewell, "it did not end after FAREWELL")

    def let_go(self) -> None:
        """Reactions: there is room for other clients."""
        self.listeners.retry()

    def lost_touch(self, process: Process) -> None:
        """Reactions: its connection ended; mostly because it is dying."""
        if process.alive and process.pidfd.ended:
            self.died(process)  # of which its pidfd would tell a turn later
        elif process.owner:
            if process.state not in (ProcessState.LEAVING, ProcessState.FENCED):
                process.set_deadline(self.settings.patience.lost_link, "its connection has ended")
        elif process.child is not None:
            process.set_deadline(self.settings.patience.lost_link, "its connection has ended")
        else:
            self.forget(process)

    def died(self, process: Process) -> None:
        """Reactions: the kernel says that it has ended."""
        with lines_later():
            if process.link is not None:
                process.link.drain()  # what it said last still counts
            if process.alive:  # else the end of its connection was read, and has led here
                self._died(process)
                process.forget()

    def _died(self, process: Process) -> None:
        owner, was = process.owner, process.state
        process.feed(Event.DIED)
        self.census.discard(process)
        end = process.reap()
        report = log.info if process.dismissed or process.said_farewell else log.warning
        report(
            HangerEvent.BOUNCER_ENDED,
            pid=process.pid,
            incarnation=process.incarnation,
            state=was.value,
            how=str(end),
        )
        segment = self.holdings.segment
        died_of = 0 if segment is None else segment.died_of
        if owner:
            self._vacated(process)
        if not (process.dismissed or process.said_farewell or process.reserved):
            if owner or self.census.owner is None:
                self._start_failed(process)
            else:
                self.standby_trouble = process.refused or f"it ended ({end})"
                self.standby_crashes.died(process)
        if owner and self.quarantine.judge(process):
            self.crashes.forgive()
        if process.said_farewell and self.settings.supervise and not self.closing.begun:
            self._on_end()
        else:
            self.arrange()
        # Here everybody who waited for the next one has it.
        if owner or not process.dismissed:
            cause = cause_of(process, was, served=owner, died_of=died_of)
            self.accounts.history.died(cause)

    # its absence

    def _vacated(self, process: Process) -> None:
        """The owner is dead: its sessions are nobody's until the next one."""
        self.accounts.vacant(self._loop.time())
        self.holdings.orphaned()
        unheld = self.holdings.vault.forget_unheld()
        if unheld:
            self.accounts.history.lost({"unheld": unheld})
            log.warning(HangerEvent.SESSIONS_LOST, incarnation=process.incarnation, unheld=unheld)
        if process.said_farewell:
            self._renew_ledger()
        elif self.holdings.vault.servers or self.holdings.vault.clients:
            notify(f"STATUS=no pgbouncer serves, {len(self.holdings.vault)} sockets held")
        self.absence.begin()

    def _start_failed(self, process: Process | None) -> None:
        """The one that served or was to serve is dead, or could not be started (None)."""
        looping = self.crashes.looping
        if process is None:
            self.crashes.not_started()
        else:
            self.crashes.died(process)
        if self.crashes.looping and not looping:
            log.error(HangerEvent.CRASH_LOOP, deaths=self.crashes.short_lives)
            notify("STATUS=pgbouncer crashes again and again, sessions are held")

    def _absence_over(self) -> None:
        if not self.closing.begun:
            self.absence.begin()
            self.arrange()

    def _sessions_ended(self) -> None:
        self._renew_ledger()
        self.listeners.retry()

    def _renew_ledger(self) -> None:
        """All sessions are over: a fresh ledger, and nobody who still maps the old one."""
        self.holdings.renew()
        if self.listeners.given_up and not self.closing.begun:
            self._on_drained()
        for process in self.census:
            if not process.owner and process.link is not None:
                if process.child is not None:
                    process.dismiss()
                else:
                    self.forget(process)

    def forget(self, process: Process) -> None:
        """Leave alone a process that is not our child and owns nothing."""
        self.census.discard(process)
        process.forget()

    # clients

    def _room_left(self) -> int:
        return self.room.for_clients(self.holdings.vault, down=self.census.owner is None)

    def _client(self, fd: int, unix: bool, peer: str) -> None:
        error = self.quarantine.refusal(peer)
        if error is not None:
            self.refusals.refuse(fd, error, lambda canceller: self._let_in(canceller, unix, peer))
        else:
            self._let_in(fd, unix, peer, fresh=True)

    def _let_in(self, fd: int, unix: bool, peer: str, *, fresh: bool = False) -> None:
        held = self.holdings.vault.new_client(fd, unix=unix, peer=peer)
        owner = self.census.owner
        if owner is None or owner.link is None or owner.state not in _TAKES_CLIENTS:
            return
        send_client(owner.link, self.holdings.vault, held, fresh=fresh)

    # operator's wishes

    def reload(self, ini: BouncerIni) -> None:
        """SIGHUP: what the ini says now, and pgbouncer is to read it as well."""
        self.room.max_client_conn = ini.max_client_conn
        self.listeners.set_defer(ini.tcp_defer_accept)
        self.listeners.retry()
        owner = self.census.owner
        if owner is not None:
            owner.signal(signal.SIGHUP)
        self._dismiss_standbys()  # the next one reads the new ini from the start
        self.arrange()

    def keep(self, launch: Launch) -> None:
        """From now on start this; who stands by was started from something else."""
        self.launch = launch
        self._dismiss_standbys()

    def _dismiss_standbys(self) -> None:
        for process in self.census:
            if process.child is not None and not process.owner and not process.reserved:
                process.dismiss()

    def stored_names(self) -> set[str]:
        """All that is to be in the service manager's store."""
        return self.listeners.names | self.holdings.names
