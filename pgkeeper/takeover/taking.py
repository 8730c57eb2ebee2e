"""The new hanger: check, collect, and go on where the old one was."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgkeeper.bouncer.pidfd import Pidfd
from pgkeeper.bouncer.spawn import Foster, Launch
from pgkeeper.control.access import peer_of
from pgkeeper.errors import PgkeeperError
from pgkeeper.hanger.advance import Given
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.fdstore import LEDGER, listener_name, owner_name, socket_name
from pgkeeper.hanger.formats import OURS, Formats
from pgkeeper.hanger.process import Process
from pgkeeper.ledger.segment import Segment
from pgkeeper.log import get_logger
from pgkeeper.states import ProcessState
from pgkeeper.takeover.heir import TakeoverFailedError
from protocol.control import Ready

if TYPE_CHECKING:
    from pgkeeper.control.server import AdminServer
    from pgkeeper.hanger.service import Service
    from pgkeeper.hanger.supervisor import Supervisor
    from pgkeeper.metrics.server import MetricsServer
    from pgkeeper.takeover.giving import Giver
    from pgkeeper.takeover.heir import Estate, Heir
    from pgkeeper.takeover.messages import ProcessState as SentProcess

__all__ = ["take_over"]

log = get_logger()

#: Numbers that make one `Formats`.
_FORMATS: Final = 3


async def take_over(
    heir: Heir, service: Service, admin: AdminServer, giver: Giver, metrics: MetricsServer
) -> None:
    """Become the hanger in the place of the one that `heir` speaks with.

    Raises `PgkeeperError`: then nothing was touched, and the old one goes on.
    """
    await service.check()
    theirs = metrics.endpoint is not None and str(metrics.endpoint) == heir.offer.metrics
    if not theirs:
        metrics.start()
    loop = asyncio.get_running_loop()
    estate = heir.collect()
    try:
        segment = _segment(estate)
        _check_format(estate)
        states = [ProcessState(sent.state) for sent, _ in estate.processes]
        heir.confirm()
    except TakeoverFailedError:
        raise
    except PgkeeperError as error:
        raise TakeoverFailedError(error.message) from None
    except ValueError as error:
        raise TakeoverFailedError(str(error)) from None
    # From here on all is ours, and there is nobody to go back to.
    heir.close()
    supervisor = service.supervisor
    if service.store is not None:
        service.store.know(_stored(estate))
    _holdings(supervisor, estate, segment)
    for (sent, fds), state in zip(estate.processes, states, strict=True):
        supervisor.census.add(_process(loop, supervisor, sent, fds, state))
    for connection, pidfd in estate.strangers:
        opened = socket.socket(fileno=connection)
        supervisor.reception.connected(opened, peer_of(opened), Pidfd(pidfd))
    keeper, commands, following = estate.doors
    admin.inherit(commands)
    if estate.metrics is not None:
        if theirs:
            metrics.inherit(estate.metrics)
        else:
            os.close(estate.metrics)
    giver.start(following)
    log.info(
        HangerEvent.TAKEN_OVER,
        frm=heir.offer.pid,
        version=heir.offer.pgkeeper,
        held=len(supervisor.holdings.vault),
    )
    service.inherit(keeper)


def _segment(estate: Estate) -> Segment | None:
    """Map the ledger, whose descriptor is the segment's from then on; raises `PgkeeperError`."""
    fd, estate.ledger = estate.ledger, None
    return None if fd is None else Segment.from_fd(fd)


def _check_format(estate: Estate) -> None:
    """Raises `TakeoverFailedError` if what pgbouncer writes could not be read here."""
    number = estate.inventory.format
    if number not in OURS:
        raise TakeoverFailedError(f"the ledger is written in format {number}, we know {OURS}")


def _stored(estate: Estate) -> set[str]:
    """What the service manager has of it: the old hanger's store is ours, as it stands."""
    names = {listener_name(number) for number in range(len(estate.listeners))}
    names.update(socket_name(token, unix=unix) for token, _, unix, *_ in estate.sockets)
    return names | {LEDGER, owner_name(estate.inventory.incarnation)}


def _holdings(supervisor: Supervisor, estate: Estate, segment: Segment | None) -> None:
    inventory = estate.inventory
    holdings = supervisor.holdings
    holdings.inherit(segment, inventory.generation, inventory.incarnation, inventory.format)
    for token, fd, unix, peer, born in estate.sockets:
        holdings.vault.add(token, fd, unix=unix, peer=peer, born=born)
    holdings.vault.reserve_tokens(inventory.next_client - 1)
    holdings.vault.inherit_unheld(estate.unheld, estate.unheld_peers)
    supervisor.accounts.inherit(inventory.counts)
    supervisor.quarantine.inherit(inventory.blame)
    supervisor.quarantine.guard.inherit(estate.addresses)
    supervisor.refusals.count = inventory.blame.refused
    supervisor.listeners.take(estate.listeners, given_up=inventory.draining)


def _process(
    loop: asyncio.AbstractEventLoop,
    supervisor: Supervisor,
    sent: SentProcess,
    fds: tuple[int, ...],
    state: ProcessState,
) -> Process:
    pidfd = Pidfd(fds[0])
    launch = None
    if sent.binary is not None and sent.ini is not None:
        launch = Launch(Path(sent.binary), Path(sent.ini), supervisor.launch.socket)
    child = Foster(sent.pid, pidfd) if sent.ours else None
    process = Process(loop, sent.pid, pidfd, supervisor.died, launch=launch, child=child)
    process.resume(state, owner=sent.owner, age=sent.age)
    process.incarnation = sent.incarnation
    if len(sent.formats) == _FORMATS:
        process.formats = Formats(*sent.formats)
    process.dismissed, process.faulty = sent.dismissed, sent.faulty
    process.said_farewell, process.looped = sent.said_farewell, sent.looped
    if sent.ready:
        incarnation, clients, servers, adoption_us, *lost = sent.ready
        process.ready = Ready(incarnation, clients, servers, tuple(lost), adoption_us)
    if sent.linked:
        connection = socket.socket(fileno=fds[1])
        supervisor.reception.reconnected(process, connection, peer_of(connection))
    if sent.forgets:
        process.given = Given()
        supervisor.advance.inherited(process)
    if sent.owner:
        supervisor.holdings.guard(sent.incarnation, pidfd.fileno())
    if sent.deadline is not None:
        process.set_deadline(sent.deadline, sent.why)
    return process
