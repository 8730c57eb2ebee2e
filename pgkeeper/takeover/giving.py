"""The old hanger's end of a takeover.

Everything is said in one go that blocks: nothing else happens in this process meanwhile, so nothing
that was said can become untrue, and if the new hanger fails, nothing has to be undone.  Clients
wait in the kernel's queue, pgbouncer goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

from pgkeeper.errors import PgkeeperError
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.keeper_socket import KeeperSocket
from pgkeeper.log import get_logger
from pgkeeper.systemd import manager_identity, notify
from pgkeeper.takeover.channel import Channel, ChannelLostError
from pgkeeper.takeover.messages import (
    BATCH,
    Addresses,
    Ask,
    Go,
    Inventory,
    Listening,
    Offer,
    ProcessState,
    Received,
    Refusal,
    Sockets,
    Stranger,
    Unheld,
    Yours,
    next_path,
)
from pgkeeper.version import version

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence
    from typing import TypeVar

    from pgkeeper.bouncer.pidfd import Pidfd
    from pgkeeper.control.access import Peer
    from pgkeeper.control.server import AdminServer
    from pgkeeper.hanger.process import Process
    from pgkeeper.hanger.service import Service
    from pgkeeper.hanger.vault import Vault
    from pgkeeper.metrics.server import MetricsServer
    from pgkeeper.takeover.messages import Message

    _M = TypeVar("_M", bound=Message)
    _T = TypeVar("_T")

__all__ = ["Giver", "NotNowError"]

log = get_logger()

#: Seconds for the new hanger to ask, and to check its settings and the binary it may start.
_ASKING: Final = 10.0
_CHECKING: Final = 60.0
#: Seconds for a pgbouncer to read what it was sent.
_CALM: Final = 2.0
#: Seconds for everything to go over, while nobody is accepted and no death is noticed.
_HANDING: Final = 5.0
#: Milliseconds for one that has hung up to end by itself, with an exit status of its own.
_ENDING: Final = 500


class NotNowError(PgkeeperError):
    """A takeover is impossible at the moment; the message says why."""


class Giver:
    """Listens for the next hanger beside the keeper socket, and gives it all that `service` has."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        service: Service,
        admin: AdminServer,
        metrics: MetricsServer,
    ) -> None:
        self._loop = loop
        self._service = service
        self._admin = admin
        self._metrics = metrics
        path = next_path(service.supervisor.launch.socket)
        self._socket = KeeperSocket(loop, path, (), self._connected)
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = False

    def start(self, door: int | None = None) -> None:
        """Begin to listen, with the old hanger's listener `door` if there is one.

        Raises `KeeperSocketError`.
        """
        if door is None:
            self._socket.open()
        else:
            self._socket.inherit(door)

    async def close(self) -> None:
        """Listen no more; whoever asked is hung up on."""
        self._socket.close(unlink=not self._service.handed_over)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, connection: socket.socket, peer: Peer, pidfd: Pidfd) -> None:
        task = self._loop.create_task(self._serve(Channel(connection), peer, pidfd))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, channel: Channel, peer: Peer, pidfd: Pidfd) -> None:
        mine = False
        try:
            ask = await self._hear(channel, Ask, _ASKING)
            self._check(ask, peer)
            mine = self._busy = True
            log.info(HangerEvent.TAKEOVER, pid=peer.pid, version=ask.pgkeeper)
            channel.give(_ASKING)
            channel.send(_offer(self._service, self._metrics))
            await self._hear(channel, Go, _CHECKING)
            await self._calm()
            self._hand_over(channel, peer, pidfd)
        except PgkeeperError as error:
            log.error(HangerEvent.TAKEOVER_FAILED, pid=peer.pid, reason=error.message)
            with contextlib.suppress(PgkeeperError):
                channel.give(0)
                channel.send(Refusal(error.message))
        finally:
            self._busy = self._busy and not mine
            channel.close()
            pidfd.close()

    async def _hear(self, channel: Channel, expected: type[_M], seconds: float) -> _M:
        """The next message, for which only this conversation waits."""
        there = asyncio.Event()
        self._loop.add_reader(channel.fileno(), there.set)
        try:
            async with asyncio.timeout(seconds):
                await there.wait()
        except TimeoutError:
            raise ChannelLostError("is silent") from None
        finally:
            self._loop.remove_reader(channel.fileno())
        channel.give(0)
        return channel.receive(expected)[0]

    def _check(self, ask: Ask, peer: Peer) -> None:
        """Raises `NotNowError`."""
        if peer.uid != os.geteuid():
            raise NotNowError(f"only uid {os.geteuid()} can follow this hanger")
        manager = manager_identity()
        if manager is not None and ask.manager != manager:
            raise NotNowError(
                "the service manager started it and would end its service: restart that instead"
            )
        if self._busy:
            raise NotNowError("another takeover is under way")
        self._check_settled()

    def _check_settled(self) -> None:
        if not self._service.supervisor.settled or self._service.handed_over:
            raise NotNowError("it is starting, ending, or in a handoff: try again")

    async def _calm(self) -> None:
        """Wait until all messages to pgbouncers are read.  Raises `NotNowError`."""
        supervisor = self._service.supervisor
        end = self._loop.time() + _CALM
        store = self._service.store
        while (store is not None and store.queued) or any(
            process.link and process.link.queued for process in supervisor.census
        ):
            if self._loop.time() > end:
                raise NotNowError("pgbouncer or the service manager does not read what it was sent")
            await asyncio.sleep(0.005)
        self._check_settled()

    def _hand_over(self, channel: Channel, peer: Peer, pidfd: Pidfd) -> None:
        """Everything, and then the end of this hanger; or nothing.  Blocks."""
        start, held = self._loop.time(), len(self._service.supervisor.holdings.vault)
        channel.give(_HANDING)
        try:
            _send_estate(channel, self._service, self._doors(), self._metrics.fileno())
            channel.receive(Received)
            channel.send(Yours())
        except BaseException:
            # Whatever it holds, it must not keep: an end that we give a client would not arrive.
            if not pidfd.ends_within(_ENDING):
                pidfd.signal(signal.SIGKILL)
            raise
        self._socket.close(unlink=False)
        self._admin.leave()
        self._metrics.leave()
        self._service.abandon()
        notify(f"MAINPID={peer.pid}")
        ms = round((self._loop.time() - start) * 1000, 3)
        log.info(HangerEvent.TAKEN_OVER, by=peer.pid, held=held, ms=ms)

    def _doors(self) -> tuple[int, int, int]:
        return (
            self._service.keeper_socket.fileno(),
            self._admin.fileno(),
            self._socket.fileno(),
        )


def _offer(service: Service, metrics: MetricsServer) -> Offer:
    supervisor = service.supervisor
    settings = supervisor.settings
    return Offer(
        pgkeeper=version(),
        pid=os.getpid(),
        binary=os.fspath(supervisor.launch.binary),
        ini=os.fspath(supervisor.launch.ini),
        standby=settings.standby,
        supervise=settings.supervise,
        hold_timeout=settings.hold_timeout,
        hang_timeout=settings.hang_timeout,
        allow_uids=sorted(service.allowed_uids),
        metrics=None if metrics.endpoint is None else str(metrics.endpoint),
    )


def _send_estate(
    channel: Channel, service: Service, doors: tuple[int, int, int], metrics: int
) -> None:
    supervisor = service.supervisor
    holdings, vault = supervisor.holdings, supervisor.holdings.vault
    processes = list(supervisor.census)
    strangers = supervisor.reception.strangers
    unheld, unheld_peers = vault.unheld_tokens(), vault.unheld_peers()
    addresses = supervisor.quarantine.guard.records()
    listeners = supervisor.listeners.fds
    segment = holdings.segment
    inventory = Inventory(
        generation=holdings.generation,
        incarnation=holdings.incarnation,
        format=holdings.format,
        next_client=vault.next_client,
        draining=supervisor.listeners.given_up,
        ledger=segment is not None,
        metrics=metrics >= 0,
        listeners=len(listeners),
        sockets=len(vault),
        unheld=len(unheld),
        processes=len(processes),
        strangers=len(strangers),
        addresses=len(addresses),
        counts=supervisor.accounts.counts(),
        blame=supervisor.quarantine.blame(supervisor.refusals.count),
    )
    ledger = () if segment is None else (segment.fd,)
    channel.send(inventory, (*doors, *ledger, *((metrics,) if metrics >= 0 else ())))
    for fds in _batches(listeners):
        channel.send(Listening(len(fds)), fds)
    _send_sockets(channel, vault)
    for tokens in _batches(tuple(unheld)):
        reasons = {str(token): unheld[token] for token in tokens}
        peers = {str(token): unheld_peers[token] for token in tokens if token in unheld_peers}
        channel.send(Unheld(reasons, peers))
    for process in processes:
        link = () if process.link is None else (process.link.fileno(),)
        channel.send(_state(process), (process.pidfd.fileno(), *link))
    for connection, pidfd in strangers:
        channel.send(Stranger(), (connection, pidfd))
    for records in _batches(tuple(addresses.items())):
        channel.send(Addresses(dict(records)))


def _send_sockets(channel: Channel, vault: Vault) -> None:
    for held in _batches(tuple(vault.held())):
        message = Sockets(
            [one.token for one in held],
            [one.unix for one in held],
            [one.peer for one in held],
            [one.born for one in held],
        )
        channel.send(message, [one.fd for one in held])


def _state(process: Process) -> ProcessState:
    ready, deadline, launch = process.ready, process.deadline, process.launch
    known = process.formats
    numbers = (
        []
        if ready is None
        else [ready.incarnation, ready.clients, ready.servers, ready.adoption_us, *ready.lost]
    )
    return ProcessState(
        pid=process.pid,
        linked=process.link is not None,
        ours=process.child is not None,
        state=process.state.value,
        owner=process.owner,
        incarnation=process.incarnation,
        dismissed=process.dismissed,
        said_farewell=process.said_farewell,
        faulty=process.faulty,
        looped=process.looped,
        age=process.lifetime,
        binary=None if launch is None else os.fspath(launch.binary),
        ini=None if launch is None else os.fspath(launch.ini),
        formats=[] if known is None else [known.oldest, known.newest, known.signature],
        ready=numbers,
        deadline=None if deadline is None else deadline[0],
        why="" if deadline is None else deadline[1],
        forgets=process.given is not None,
    )


def _batches(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[at : at + BATCH] for at in range(0, len(items), BATCH))
