"""What pgbouncers say, and what that changes in our books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from pgkeeper.control.report import token_name
from pgkeeper.errors import PgkeeperError
from pgkeeper.hanger import datagram
from pgkeeper.hanger.advance import Given
from pgkeeper.hanger.bouncer_link import BouncerLink
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.formats import Formats
from pgkeeper.hanger.holdings import HelloRefusedError
from pgkeeper.hanger.process import Process
from pgkeeper.hanger.vault import TokenTakenError, reason_name
from pgkeeper.log import get_logger
from pgkeeper.states import Event, ProcessState
from protocol.control import (
    BATCH,
    Draining,
    Farewell,
    Feature,
    Frozen,
    Hello,
    ListenersBack,
    Ready,
    Refuse,
    Register,
    Release,
    Role,
    Unheld,
    UnheldReason,
    Welcome,
)
from protocol.control import (
    Listeners as ListenersMessage,
)
from protocol.errors import RemoteProtocolError

if TYPE_CHECKING:
    import asyncio
    import socket

    from pgkeeper.bouncer.pidfd import Pidfd
    from pgkeeper.control.access import Peer
    from pgkeeper.hanger.census import Census
    from pgkeeper.hanger.holdings import Holdings
    from pgkeeper.hanger.listeners import Listeners
    from protocol.control import Message

__all__ = ["Reactions", "Reception"]

log = get_logger()

_EVENTS: Final[dict[type[Message], Event]] = {
    Register: Event.REGISTER,
    Release: Event.RELEASE,
    Unheld: Event.UNHELD,
    ListenersBack: Event.LISTENERS_BACK,
    Ready: Event.READY,
    Frozen: Event.FROZEN,
    Farewell: Event.FAREWELL,
    Draining: Event.DRAINING,
}


class Reactions(Protocol):
    """What the supervisor does about what pgbouncers say."""

    def welcomed(self, process: Process) -> None:
        """It stands by, or returns and registers its sockets."""
        ...

    def refused(self, process: Process) -> None:
        """It cannot be taken in, and was told why."""
        ...

    def became_ready(self, process: Process) -> None:
        """It serves."""
        ...

    def said_farewell(self, process: Process) -> None:
        """It has ended all sessions on purpose."""
        ...

    def let_go(self) -> None:
        """Sockets were closed: there is room for others."""
        ...

    def lost_touch(self, process: Process) -> None:
        """Its connection has ended."""
        ...

    def died(self, process: Process) -> None:
        """The kernel says that it has ended."""
        ...


class Reception:
    """Takes connections from the keeper socket and messages from all pgbouncers.

    Successors are only welcomed once `open_doors` was called, because until then it is not known
    whether a serving pgbouncer will bring ledger and listeners.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        census: Census,
        holdings: Holdings,
        listeners: Listeners,
        reactions: Reactions,
    ) -> None:
        self._loop = loop
        self._census = census
        self._holdings = holdings
        self._listeners = listeners
        self._reactions = reactions
        self._strangers: dict[BouncerLink, Pidfd] = {}
        self._early: dict[BouncerLink, Hello] | None = {}

    @property
    def strangers(self) -> list[tuple[int, int]]:
        """Connection and pidfd of everybody who has not introduced himself."""
        return [(link.fileno(), pidfd.fileno()) for link, pidfd in self._strangers.items()]

    def connected(self, connection: socket.socket, peer: Peer, pidfd: Pidfd) -> None:
        """Somebody who may has connected."""
        self._strangers[self._link(connection, peer)] = pidfd

    def reconnected(self, process: Process, connection: socket.socket, peer: Peer) -> None:
        """The connection of a process that another hanger has known is ours now."""
        process.link = self._link(connection, peer)

    def _link(self, connection: socket.socket, peer: Peer) -> BouncerLink:
        return BouncerLink(
            self._loop,
            connection,
            pid=peer.pid,
            uid=peer.uid,
            on_message=self._message,
            on_end=self._end,
        )

    def open_doors(self) -> None:
        """The listeners are known: successors are welcome."""
        early, self._early = self._early, None
        for link, hello in (early or {}).items():
            if not link.closed:
                self._introduce(link, hello, ())

    def close(self) -> None:
        """Hang up on everybody who has not introduced himself."""
        for link, pidfd in self._strangers.items():
            link.close()
            pidfd.close()
        self._strangers.clear()

    def _message(self, link: BouncerLink, message: Message, fds: tuple[int, ...]) -> None:
        process = self._census.by_link(link)
        if process is not None:
            self._hear(process, message, fds)
        elif not isinstance(message, Hello):
            datagram.close_all(fds)
            raise RemoteProtocolError(f"{message.TYPE.name} before HELLO")
        elif message.role is Role.SUCCESSOR and self._early is not None:
            datagram.close_all(fds)
            self._early[link] = message
        else:
            self._introduce(link, message, fds)

    def _end(self, link: BouncerLink, error: RemoteProtocolError | None) -> None:
        process = self._census.by_link(link)
        if error is not None:
            incarnation = process.incarnation if process is not None else 0
            log.error(
                HangerEvent.PROTOCOL_ERROR, pid=link.pid, incarnation=incarnation, reason=str(error)
            )
        if process is None:
            self._strangers.pop(link).close()
            return
        process.link = None
        if error is not None and (process.owner or process.child is not None):
            # It and we no longer agree on who holds what; the ledger still does, so a successor
            # does better.
            process.kill(f"protocol error: {error}")
        self._reactions.lost_touch(process)

    # HELLO

    def _introduce(self, link: BouncerLink, hello: Hello, fds: tuple[int, ...]) -> None:
        ends = self._strangers[link].ended or self._census.is_fenced(link.pid)
        if hello.role is Role.SUCCESSOR and ends:
            # Of a child we may know that already, or have killed it ourselves: it is nobody new.
            # One that has served is heard: it has the ledger.
            datagram.close_all(fds)
            self._strangers.pop(link).close()
            link.close()
            return
        process = self._process_of(link)
        process.link = link
        process.formats = Formats.of(hello)
        try:
            if hello.role is Role.SERVING:
                self._take_in_serving(process, link, hello, fds)
            else:
                datagram.close_all(fds)
                self._take_in_successor(process, link, hello)
        except PgkeeperError as error:
            process.refused = error.message
            log.error(HangerEvent.HELLO_REFUSED, pid=process.pid, reason=error.message)
            link.send(Refuse(error.message))
            link.close()
            process.link = None
            self._reactions.refused(process)
        else:
            self._reactions.welcomed(process)

    def _process_of(self, link: BouncerLink) -> Process:
        pidfd = self._strangers.pop(link)
        child = self._census.child_waiting_for(link.pid)
        if child is not None:
            pidfd.close()
            return child
        process = Process(self._loop, link.pid, pidfd, self._reactions.died)
        self._census.add(process)
        return process

    def _take_in_successor(self, process: Process, link: BouncerLink, hello: Hello) -> None:
        owner = self._census.owner
        self._holdings.check_format(hello, owner.formats if owner is not None else None)
        new = self._holdings.segment is None
        segment = self._holdings.ledger_for(hello)
        if new:
            log.info(
                HangerEvent.LEDGER_MADE, generation=self._holdings.generation, size=segment.size
            )
        process.hear(Event.HELLO_SUCCESSOR)
        welcome = Welcome(
            self._holdings.incarnation + 1, self._holdings.generation, len(self._holdings.vault)
        )
        link.send(welcome, (segment.fd,))
        fds, unix = self._listeners.offer(staged=process.staged)
        for at in range(0, len(fds), BATCH):
            link.send(ListenersMessage(unix[at : at + BATCH]), fds[at : at + BATCH])
        if hello.features & Feature.FORGETS:
            process.given = Given()

    def _take_in_serving(
        self, process: Process, link: BouncerLink, hello: Hello, fds: tuple[int, ...]
    ) -> None:
        try:
            if len(fds) != 1:
                raise HelloRefusedError("a serving pgbouncer must bring its ledger")
            self._holdings.check_format(hello, None)
            if self._holdings.segment is not None or self._early is None:
                raise HelloRefusedError("this hanger has its own listeners and sessions already")
        except HelloRefusedError:
            datagram.close_all(fds)
            raise
        self._holdings.take_ledger(hello, fds[0])
        process.incarnation = self._holdings.incarnation
        process.hear(Event.HELLO_SERVING)
        link.send(Welcome(process.incarnation, self._holdings.generation))
        log.info(
            HangerEvent.LEDGER_TAKEN,
            generation=self._holdings.generation,
            pid=process.pid,
            incarnation=process.incarnation,
        )

    # all other messages

    def _hear(self, process: Process, message: Message, fds: tuple[int, ...]) -> None:
        event = _EVENTS.get(type(message))
        try:
            if event is None:
                raise RemoteProtocolError(f"{message.TYPE.name} cannot come from pgbouncer now")
            if isinstance(message, Ready):
                self._check_ready(process, message)
            if isinstance(message, Frozen) and not self._holdings.may_be_in(message.format):
                raise RemoteProtocolError(f"FROZEN in a format that was not asked for: {message}")
            process.hear(event)
        except RemoteProtocolError:
            datagram.close_all(fds)
            raise
        match message:
            case Register():
                self._register(process, message, fds)
            case Release():
                for token in message.tokens:
                    self._holdings.vault.release(token)
                self._reactions.let_go()
            case Unheld():
                self._unheld(process, message)
            case ListenersBack():
                self._listeners_back(process, fds)
            case Ready() if process.state is ProcessState.ACTIVE:
                process.ready = message
                self._reactions.became_ready(process)
            case Frozen() if process.owner:
                self._holdings.written_in(message.format)
            case Draining() if process.owner and process.state is not ProcessState.FENCED:
                self._listeners.give_up()
            case Farewell():
                process.said_farewell = True
                self._reactions.said_farewell(process)

    def _check_ready(self, process: Process, ready: Ready) -> None:
        if ready.incarnation != process.incarnation:
            raise RemoteProtocolError(
                f"READY of incarnation {ready.incarnation} from {process.incarnation}"
            )
        if process.state is ProcessState.RETURNING and not (
            len(self._listeners) or self._listeners.given_up
        ):
            raise RemoteProtocolError("READY without LISTENERS_BACK")

    def _register(self, process: Process, message: Register, fds: tuple[int, ...]) -> None:
        vault = self._holdings.vault
        for number, fd in enumerate(fds):
            held = message.sockets[number]
            try:
                vault.add(held.token, fd, unix=held.unix)
            except TokenTakenError as error:
                datagram.close_all(fds[number + 1 :])
                raise RemoteProtocolError(str(error)) from None
        missing = message.sockets[len(fds) :]
        if missing:
            # We had no numbers left.  The sessions go on, but only as long as their pgbouncer.
            log.error(
                HangerEvent.DESCRIPTORS_LOST,
                incarnation=process.incarnation,
                tokens=[token_name(held.token) for held in missing],
            )
            for held in missing:
                vault.mark_unheld(held.token, UnheldReason.HANGER_BUSY)

    def _unheld(self, process: Process, message: Unheld) -> None:
        self._holdings.vault.mark_unheld(message.token, message.reason)
        log.info(
            HangerEvent.SESSION_UNHELD,
            token=token_name(message.token),
            server=message.server,
            reason=reason_name(message.reason),
            incarnation=process.incarnation,
        )
        self._reactions.let_go()

    def _listeners_back(self, process: Process, fds: tuple[int, ...]) -> None:
        if process.state is ProcessState.RETURNING:
            self._listeners.take(fds)
        else:
            datagram.close_all(fds)  # it was fenced: its listeners end with it
