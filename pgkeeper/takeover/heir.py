"""The new hanger's end of a takeover: ask, collect everything, and own it once it is told so."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from pgkeeper.control.access import peer_of
from pgkeeper.errors import PgkeeperError
from pgkeeper.systemd import manager_identity
from pgkeeper.takeover.channel import Channel
from pgkeeper.takeover.messages import (
    Addresses,
    Ask,
    Go,
    Inventory,
    Listening,
    Offer,
    ProcessState,
    Received,
    Sockets,
    Stranger,
    Unheld,
    Yours,
    next_path,
)
from pgkeeper.version import version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Estate", "Heir", "NothingToTakeOverError", "TakeoverFailedError"]

#: Seconds for the old hanger to answer, and for everything to come over.
_ANSWER: Final = 10.0


class NothingToTakeOverError(PgkeeperError):
    """No hanger answers that could be taken over from; `reason` says how we know."""

    exit_code = 2

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"no hanger to take over from: {reason}")


class TakeoverFailedError(PgkeeperError):
    """Nothing was taken over, and the old hanger goes on; `reason` says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"takeover failed: {reason}; the old hanger goes on")


@dataclass(slots=True)
class Estate:
    """Everything, with descriptors that are ours.

    `doors` are the listeners of keeper, admin and next socket, `metrics` that of the metrics if
    there is one; `sockets` (token, descriptor, unix, address, born); `unheld` and `unheld_peers`
    are by token, `addresses` as `LoginGuard.records`.
    """

    inventory: Inventory
    doors: tuple[int, int, int]
    ledger: int | None
    metrics: int | None
    listeners: list[int] = field(default_factory=list)
    sockets: list[tuple[int, int, bool, str | None, int]] = field(default_factory=list)
    unheld: dict[int, str] = field(default_factory=dict)
    unheld_peers: dict[int, str] = field(default_factory=dict)
    processes: list[tuple[ProcessState, tuple[int, ...]]] = field(default_factory=list)
    strangers: list[tuple[int, int]] = field(default_factory=list)
    addresses: dict[str, list[float]] = field(default_factory=dict)

    def close(self) -> None:
        """Give it all up."""
        for fd in self._fds():
            os.close(fd)

    def _fds(self) -> Iterator[int]:
        yield from self.doors
        yield from (fd for fd in (self.ledger, self.metrics) if fd is not None)
        yield from self.listeners
        yield from (fd for _, fd, *_ in self.sockets)
        for _, fds in (*self.processes, *((None, fds) for fds in self.strangers)):
            yield from fds


class Heir:
    """A conversation with the old hanger, whose settings are in `offer`."""

    def __init__(self, channel: Channel, offer: Offer) -> None:
        self.offer = offer
        self._channel = channel

    @classmethod
    def ask(cls, keeper_socket: Path) -> Self:
        """Find the hanger that listens on `keeper_socket`.

        Raises `NothingToTakeOverError`, `TakeoverFailedError`.
        """
        path = next_path(keeper_socket)
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        connection = socket.socket(socket.AF_UNIX, kind)
        try:
            connection.connect(os.fspath(path))
            uid = peer_of(connection).uid
        except (OSError, ValueError) as error:
            connection.close()
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
            raise NothingToTakeOverError(f"{path}: {reason}") from None
        channel = Channel(connection)
        try:
            if uid != os.geteuid():
                raise TakeoverFailedError(f"it runs as uid {uid}, and only that uid can follow it")
            channel.give(_ANSWER)
            channel.send(Ask(version(), manager_identity()))
            offer, _ = channel.receive(Offer)
        except TakeoverFailedError:
            channel.close()
            raise
        except PgkeeperError as error:
            channel.close()
            raise TakeoverFailedError(error.message) from None
        return cls(channel, offer)

    def collect(self) -> Estate:
        """Receive everything; nothing of it may be touched yet.  Raises `TakeoverFailedError`.

        Blocks: there is nothing else that a hanger without sessions could do.
        """
        self._channel.give(_ANSWER)
        try:
            self._channel.send(Go())
            return self._receive()
        except PgkeeperError as error:
            raise TakeoverFailedError(error.message) from None

    def confirm(self) -> None:
        """Say that all is here, and become its owner.  Raises `TakeoverFailedError`."""
        try:
            self._channel.send(Received())
            self._channel.receive(Yours)
        except PgkeeperError as error:
            raise TakeoverFailedError(error.message) from None

    def close(self) -> None:
        """Hang up: nobody has to wait for us any more."""
        self._channel.close()

    def _receive(self) -> Estate:
        channel = self._channel
        inventory, fds = channel.receive(Inventory, -1)
        if len(fds) != 3 + inventory.ledger + inventory.metrics:
            for fd in fds:
                os.close(fd)
            raise TakeoverFailedError(f"{len(fds)} descriptors beside the inventory")
        estate = Estate(
            inventory,
            (fds[0], fds[1], fds[2]),
            fds[3] if inventory.ledger else None,
            fds[-1] if inventory.metrics else None,
        )
        try:
            while len(estate.listeners) < inventory.listeners:
                _, fds = channel.receive(Listening, -1)
                estate.listeners += fds
            while len(estate.sockets) < inventory.sockets:
                batch, fds = channel.receive(Sockets, -1)
                # Fewer would be noticed below, as they never add up.
                estate.sockets += zip(
                    batch.tokens, fds, batch.unix, batch.peers, batch.born, strict=False
                )
            while len(estate.unheld) < inventory.unheld:
                unheld, _ = channel.receive(Unheld)
                estate.unheld.update((int(token), why) for token, why in unheld.reasons.items())
                estate.unheld_peers.update((int(token), who) for token, who in unheld.peers.items())
            for _ in range(inventory.processes):
                state, fds = channel.receive(ProcessState, -1)
                estate.processes.append((state, fds))
            for _ in range(inventory.strangers):
                _, fds = channel.receive(Stranger, 2)
                estate.strangers.append((fds[0], fds[1]))
            while len(estate.addresses) < inventory.addresses:
                estate.addresses.update(channel.receive(Addresses)[0].records)
        except BaseException:
            estate.close()
            raise
        return estate
