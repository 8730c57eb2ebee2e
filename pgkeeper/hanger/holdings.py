"""What outlives every pgbouncer: the held sockets and the ledger."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from pgkeeper.errors import PgkeeperError
from pgkeeper.hanger.fdstore import LEDGER, owner_name, socket_name
from pgkeeper.hanger.formats import OURS, Formats
from pgkeeper.hanger.vault import Vault
from pgkeeper.ledger.segment import Segment
from protocol.ledger import Geometry, LedgerDamaged

if TYPE_CHECKING:
    from protocol.control import Hello

__all__ = ["HelloRefusedError", "Holdings"]


class HelloRefusedError(PgkeeperError):
    """A pgbouncer cannot be taken in; `reason` is what it is told, one line."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Holdings:
    """The vault, the ledger, and the numbers that name ledgers and incarnations.

    `format` is what the ledger is written in; it means nothing while there is no ledger.
    """

    def __init__(self) -> None:
        self.vault = Vault()
        self.segment: Segment | None = None
        self.generation = 1
        self.incarnation = 0
        self.format = OURS.newest
        self._asked: int | None = None
        self._guard: tuple[int, int] | None = None

    @property
    def names(self) -> set[str]:
        """The names of all this in the service manager's store."""
        names = {socket_name(held.token, unix=held.unix) for held in self.vault.held()}
        if self.segment is not None:
            names.add(LEDGER)
        if self._guard is not None:
            names.add(owner_name(self._guard[0]))
        return names

    def check_format(self, hello: Hello, owner: Formats | None) -> None:
        """Raises `HelloRefusedError` if pgbouncer could never read the ledger.

        `owner`: what the one knows that serves, and can write it in another format.
        """
        formats = Formats.of(hello)
        if formats.common(OURS) is None:
            raise HelloRefusedError(f"pgbouncer knows {formats}, this pgkeeper {OURS}")
        if self.segment is None or self.format in formats:
            return
        if owner is None or formats.common(owner) is None:
            raise HelloRefusedError(
                f"pgbouncer knows {formats}, the sessions are held in format {self.format}"
            )

    def ask_for(self, number: int) -> None:
        """The owner has been asked to write in this format from now on."""
        self._asked = number

    def may_be_in(self, number: int) -> bool:
        """Whether this can be the format now."""
        return number in (self.format, self._asked)

    def written_in(self, number: int) -> None:
        """The owner says that this is the format now."""
        self.format, self._asked = number, None

    def orphaned(self) -> None:
        """The owner is dead: what it was asked for it may have done, without a word of it."""
        if self._asked is not None and self.segment is not None:
            with contextlib.suppress(LedgerDamaged):
                if self.segment.view().act().format == self._asked:
                    self.format = self._asked
        self._asked = None

    def ledger_for(self, hello: Hello) -> Segment:
        """The ledger; made if this is the first HELLO, with the sizes that pgbouncer wants.

        Raises `SegmentError`.
        """
        if self.segment is None:
            sizes = Geometry(hello.slots, hello.iobufs, hello.pkt_buf, hello.units)
            self.segment = Segment.create(sizes, self.generation)
            self.format = OURS.common(Formats.of(hello)) or OURS.newest
            self._store_ledger()
        return self.segment

    def take_ledger(self, hello: Hello, fd: int) -> None:
        """Go on with the ledger of a pgbouncer that served without a hanger; `fd` is ours now.

        Raises `HelloRefusedError`, `LedgerFormatError`, `SegmentError`.
        """
        segment = Segment.from_fd(fd)
        header = segment.view().header
        if hello.format not in OURS:
            segment.close()
            raise HelloRefusedError(
                f"its ledger is written in format {hello.format}, this pgkeeper knows {OURS}"
            )
        if header.incarnation != hello.incarnation:
            segment.close()
            raise HelloRefusedError(
                f"incarnation {hello.incarnation} brought the ledger of {header.incarnation}"
            )
        self.segment = segment
        self.format = hello.format
        self._store_ledger()
        self.generation = header.generation
        self.incarnation = self.vault.era = header.incarnation
        self.vault.reserve_tokens(hello.last_token)
        with contextlib.suppress(LedgerDamaged):
            self.vault.reserve_tokens(segment.view().act().watermark)

    def inherit(
        self, segment: Segment | None, generation: int, incarnation: int, written: int
    ) -> None:
        """Go on with the ledger, in its format, and the numbers of another hanger."""
        self.segment = segment
        self.format = written
        self._store_ledger()
        self.generation = generation
        self.incarnation = self.vault.era = incarnation

    def next_incarnation(self) -> int:
        """Fence the ledger for a new incarnation, and return its number."""
        assert self.segment is not None  # noqa: S101 - only a welcomed process is activated
        self.incarnation += 1
        self.segment.set_incarnation(self.incarnation)
        self.vault.era = self.incarnation
        return self.incarnation

    def guard(self, incarnation: int, pidfd: int) -> None:
        """Whoever follows us must find this incarnation and see that it is dead."""
        store = self.vault.store
        if store is None:
            return
        if self._guard is not None and self._guard[0] == incarnation:
            return
        old, self._guard = self._guard, (incarnation, os.dup(pidfd))
        store.put(owner_name(incarnation), self._guard[1], urgent=True)
        self._unguard(old)

    def leave(self) -> None:
        """Another hanger has everything, and the store's duplicates are its business."""
        self.vault.store = None
        self.close()

    def _unguard(self, guard: tuple[int, int] | None) -> None:
        if guard is not None:
            if self.vault.store is not None:
                self.vault.store.drop(owner_name(guard[0]))
            os.close(guard[1])

    def _store_ledger(self) -> None:
        if self.vault.store is not None and self.segment is not None:
            self.vault.store.put(LEDGER, self.segment.fd, urgent=True)

    def renew(self) -> None:
        """All sessions have ended: let go of the ledger; the next HELLO makes another one."""
        if self.segment is not None:
            if self.vault.store is not None:
                self.vault.store.drop(LEDGER)
            self.segment.close()
            self.segment = None
            self.generation += 1

    def close(self) -> None:
        """Give back everything."""
        self.vault.close_all()
        self.renew()
        self._unguard(self._guard)
        self._guard = None
