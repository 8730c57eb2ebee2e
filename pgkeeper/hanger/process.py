"""One pgbouncer process that the hanger knows: its life, its connection, its deadline."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from pgkeeper.bouncer.spawn import Child, Exit
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.log import get_logger
from pgkeeper.states import Event, ImpossibleEventError, Lifecycle, ProcessState
from protocol.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeeper.bouncer.pidfd import Pidfd
    from pgkeeper.bouncer.spawn import Launch
    from pgkeeper.hanger.advance import Given
    from pgkeeper.hanger.bouncer_link import BouncerLink
    from pgkeeper.hanger.formats import Formats
    from protocol.control import Ready

__all__ = ["Process"]

log = get_logger()


class Process:
    """A pgbouncer that we started (`child`), or that came by itself.

    `on_death(process)` comes once, when the kernel says that it has ended.  `reserved` keeps it
    from being activated by anybody but the handoff that started it; `staged` gives it the listening
    sockets that are to come with that handoff; `dismissed` says that we
    wanted it to end, so that its death is nobody's crash; `faulty` that we had to kill it; `looped`
    that it ran for ever then.  `end` is how it ended, None while it lives; `formats` the ledger's
    that it knows, None before HELLO; `given` what it has of the held sockets in advance, None if it
    gets them when it is to adopt.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pid: int,
        pidfd: Pidfd,
        on_death: Callable[[Process], None],
        *,
        launch: Launch | None = None,
        child: Child | None = None,
    ) -> None:
        self.pid = pid
        self.launch = launch
        self.child = child
        self.link: BouncerLink | None = None
        self.incarnation = 0
        self.formats: Formats | None = None
        self.ready: Ready | None = None
        self.given: Given | None = None
        self.refused: str | None = None
        self.reserved = False
        self.staged = False
        self.dismissed = False
        self.said_farewell = False
        self.faulty = False
        self.looped = False
        self.end: Exit | None = None
        self._began = loop.time()
        self._loop = loop
        self._pidfd = pidfd
        self._on_death = on_death
        self._lifecycle = Lifecycle()
        self._waiters: list[asyncio.Future[None]] = []
        self._deadline: asyncio.TimerHandle | None = None
        self._why = ""
        loop.add_reader(pidfd, self._ended)

    @property
    def pidfd(self) -> Pidfd:
        """Its pidfd, which stays this object's."""
        return self._pidfd

    @property
    def deadline(self) -> tuple[float, str] | None:
        """The seconds that it has left, and what it is killed for then."""
        if self._deadline is None:
            return None
        return max(self._deadline.when() - self._loop.time(), 0.0), self._why

    @property
    def state(self) -> ProcessState:
        """Where it stands."""
        return self._lifecycle.state

    @property
    def owner(self) -> bool:
        """Whether it may touch ledger and sockets: nobody else may be activated."""
        return self._lifecycle.owner

    @property
    def alive(self) -> bool:
        """Whether its death is not known yet."""
        return self.state is not ProcessState.DEAD

    @property
    def lifetime(self) -> float:
        """Seconds since it started or, if it was activated, since then."""
        return self._loop.time() - self._began

    @property
    def crashed(self) -> bool:
        """Whether its end is a reason to start the next one with care."""
        by_itself = self.end is not None and self.end.by_itself
        return self.ready is None or self.faulty or by_itself

    def resume(self, state: ProcessState, *, owner: bool, age: float) -> None:
        """Stand where it stood under another hanger, so many seconds after it began."""
        self._lifecycle.state, self._lifecycle.owner = state, owner
        self._began = self._loop.time() - age

    def feed(self, event: Event) -> None:
        """Move on an act of ours, or its death.  Raises `ImpossibleEventError`."""
        self._lifecycle.feed(event)
        if event is Event.ACTIVATE:
            self._began = self._loop.time()
        self._wake()

    def hear(self, event: Event) -> None:
        """Move on a message of its own.  Raises RemoteProtocolError if it cannot come now."""
        try:
            self._lifecycle.feed(event)
        except ImpossibleEventError as error:
            raise RemoteProtocolError(str(error)) from None
        self._wake()

    async def reach(self, *states: ProcessState, within: float) -> bool:
        """Wait until it is in one of `states`; False after `within` seconds, or once it cannot.

        It cannot any more when it is dead, or fenced, unless `states` has DEAD.
        """
        ends = {ProcessState.DEAD}
        if ProcessState.DEAD not in states:
            ends.add(ProcessState.FENCED)
        try:
            async with asyncio.timeout(within):
                while self.state not in states:
                    if self.state in ends:
                        return False
                    waiter = self._loop.create_future()
                    self._waiters.append(waiter)
                    await waiter
        except TimeoutError:
            return False
        return True

    def kill(self, reason: str, *, again: bool = False) -> None:
        """SIGKILL, the only way to be sure that it touches nothing any more; its death follows.

        `again`: it was not possible before, and is logged only if it is now.
        """
        if not self.alive:
            return
        self.faulty = True
        self.clear_deadline()
        if self._killed():
            log.warning(
                HangerEvent.BOUNCER_KILLED,
                pid=self.pid,
                incarnation=self.incarnation,
                reason=reason,
            )
            self.feed(Event.FENCE)
        elif not again:
            self._cannot_kill(reason)

    def dismiss(self) -> None:
        """Kill it because it is not needed any more."""
        if not self.alive:
            return
        self.dismissed = True
        self.clear_deadline()
        if self._killed():
            self.feed(Event.FENCE)
        else:
            self._cannot_kill("it is not needed any more")

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal; False if that is not possible."""
        return self._pidfd.signal(number)

    def set_deadline(self, seconds: float, reason: str) -> None:
        """Kill it in so many seconds, for `reason`, unless another deadline comes or none."""
        self.clear_deadline()
        self._why = reason
        self._deadline = self._loop.call_later(seconds, self.kill, reason)

    def clear_deadline(self) -> None:
        """It is in time."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def reap(self) -> Exit:
        """How it ended, of which only its parent is told; `forget` is still to be called."""
        self.end = self.child.wait() if self.child is not None else Exit()
        return self.end

    def forget(self) -> None:
        """Stop watching it, close connection and descriptor."""
        self.clear_deadline()
        self._loop.remove_reader(self._pidfd)
        self._pidfd.close()
        if self.link is not None:
            self.link.close()
            self.link = None

    def _killed(self) -> bool:
        return self._pidfd.signal(signal.SIGKILL) or self._pidfd.ended

    def _cannot_kill(self, reason: str) -> None:
        """Another user's, or in a PID namespace beside ours: whoever can must end it."""
        log.error(
            HangerEvent.BOUNCER_UNREACHABLE,
            pid=self.pid,
            incarnation=self.incarnation,
            reason=reason,
        )

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._on_death(self)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
