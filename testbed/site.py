"""The ledger between two lives of pgbouncer: who needs which of its bytes, and writing into it.

Everything is told by name: a session's slot by the session's name, its server's as `NAME's server`.
A test can then say what it damages without knowing a number.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.ledger import (
    UNIT,
    BlobKind,
    Copy,
    Kind,
    LedgerView,
    PoolRecord,
    SocketRecord,
    UserRecord,
    blob_check,
    copy_check,
)
from protocol.ledger_layouts import ACT, BLOB, COPY, HEADER, READ, READS, SLOT
from testbed.ledgers import ledger_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from protocol.layout import Layout
    from testbed.keeper import Keeper

__all__ = ["Part", "Site", "opened"]

_ACTS = HEADER.field("act").offset
_READS = HEADER.field("read").offset
_COMMIT = HEADER.field("commit").offset


@dataclass(frozen=True, slots=True)
class Part:
    """So many bytes of the ledger, from an offset on."""

    start: int
    size: int

    def meets(self, other: Part) -> bool:
        """Whether they have a byte in common."""
        return self.start < other.start + other.size and other.start < self.start + self.size


class Site:
    """A ledger into which nobody writes now but we.

    `clients` are the names of the clients that have a slot, in the order in which they connected;
    `commit` is the commit word.
    What is in it was read when it was opened: later damage changes no name and no need.
    """

    def __init__(self, memory: mmap.mmap, clients: Sequence[str]) -> None:
        self._memory = memory
        view = LedgerView(memory)
        try:
            self._read(view, clients)
        finally:
            view.release()

    def _read(self, view: LedgerView, clients: Sequence[str]) -> None:
        self._geometry = view.geometry
        self._copies: dict[int, Copy] = dict(view.iter_slots())
        self.commit = view.commit
        self.slots = _names(view, self._copies, clients)
        self._blobs = {
            slot: dict(_blobs_of(view, slot, copy)) for slot, copy in self._copies.items()
        }
        self._sizes = {
            unit: view.blob_units(unit, kind)
            for blobs in self._blobs.values()
            for unit, kind in blobs.values()
        }
        self._payloads = {unit: self._payload(unit) for unit in self._sizes}
        act = view.act()
        self._acts_on = {act.slot, act.source} if act.act else set()
        self._noted = self._read_notes()
        self._true = [self._true_copy(view, slot) for slot in range(1, view.geometry.slots + 1)]
        self._records = {
            slot: view.record(copy, slot) for slot, copy in self._copies.items() if copy.record
        }

    def _payload(self, unit: int) -> Part:
        whole = self.blob_part(unit)
        length = self.get(BLOB, whole, "length")
        return Part(whole.start + BLOB.size, length or whole.size - BLOB.size)

    # who needs what

    def needs(self, client: str) -> list[Part]:
        """All that the session of this client depends on."""
        copy = self._copies[self.slots[client]]
        sockets = [self.slots[client], *([copy.link] if copy.link else [])]
        facts = [self._copies[slot].pool for slot in sockets]
        facts += [self.slots["global"], *self._users(sockets)]
        parts = [Part(_COMMIT, 8)]
        for slot in {*sockets, *facts} - {0}:
            parts.append(self.slot_part(slot))
            parts += [self.blob_part(unit) for unit, _ in self._blobs[slot].values()]
            if io := self._copies[slot].io:
                parts.append(self.iobuf_part(io))
        if self._acts_on & set(sockets):
            parts.append(self.act_part(true=True))
        parts += [self.note_part(i) for i, slot in self._noted.items() if slot in sockets]
        return parts

    def _users(self, sockets: list[int]) -> list[int]:
        """Slots of the users that these have logged in as."""
        records = (self._records.get(slot) for slot in sockets)
        names = {record.credentials for record in records if isinstance(record, SocketRecord)}
        return [
            slot
            for slot, record in self._records.items()
            if isinstance(record, UserRecord) and record.name in names
        ]

    def slot_part(self, slot: int) -> Part:
        """A slot, with both copies."""
        return Part(self._geometry.slot_offset + (slot - 1) * SLOT.size, SLOT.size)

    def iobuf_part(self, number: int) -> Part:
        """An IOBuf."""
        size = self._geometry.iobuf_size
        return Part(self._geometry.iobuf_offset + (number - 1) * size, size)

    def blob_part(self, unit: int) -> Part:
        """A blob that is in use, or else the one unit."""
        size = UNIT * self._sizes.get(unit, 1)
        return Part(self._geometry.heap_offset + (unit - 1) * UNIT, size)

    def act_part(self, *, true: bool) -> Part:
        """The act record that counts, or the other one."""
        number = (self.commit + (not true)) & 1
        return Part(_ACTS + number * ACT.size, ACT.size)

    @staticmethod
    def note_part(number: int) -> Part:
        """One of the notes of reads."""
        return Part(_READS + number * READ.size, READ.size)

    def _read_notes(self) -> dict[int, int]:
        """The notes that count, and the slots that they name."""
        notes = {}
        for number in range(READS):
            note = READ.parse(self._memory, self.note_part(number).start)
            if note["epoch"] == self.commit:
                notes[number] = note["slot"]
        return notes

    def owner_of_token(self, token: int) -> int:
        """The slot of the socket with this token, 0 if there is none."""
        return next((slot for slot, copy in self._copies.items() if copy.token == token), 0)

    # looking

    @property
    def slot_count(self) -> int:
        """Slots are numbered from 1 to here."""
        return self._geometry.slots

    @property
    def iobufs(self) -> int:
        """IOBufs are numbered from 1 to here."""
        return self._geometry.iobufs

    @property
    def units(self) -> int:
        """Units of the heap are numbered from 1 to here."""
        return self._geometry.units

    def copy_part(self, slot: int, *, true: bool) -> Part:
        """The copy that counts, or the other one."""
        number = self._true[slot - 1] == true
        return Part(self.slot_part(slot).start + number * COPY.size, COPY.size)

    def _true_copy(self, view: LedgerView, slot: int) -> bool:
        """Whether the second one counts."""
        first, second = (epoch * (epoch <= self.commit) for epoch in view.epochs(slot))
        return second > first

    def blob_named(self, slot: str, role: str) -> int:
        """The unit of a blob of a slot by its role, 0 if there is none now."""
        return self._blobs.get(self.slots.get(slot, 0), {}).get(role, (0, None))[0]

    def payload_part(self, unit: int) -> Part:
        """A blob's payload: the bytes of its length, or all it has room for if that grows."""
        return self._payloads[unit]

    def read(self, part: Part) -> bytes:
        """The bytes that stand there now."""
        return bytes(self._memory[part.start : part.start + part.size])

    def get(self, layout: Layout, part: Part, field: str) -> int:
        """A field of the struct there."""
        return int.from_bytes(self.read(_field_part(layout, part, field)), sys.byteorder)

    # writing

    def write(self, at: int, data: bytes) -> Part:
        """Write bytes as they are; where."""
        self._memory[at : at + len(data)] = data
        return Part(at, len(data))

    def put(self, layout: Layout, part: Part, field: str, value: int) -> Part:
        """Write a field of the struct there, as much of the value as it holds; where."""
        where = _field_part(layout, part, field)
        data = (value % (1 << 8 * where.size)).to_bytes(where.size, sys.byteorder)
        return self.write(where.start, data)

    def confirm_copy(self, part: Part, slot: int) -> None:
        """Make the check of a slot's copy right for what it has become."""
        self.put(COPY, part, "check", copy_check(self.read(part), slot))

    def confirm_blob(self, unit: int) -> None:
        """Make a blob's check right for what it has become."""
        check = blob_check(self.read(self.payload_part(unit)))
        self.put(BLOB, self.blob_part(unit), "check", check)


@contextlib.contextmanager
def opened(keeper: Keeper, clients: Sequence[str]) -> Iterator[Site]:
    """The hanger's ledger to write into. Raises `NotFoundError` if it has none."""
    with ledger_path(keeper).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield Site(memory, clients)


def _field_part(layout: Layout, part: Part, name: str) -> Part:
    field = layout.field(name)
    return Part(part.start + field.offset, field.size)


def _names(view: LedgerView, copies: dict[int, Copy], clients: Sequence[str]) -> dict[str, int]:
    of_kind: dict[Kind, list[int]] = {kind: [] for kind in Kind}
    for slot, copy in copies.items():
        of_kind[copy.kind].append(slot)
    in_order = sorted(of_kind[Kind.CLIENT], key=lambda slot: copies[slot].token)
    names = dict(zip(clients, in_order, strict=True))
    for name, slot in list(names.items()):
        if link := copies[slot].link:
            names[f"{name}'s server"] = link
    for slot in of_kind[Kind.SERVER]:
        if not copies[slot].link:
            names.setdefault("idle server", slot)
    for slot in of_kind[Kind.POOL]:
        record = view.record(copies[slot], slot)
        if isinstance(record, PoolRecord):
            names[f"pool of {record.user} in {record.database}"] = slot
    for slot in of_kind[Kind.USER]:
        record = view.record(copies[slot], slot)
        if isinstance(record, UserRecord):
            names[f"user {record.name}"] = slot
    names["global"] = of_kind[Kind.GLOBAL][0]
    names["free"] = next(n for n in range(1, view.geometry.slots + 1) if n not in copies)
    return names


def _blobs_of(
    view: LedgerView, slot: int, copy: Copy
) -> Iterator[tuple[str, tuple[int, BlobKind]]]:
    """The blobs that a slot reaches, by what they are for it."""
    for role, unit, kind in (
        ("outbox", copy.outbox, BlobKind.OUTBOX),
        ("extra", copy.extra, BlobKind.EXTRA),
        ("record", copy.record, BlobKind.RECORD),
        ("requests", copy.requests, BlobKind.REQUESTS),
        ("doom", copy.doom, BlobKind.DOOM),
    ):
        if unit:
            yield role, (unit, kind)
    statements = {request.statement for request in view.requests(copy, slot)}
    record = view.record(copy, slot) if copy.record else None
    if isinstance(record, SocketRecord):
        for role, unit, kind in (
            ("catalog", record.catalog, BlobKind.CATALOG),
            ("packet", record.packet, BlobKind.PACKET),
            ("scram", record.scram, BlobKind.SCRAM),
        ):
            if unit:
                yield role, (unit, kind)
        statements |= {entry.statement for entry in view.catalog(record, slot)}
    for number, unit in enumerate(sorted(statements - {0})):
        yield f"statement {number}", (unit, BlobKind.STATEMENT)
