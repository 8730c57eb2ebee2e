"""The ledger's memory: a memfd that the hanger makes and pgbouncer maps.

Facts: memfd_create(2), fcntl(2) on seals, `patches/keeper/format.h`.  The file is sealed against
shrinking, so that no process that has mapped it can be hit by SIGBUS, and all of its pages exist
from the start, so that none can be missing later.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from typing import TYPE_CHECKING, Final, Self

from pgkeeper.errors import PgkeeperError
from protocol.ledger import (
    FORMAT_LAYOUT,
    FORMAT_VERSION,
    HEADER_SIZE,
    MAGIC,
    SIGNATURE,
    Geometry,
    LedgerDamaged,
    LedgerMismatch,
    LedgerView,
)
from protocol.ledger_layouts import DIED_SENT, HEADER

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["MAX_SIZE", "LedgerFormatError", "Segment", "SegmentError"]

MAX_SIZE: Final = 4 << 30
"""Bytes above which no ledger is made: a wish like that is a mistake, and its pages are memory."""

_NAME: Final = "pgkeeper-ledger"
_MAGIC_WORD: Final = HEADER.field("magic").offset // 8
_INCARNATION_WORD: Final = HEADER.field("incarnation").offset // 8
_HEARTBEAT_WORD: Final = HEADER.field("heartbeat").offset // 8
_HANDLED_WORD: Final = HEADER.field("handled").offset // 8
_DIED_OF: Final = HEADER.field("died_of").offset


class SegmentError(PgkeeperError):
    """A ledger cannot be made or mapped.

    Attributes:
        size: of the ledger, bytes.
    """

    def __init__(self, message: str, size: int) -> None:
        self.size = size
        super().__init__(message)


class LedgerFormatError(PgkeeperError):
    """A ledger that was brought to us has another format, or is no ledger at all.

    Attributes:
        field: the header's field that differs, None where it is damaged otherwise.
        found: what the ledger has there.
        expected: what this pgkeeper needs.
    """

    def __init__(self, damage: LedgerDamaged) -> None:
        self.field: str | None = None
        self.found: int | None = None
        self.expected: int | None = None
        if isinstance(damage, LedgerMismatch):
            self.field, self.found, self.expected = damage.field, damage.found, damage.expected
        super().__init__(f"this ledger cannot be used: {damage}")


class Segment:
    """A mapped ledger.  Owns its descriptor and its mapping; `close` gives both back."""

    def __init__(self, fd: int, mapping: mmap.mmap) -> None:
        self._fd = fd
        self._mapping = mapping
        self._words = memoryview(mapping)[:HEADER_SIZE].cast("Q")
        self._view: LedgerView | None = None

    @classmethod
    def create(cls, sizes: Geometry, generation: int = 1) -> Self:
        """Make an empty ledger.  Its magic is written last.

        `generation` counts the ledgers of this hanger.  SegmentError if the sizes are none, or too
        large, or the kernel has no memory for them.
        """
        for name in ("slots", "iobufs", "pkt_buf", "units"):
            if not 0 < getattr(sizes, name) < 1 << 32:
                raise SegmentError(f"a ledger cannot have {getattr(sizes, name)} {name}", 0)
        if sizes.size > MAX_SIZE:
            raise SegmentError(
                f"a ledger of {sizes.size} bytes is more than the {MAX_SIZE} that are allowed",
                sizes.size,
            )
        fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, sizes.size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            segment = cls(fd, mmap.mmap(fd, sizes.size))
        except OSError as error:
            os.close(fd)
            raise SegmentError(
                f"no memory for a ledger of {sizes.size} bytes: {error.strerror}", sizes.size
            ) from error
        except BaseException:
            os.close(fd)
            raise
        segment._format(sizes, generation)
        return segment

    def _format(self, sizes: Geometry, generation: int) -> None:
        header = HEADER.build(
            version=FORMAT_VERSION,
            header_size=HEADER_SIZE,
            signature=SIGNATURE,
            layout=FORMAT_LAYOUT,
            size=sizes.size,
            slots=sizes.slots,
            iobufs=sizes.iobufs,
            iobuf_size=sizes.iobuf_size,
            pkt_buf=sizes.pkt_buf,
            units=sizes.units,
            slot_offset=sizes.slot_offset,
            iobuf_offset=sizes.iobuf_offset,
            heap_offset=sizes.heap_offset,
            generation=generation,
        )
        self._mapping[: len(header)] = header
        self._words[_MAGIC_WORD] = MAGIC

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Map a ledger that a serving pgbouncer brought.

        `fd` is ours from now on, and is closed if it cannot be used.

        LedgerFormatError if it is not a ledger of this format; its text names both formats.
        SegmentError if it cannot be sealed against shrinking or mapped.
        """
        size = 0
        try:
            size = os.fstat(fd).st_size
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            if size < HEADER_SIZE:
                raise LedgerFormatError(LedgerDamaged(0, f"it has only {size} bytes"))
            segment = cls(fd, mmap.mmap(fd, size))
        except OSError as error:
            os.close(fd)
            raise SegmentError(f"cannot map the ledger: {error.strerror}", size) from error
        except BaseException:
            os.close(fd)
            raise
        try:
            segment.view()
        except LedgerDamaged as damage:
            segment.close()
            raise LedgerFormatError(damage) from damage
        return segment

    @property
    def fd(self) -> int:
        """The descriptor, to be passed to pgbouncer; it stays this object's."""
        return self._fd

    @property
    def size(self) -> int:
        """Bytes of the whole ledger."""
        return len(self._mapping)

    def set_incarnation(self, incarnation: int) -> None:
        """Fence: from now on only this incarnation may commit.  One store of 8 bytes.

        Whatever the last one died of was it, and not this one.
        """
        self._words[_HANDLED_WORD] = 0
        self._mapping[_DIED_OF : _DIED_OF + 4] = bytes(4)
        self._words[_INCARNATION_WORD] = incarnation

    @property
    def heartbeat(self) -> int:
        """The word that pgbouncer moves on once an event loop.  One load of 8 bytes."""
        return self._words[_HEARTBEAT_WORD]

    @property
    def handled(self) -> int:
        """Whose event pgbouncer handles, or handled when it died: `KeeperHeader.handled`."""
        return self._words[_HANDLED_WORD]

    @property
    def died_of(self) -> int:
        """The signal of a crash that the last incarnation died of, 0 if it was none."""
        return self._last_words & ~DIED_SENT

    @property
    def crash_was_sent(self) -> bool:
        """Whether another process sent that signal: no event that was being handled."""
        return bool(self._last_words & DIED_SENT)

    @property
    def _last_words(self) -> int:
        return int.from_bytes(self._mapping[_DIED_OF : _DIED_OF + 4], sys.byteorder)

    def view(self) -> LedgerView:
        """The ledger to be read; the same view each time, void once the segment is closed."""
        if self._view is None:
            self._view = LedgerView(self._mapping)
        return self._view

    def close(self) -> None:
        """Unmap the ledger and close its descriptor.  Does nothing the second time."""
        if self._fd < 0:
            return
        if self._view is not None:
            self._view.release()
        self._words.release()
        self._mapping.close()
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
