"""What can be done to a ledger while nobody serves, and whose bytes that touches.

Each kind of damage is a frozen value that says what it does in names, so that an example which has
failed once can be written down in a test. `inflict` does it and returns the parts of the ledger
that were written or that now seem to be somebody else's: whoever needs one of them is affected.

`noticed` says whether checks that were not made right again must give it away. What bears a right
check cannot be told from the truth as long as it makes sense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from protocol.ledger_layouts import ACT, BLOB, COPY, HEADER, READ, SLOT, SOCKET_RECORD
from testbed.site import Part

if TYPE_CHECKING:
    from testbed.site import Site

__all__ = [
    "Act",
    "BlobHead",
    "BlobNoise",
    "CopyNoise",
    "Damage",
    "Forged",
    "ForgedRecord",
    "HeaderWord",
    "Moved",
    "Note",
    "Plus",
    "SlotOf",
    "Tail",
    "Theirs",
    "Value",
]


@dataclass(frozen=True, slots=True)
class SlotOf:
    """The number of a named slot."""

    name: str


@dataclass(frozen=True, slots=True)
class Theirs:
    """What the same field says in the true copy of a named slot."""

    name: str


@dataclass(frozen=True, slots=True)
class Plus:
    """What the field says, and so many more."""

    number: int


Value = int | SlotOf | Theirs | Plus

_UNITS = ("outbox", "extra", "record", "requests", "doom")
_RECORD_UNITS = ("catalog", "packet", "scram")
_UNCHECKED = ("outbox", "packet")
# What says which bytes of an IOBuf are still to be sent. Those that were handed on and have left
# stay named, and the IOBuf is somebody else's by then.
_OF_AN_IOBUF = ("io_done", "io_parse", "io_recv", "rx", "tx", "flags")


@dataclass(frozen=True, slots=True)
class CopyNoise:
    """Bytes written into a copy of a slot, the one that counts or the other."""

    slot: str
    true: bool
    at: int
    data: bytes
    noticed: ClassVar[bool] = True

    def inflict(self, site: Site) -> list[Part]:
        slot = site.slots.get(self.slot)
        if slot is None:
            return []
        copy = site.copy_part(slot, true=self.true)
        part = site.write(copy.start + self.at, self.data[: copy.size - self.at])
        if self.true and site.get(COPY, copy, "epoch") == 0:
            # It would pass for one that was being filled, and its predecessor for the truth.
            site.put(COPY, copy, "epoch", 1)
        return [part]


@dataclass(frozen=True, slots=True)
class Moved:
    """A whole copy that counts, written over a copy of another slot: plausible, but not its own."""

    slot: str
    source: str
    true: bool
    noticed: ClassVar[bool] = True

    def inflict(self, site: Site) -> list[Part]:
        slot, source = site.slots.get(self.slot), site.slots.get(self.source)
        if slot is None or source is None:
            return []
        copy = site.read(site.copy_part(source, true=True))
        return [site.write(site.copy_part(slot, true=self.true).start, copy)]


@dataclass(frozen=True, slots=True)
class Forged:
    """A field of the copy that counts, with the check made right for it."""

    slot: str
    field: str
    value: Value
    noticed: ClassVar[bool] = False

    def inflict(self, site: Site) -> list[Part]:
        slot = site.slots.get(self.slot)
        if slot is None:
            return []
        copy = site.copy_part(slot, true=True)
        value = self._number(site, copy)
        if value is None:
            return []
        part = site.put(COPY, copy, self.field, value)
        site.confirm_copy(copy, slot)
        if self.field == "epoch":
            # The other one may count now, with all that it had at its time.
            copy = site.copy_part(slot, true=False)
            fields: tuple[str, ...] = (*_UNITS, "io", "token")
        elif self.field in _OF_AN_IOBUF:
            fields = ("io",)
        else:
            fields = (self.field,)
        claims = [_claimed(site, field, site.get(COPY, copy, field)) for field in fields]
        return [part, *(claim for more in claims for claim in more)]

    def _number(self, site: Site, copy: Part) -> int | None:
        match self.value:
            case SlotOf(name):
                return site.slots.get(name)
            case Theirs(name):
                slot = site.slots.get(name)
                return slot and site.get(COPY, site.copy_part(slot, true=True), self.field)
            case Plus(number):
                return site.get(COPY, copy, self.field) + number
            case number:
                return number


@dataclass(frozen=True, slots=True)
class Tail:
    """A field of a slot beside its copies, which no check covers."""

    slot: str
    field: str
    value: int
    noticed: ClassVar[bool] = False

    def inflict(self, site: Site) -> list[Part]:
        slot = site.slots.get(self.slot)
        if slot is None:
            return []
        part = site.put(SLOT, site.slot_part(slot), self.field, self.value)
        if self.field != "base_tx":
            return [part]
        # How much has left is counted from here: as a lie about the IOBuf that the copy names.
        io = site.get(COPY, site.copy_part(slot, true=True), "io")
        return [part, *_claimed(site, "io", io)]


@dataclass(frozen=True, slots=True)
class BlobNoise:
    """Bytes written into the payload of a blob; with `forged` its check is made right again."""

    slot: str
    role: str
    at: int
    data: bytes
    forged: bool = False

    @property
    def noticed(self) -> bool:
        """Blobs that grow have no check of their own."""
        return not self.forged and self.role not in _UNCHECKED

    def inflict(self, site: Site) -> list[Part]:
        unit = site.blob_named(self.slot, self.role)
        if not unit:
            return []
        payload = site.payload_part(unit)
        at = self.at % payload.size
        part = site.write(payload.start + at, self.data[: payload.size - at])
        if self.forged:
            site.confirm_blob(unit)
        return [part]


@dataclass(frozen=True, slots=True)
class ForgedRecord:
    """A field of a socket's record, with the check of its blob made right for it."""

    slot: str
    field: str
    value: Value
    noticed: ClassVar[bool] = False

    def inflict(self, site: Site) -> list[Part]:
        unit = site.blob_named(self.slot, "record")
        if not unit:
            return []
        payload = site.payload_part(unit)
        value = self._number(site, payload)
        if value is None:
            return []
        part = site.put(SOCKET_RECORD, payload, self.field, value)
        site.confirm_blob(unit)
        return [part, *_claimed(site, self.field, site.get(SOCKET_RECORD, payload, self.field))]

    def _number(self, site: Site, payload: Part) -> int | None:
        match self.value:
            case SlotOf(name):
                return site.slots.get(name)
            case Theirs(name):
                other = site.blob_named(name, "record")
                return other and site.get(SOCKET_RECORD, site.payload_part(other), self.field)
            case Plus(number):
                return site.get(SOCKET_RECORD, payload, self.field) + number
            case number:
                return number


@dataclass(frozen=True, slots=True)
class BlobHead:
    """A field of a blob's head."""

    slot: str
    role: str
    field: str
    value: int
    noticed: ClassVar[bool] = True

    def inflict(self, site: Site) -> list[Part]:
        unit = site.blob_named(self.slot, self.role)
        return [site.put(BLOB, site.blob_part(unit), self.field, self.value)] if unit else []


@dataclass(frozen=True, slots=True)
class Act:
    """A field of the act record that counts, or of the other one."""

    true: bool
    field: str
    value: int | SlotOf
    noticed: ClassVar[bool] = False

    def inflict(self, site: Site) -> list[Part]:
        value = site.slots.get(self.value.name) if isinstance(self.value, SlotOf) else self.value
        if value is None:
            return []
        part = site.put(ACT, site.act_part(true=self.true), self.field, value)
        return [part, *_slots(site, value, self.true and self.field in ("slot", "source"))]


@dataclass(frozen=True, slots=True)
class Note:
    """A note of a read, written anew; it counts if `lag` is 0."""

    number: int
    lag: int
    slot: str
    rx: Plus
    iobuf: int
    position: int
    noticed: ClassVar[bool] = False

    def inflict(self, site: Site) -> list[Part]:
        slot = site.slots.get(self.slot)
        if slot is None:
            return []
        note = site.note_part(self.number)
        copy = site.copy_part(slot, true=True)
        for field, value in (
            ("epoch", site.commit - self.lag),
            ("rx", site.get(COPY, copy, "rx") + self.rx.number),
            ("slot", slot),
            ("iobuf", self.iobuf),
            ("position", self.position),
        ):
            site.put(READ, note, field, value)
        return [note, site.slot_part(slot)]


@dataclass(frozen=True, slots=True)
class HeaderWord:
    """The commit word or one of the header's counters."""

    field: str
    value: Value
    noticed: ClassVar[bool] = False

    def inflict(self, site: Site) -> list[Part]:
        header = Part(0, HEADER.size)
        value = self.value
        if isinstance(value, Plus):
            number = site.get(HEADER, header, self.field) + value.number
        elif isinstance(value, int):
            number = value
        else:
            return []
        return [site.put(HEADER, header, self.field, number)]


Damage = (
    CopyNoise
    | Moved
    | Forged
    | Tail
    | BlobNoise
    | ForgedRecord
    | BlobHead
    | Act
    | Note
    | HeaderWord
)


def _claimed(site: Site, field: str, value: int) -> list[Part]:
    """What is somebody's own, and now seems to be another's too: who is right cannot be told."""
    if field in _UNITS or field in _RECORD_UNITS:
        return [site.blob_part(value)] if 0 < value <= site.units else []
    if field == "io":
        return [site.iobuf_part(value)] if 0 < value <= site.iobufs else []
    if field == "token":
        return _slots(site, site.owner_of_token(value), True)
    return []


def _slots(site: Site, slot: int, counts: bool) -> list[Part]:
    return [site.slot_part(slot)] if counts and 0 < slot <= site.slot_count else []
