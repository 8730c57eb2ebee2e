"""A hanger that the service manager has started with what it kept of the last one.

The names of the descriptors and the ledger say all that is needed.  Nobody adopts before the last
pgbouncer is known to be dead: one that lives comes back by itself, or is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgkeeper.bouncer.pidfd import Pidfd
from pgkeeper.control.report import Counts
from pgkeeper.errors import PgkeeperError
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.fdstore import LEDGER, is_listener, owner_incarnation, parse_socket
from pgkeeper.hanger.formats import OURS
from pgkeeper.ledger.segment import Segment
from pgkeeper.log import get_logger
from protocol.ledger import LedgerDamaged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pgkeeper.hanger.supervisor import Supervisor

__all__ = ["Kept", "StoreUnusableError"]

log = get_logger()


class StoreUnusableError(PgkeeperError):
    """What the manager kept cannot be gone on with; the message says why."""


@dataclass(slots=True)
class Kept:
    """Descriptors that are ours, sorted by their names; `names` are those in the store."""

    names: set[str] = field(default_factory=set)
    ledger: int | None = None
    owners: dict[int, Pidfd] = field(default_factory=dict)
    listeners: list[int] = field(default_factory=list)
    sockets: dict[int, tuple[int, bool]] = field(default_factory=dict)

    @classmethod
    def sort(cls, fds: Iterable[tuple[str, int]]) -> Kept | None:
        """None if none is of a hanger; others, and seconds of a name, are closed."""
        kept = cls()
        for name, fd in fds:
            if name in kept.names or not kept._take(name, fd):
                os.close(fd)
            else:
                kept.names.add(name)
        return kept if kept.names else None

    def _take(self, name: str, fd: int) -> bool:
        held, incarnation = parse_socket(name), owner_incarnation(name)
        if held is not None:
            self.sockets[held[0]] = (fd, held[1])
        elif incarnation is not None:
            self.owners[incarnation] = Pidfd(fd)
        elif is_listener(name):
            self.listeners.append(fd)
        elif name == LEDGER:
            self.ledger = fd
        else:
            return False
        return True

    @property
    def owner_may_live(self) -> bool:
        """Whether a pgbouncer that may touch all this is not known to be dead."""
        return not self.owners or any(not pidfd.ended for pidfd in self.owners.values())

    def close(self) -> None:
        """Close what is still ours."""
        for pidfd in self.owners.values():
            pidfd.close()
        for fd in (*self.listeners, *(fd for fd, _ in self.sockets.values())):
            os.close(fd)
        if self.ledger is not None:
            os.close(self.ledger)
        self.owners, self.listeners, self.sockets, self.ledger = {}, [], {}, None

    async def end_owners(self, within: float) -> None:
        """Kill who lives, and wait for its end.  Raises `StoreUnusableError`."""
        loop = asyncio.get_running_loop()
        for incarnation, pidfd in self.owners.items():
            if pidfd.ended:
                continue
            pidfd.signal(signal.SIGKILL)
            ended = asyncio.Event()
            loop.add_reader(pidfd, ended.set)
            try:
                async with asyncio.timeout(within):
                    await ended.wait()
            except TimeoutError:
                raise StoreUnusableError(f"incarnation {incarnation} cannot be killed") from None
            finally:
                loop.remove_reader(pidfd)

    def listen(self, supervisor: Supervisor) -> None:
        """Give the listening sockets alone to `supervisor`."""
        supervisor.listeners.take(self.listeners)
        self.listeners = []

    def restore(self, supervisor: Supervisor, now: float) -> None:
        """Give everything to `supervisor`, so that the next pgbouncer adopts.

        Nobody may live who could touch it.  Raises `PgkeeperError`: then all is still ours.
        """
        if self.ledger is None:
            raise StoreUnusableError("the ledger is missing")
        segment = Segment.from_fd(os.dup(self.ledger))
        header = segment.view().header
        last = max(self.owners, default=0)
        if last < header.incarnation:  # who was guarded later saw this one dead
            segment.close()
            raise StoreUnusableError(
                f"whether incarnation {header.incarnation} is dead cannot be known"
            )
        written = _format(segment)
        if written not in OURS:
            segment.close()
            raise StoreUnusableError(f"the ledger is written in format {written}, we know {OURS}")
        os.close(self.ledger)
        self.ledger = None
        holdings, vault = supervisor.holdings, supervisor.holdings.vault
        holdings.inherit(segment, header.generation, header.incarnation, written)
        if last:
            holdings.guard(last, self.owners[last].fileno())
        with contextlib.suppress(LedgerDamaged):
            vault.reserve_tokens(segment.view().act().watermark)
        for token, (fd, unix) in self.sockets.items():
            vault.add(token, fd, unix=unix)
        self.sockets = {}
        self.listen(supervisor)
        supervisor.quarantine.recall()
        # Since when nobody serves is not known: since now is too late, and harms no one.
        supervisor.accounts.inherit(Counts(0, None, 0, bool(header.incarnation), now))
        log.info(
            HangerEvent.FD_STORE_TAKEN,
            incarnation=header.incarnation,
            clients=vault.clients,
            servers=vault.servers,
        )
        self.close()


def _format(segment: Segment) -> int:
    """In which format the ledger is written; ours where it does not say any more."""
    try:
        return segment.view().act().format or OURS.newest
    except LedgerDamaged:
        return OURS.newest
