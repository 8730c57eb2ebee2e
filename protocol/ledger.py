"""Reading a ledger: the state that pgbouncer last committed.

Source of the format: `patches/keeper/format.h` and `docs/ledger-format.md`.  `LedgerView` only ever
reads, takes any bytes, and answers with dataclasses or `LedgerDamaged`, nothing else.  It may look
at a ledger into which pgbouncer writes at the same moment: a slot's true copy is overwritten only
after the commit word has moved on, so a copy that fails its check while the word moved is read
again.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Any, Final

from protocol.ledger_checks import blob_check, copy_check, entry_check, fnv1a64, head_check
from protocol.ledger_layouts import (
    ACT,
    APPEND_ONLY,
    BLOB,
    CATALOG_ENTRY,
    COPY,
    FORMAT_LAYOUT,
    FORMAT_OLDEST,
    FORMAT_VERSION,
    HEADER,
    HEADER_SIZE,
    IOBUF_HEAD,
    LAYOUTS,
    MAGIC,
    REQUEST,
    SLOT,
    UNIT,
    Act,
    BlobKind,
    Credentials,
    Flag,
    Geometry,
    Kind,
    PacketAction,
    RequestAction,
    SocketState,
    WaitType,
)
from protocol.ledger_records import (
    ActRecord,
    CatalogEntry,
    Copy,
    Figures,
    GlobalRecord,
    Header,
    LedgerDamaged,
    LedgerMismatch,
    PoolRecord,
    Record,
    Request,
    SocketRecord,
    UserRecord,
    checked,
    parse_record,
)
from protocol.ledger_signature import SIGNATURE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

__all__ = [
    "FORMAT_LAYOUT",
    "FORMAT_OLDEST",
    "FORMAT_VERSION",
    "HEADER_SIZE",
    "LAYOUTS",
    "MAGIC",
    "SIGNATURE",
    "UNIT",
    "Act",
    "ActRecord",
    "BlobKind",
    "CatalogEntry",
    "Copy",
    "Credentials",
    "Figures",
    "Flag",
    "Geometry",
    "GlobalRecord",
    "Header",
    "Kind",
    "LedgerDamaged",
    "LedgerMismatch",
    "LedgerView",
    "PacketAction",
    "PoolRecord",
    "Record",
    "Request",
    "RequestAction",
    "SocketRecord",
    "SocketState",
    "UserRecord",
    "WaitType",
    "at_message_boundary",
    "blob_check",
    "copy_check",
    "entry_check",
    "fnv1a64",
    "head_check",
]

_WORD: Final = struct.Struct("=Q")
_COMMIT: Final = HEADER.field("commit").offset
_ACTS: Final = HEADER.field("act").offset
_COPIES: Final = COPY.size
_ALL_FLAGS: Final = sum(Flag)
_RETRIES: Final = 64
"""How often a copy is read again because the writer was faster; each time it has committed."""

_HEADER_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Header))
_SLOT_NUMBERS: Final = ("link", "dst", "pool", "canceled_server")
_UNIT_NUMBERS: Final = ("outbox", "extra", "record", "requests", "doom")


class LedgerView:
    """A ledger to be looked at.

    LedgerMismatch if magic, layout or signature are not ours, LedgerDamaged if the sizes in the
    header contradict each other or the buffer.  The buffer stays the caller's to release.
    """

    def __init__(self, buffer: memoryview | bytes | bytearray | mmap) -> None:
        self._data = memoryview(buffer).cast("B").toreadonly()
        try:
            self.geometry = self._check_header()
        except LedgerDamaged:
            self._data.release()
            raise

    def _check_header(self) -> Geometry:
        if len(self._data) < HEADER_SIZE:
            raise LedgerDamaged(0, "the ledger is shorter than its header")
        header = self.header
        for name, expected in (
            ("magic", MAGIC),
            ("layout", FORMAT_LAYOUT),
            ("signature", SIGNATURE),
        ):
            if name == "signature" and header.version != FORMAT_VERSION:
                continue  # who made it has other names for what is spare to us
            if getattr(header, name) != expected:
                raise LedgerMismatch(name, getattr(header, name), expected)
        geometry = Geometry(header.slots, header.iobufs, header.pkt_buf, header.units)
        for name in ("iobuf_size", "slot_offset", "iobuf_offset", "heap_offset", "size"):
            if getattr(header, name) != getattr(geometry, name):
                raise LedgerDamaged(0, f"{name} does not follow from the ledger's other sizes")
        if header.header_size != HEADER_SIZE or header.size > len(self._data):
            raise LedgerDamaged(0, "the ledger is shorter than its header says")
        return geometry

    def release(self) -> None:
        """Let go of the buffer, so that a mapping can be closed."""
        self._data.release()

    @property
    def header(self) -> Header:
        """The header as it is now: incarnation, commit word and heartbeat move on."""
        fields = HEADER.parse(self._data)
        return Header(**{name: fields[name] for name in _HEADER_FIELDS})

    @property
    def commit(self) -> int:
        """The commit word as it is now: the epoch of the last committed state."""
        return int(_WORD.unpack_from(self._data, _COMMIT)[0])

    def act(self) -> ActRecord:
        """The act record of the commit word: at most this act lies beyond the committed state."""
        for _ in range(_RETRIES):
            commit = self.commit
            fields = ACT.parse(self._data, _ACTS + (commit & 1) * ACT.size)
            if self.commit == commit:
                break
        if fields["epoch"] != commit:
            raise LedgerDamaged(0, "the act record does not belong to the commit word")
        fields["act"] = checked(0, Act, fields["act"], "act")
        if max(fields["slot"], fields["source"]) > self.geometry.slots:
            raise LedgerDamaged(0, "the act record names a slot that does not exist")
        return ActRecord(**fields)

    def committed_copy(self, slot: int) -> Copy | None:
        """The state of a slot that counts, or None where the slot is free.

        Copies beyond the commit word do not count (scrub rule); of the others the newer does.
        LedgerDamaged if that one fails its check, holds values that cannot be, or `slot` is not a
        number of this ledger.
        """
        if not 1 <= slot <= self.geometry.slots:
            raise LedgerDamaged(slot, "no such slot")
        start = self.geometry.slot_offset + (slot - 1) * SLOT.size
        for _ in range(_RETRIES):
            commit = self.commit
            raw = bytes(self._data[start : start + 2 * _COPIES])
            copy = _newest(raw, commit)
            if copy is None:
                return None
            fields = COPY.parse(copy)
            if fields["check"] == copy_check(copy, slot):
                return self._copy(slot, fields)
            if self.commit == commit:
                break
        raise LedgerDamaged(slot, "the check of its copy fails")

    def _copy(self, slot: int, fields: dict[str, Any]) -> Copy | None:
        kind = checked(slot, Kind, fields["kind"], "kind")
        if kind is Kind.FREE:
            return None
        self._check_bounds(slot, fields)
        del fields["check"], fields["spare"]
        fields["kind"] = kind
        fields["state"] = checked(slot, SocketState, fields["state"], "state")
        fields["wait_type"] = checked(slot, WaitType, fields["wait_type"], "wait_type")
        fields["pkt_action"] = checked(slot, PacketAction, fields["pkt_action"], "pkt_action")
        fields["flags"] = Flag(fields["flags"])
        return Copy(**fields)

    def _check_bounds(self, slot: int, fields: dict[str, Any]) -> None:
        geometry = self.geometry
        if fields["flags"] & ~_ALL_FLAGS:
            raise LedgerDamaged(slot, "it has flags that do not exist")
        for name in _SLOT_NUMBERS:
            if fields[name] > geometry.slots:
                raise LedgerDamaged(slot, f"{name} names a slot that does not exist")
        for name in _UNIT_NUMBERS:
            if fields[name] > geometry.units:
                raise LedgerDamaged(slot, f"{name} lies beyond the heap")
        if fields["io"] > geometry.iobufs:
            raise LedgerDamaged(slot, "io names an IOBuf that does not exist")
        positions = (fields["io_done"], fields["io_parse"], fields["io_recv"], geometry.pkt_buf)
        if fields["io"] and list(positions) != sorted(positions):
            raise LedgerDamaged(slot, "the positions in its IOBuf are out of order")
        if fields["outbox_done"] > fields["outbox_len"]:
            raise LedgerDamaged(slot, "it has sent more of its outbox than there is")
        if fields["n_requests"] > len(fields["request"]):
            raise LedgerDamaged(slot, "it counts more requests than fit inline")

    def iter_slots(self, damaged: list[LedgerDamaged] | None = None) -> Iterator[tuple[int, Copy]]:
        """Give number and state of every slot in use, in ascending order.

        Damage goes into `damaged` and the walk goes on; without such a list it is raised.
        """
        for slot in range(1, self.geometry.slots + 1):
            try:
                copy = self.committed_copy(slot)
            except LedgerDamaged as damage:
                if damaged is None:
                    raise
                damaged.append(damage)
                continue
            if copy is not None:
                yield slot, copy

    def raw_slots(self, first: int, count: int) -> bytes:
        """The bytes of `count` slots from `first` on, fewer where there are no more."""
        start = self.geometry.slot_offset + (first - 1) * SLOT.size
        end = self.geometry.slot_offset + self.geometry.slots * SLOT.size
        end = min(start + count * SLOT.size, end)
        return bytes(self._data[start:end])

    def figures(self, slot: int) -> Figures:
        """What a slot has beside its copies; LedgerDamaged if there is no such slot."""
        if not 1 <= slot <= self.geometry.slots:
            raise LedgerDamaged(slot, "no such slot")
        start = self.geometry.slot_offset + (slot - 1) * SLOT.size
        fields = SLOT.parse(self._data, start)
        return Figures(**{name: fields[name] for name in Figures.__dataclass_fields__})

    def epochs(self, slot: int) -> tuple[int, int]:
        """The epochs of both copies of a slot, whether they count or not; LedgerDamaged if none."""
        if not 1 <= slot <= self.geometry.slots:
            raise LedgerDamaged(slot, "no such slot")
        start = self.geometry.slot_offset + (slot - 1) * SLOT.size
        first, second = (_WORD.unpack_from(self._data, start + at)[0] for at in (0, _COPIES))
        return first, second

    def blob_units(self, unit: int, kind: BlobKind) -> int:
        """How many heap units the blob at `unit` takes; LedgerDamaged if no such blob is there."""
        return int(self._blob_head(0, unit, kind)["units"])

    def _blob_head(self, slot: int, unit: int, kind: BlobKind) -> dict[str, Any]:
        units = self.geometry.units
        if not 1 <= unit <= units:
            raise LedgerDamaged(slot, f"its {kind.name} blob lies beyond the heap")
        head = BLOB.parse(self._data, self.geometry.heap_offset + (unit - 1) * UNIT)
        if head["kind"] != kind:
            raise LedgerDamaged(slot, f"no {kind.name} blob where one should be")
        if not 1 <= head["units"] <= units - unit + 1:
            raise LedgerDamaged(slot, f"its {kind.name} blob does not end inside the heap")
        if kind in APPEND_ONLY and head["check"] != head_check(unit, head["units"], kind):
            raise LedgerDamaged(slot, f"the check of its {kind.name} blob's head fails")
        return head

    def blob(self, slot: int, unit: int, kind: BlobKind, used: int | None = None) -> bytes:
        """The payload of a blob that `slot` refers to.

        `used` says how many bytes count of an append-only blob.  LedgerDamaged if unit, kind,
        length or check are wrong; it names `slot`.
        """
        head = self._blob_head(slot, unit, kind)
        length = head["length"] if used is None else used
        if length > head["units"] * UNIT - BLOB.size:
            raise LedgerDamaged(slot, f"its {kind.name} blob is shorter than its contents")
        start = self.geometry.heap_offset + (unit - 1) * UNIT + BLOB.size
        payload = bytes(self._data[start : start + length])
        if kind not in APPEND_ONLY and head["check"] != blob_check(payload):
            raise LedgerDamaged(slot, f"the check of its {kind.name} blob fails")
        return payload

    def record(self, copy: Copy, slot: int = 0) -> Record:
        """The record of a slot in use: what seldom changes.

        LedgerDamaged, naming `slot`, if there is none or its bytes are not one.
        """
        return parse_record(slot, copy.kind, self.blob(slot, copy.record, BlobKind.RECORD))

    def requests(self, copy: Copy, slot: int = 0) -> tuple[Request, ...]:
        """The outstanding requests of a server, oldest first, inline or not."""
        if not copy.requests:
            return tuple(_inline_request(slot, byte) for byte in copy.request[: copy.n_requests])
        data = self.blob(slot, copy.requests, BlobKind.REQUESTS)
        if len(data) % REQUEST.size:
            raise LedgerDamaged(slot, "its outstanding requests are cut short")
        return tuple(
            _blob_request(slot, REQUEST.parse(data, at)) for at in range(0, len(data), REQUEST.size)
        )

    def catalog(self, record: SocketRecord, slot: int = 0) -> tuple[CatalogEntry, ...]:
        """The prepared statements a socket knows, in the order in which it learnt them."""
        if not record.catalog:
            return ()
        data = self.blob(slot, record.catalog, BlobKind.CATALOG, record.catalog_used)
        entries: list[CatalogEntry] = []
        at = 0
        while at < len(data):
            if at + CATALOG_ENTRY.size > len(data):
                raise LedgerDamaged(slot, "an entry of its catalog is cut short")
            fields = CATALOG_ENTRY.parse(data, at)
            end = at + CATALOG_ENTRY.size + fields["name_length"]
            entry, name = data[at : at + CATALOG_ENTRY.size], data[at + CATALOG_ENTRY.size : end]
            if end > len(data) or fields["check"] != entry_check(entry, name):
                raise LedgerDamaged(slot, "the check of an entry of its catalog fails")
            text = name.decode(errors="surrogateescape")
            entries.append(CatalogEntry(fields["query_id"], fields["statement"], text))
            at = end
        return tuple(entries)

    def iobuf(self, copy: Copy, start: int, end: int) -> bytes:
        """The bytes of a slot's IOBuf from `start` to `end`; none where it has none of its own."""
        if not copy.own_io or not 0 <= start <= end <= self.geometry.pkt_buf:
            return b""
        base = self.geometry.iobuf_offset + (copy.io - 1) * self.geometry.iobuf_size + IOBUF_HEAD
        return bytes(self._data[base + start : base + end])

    def pending_from(self, copy: Copy, slot: int = 0) -> int:
        """How many bytes a socket has read or made for the socket `copy.dst` and not sent."""
        extra = len(self.blob(slot, copy.extra, BlobKind.EXTRA)) if copy.extra else 0
        return max(extra - copy.extra_done, 0) + (copy.io_parse - copy.io_done if copy.io else 0)


def _newest(copies: bytes, commit: int) -> bytes | None:
    """Give the bytes of the copy that counts, by the scrub rule; None if neither does."""
    best: bytes | None = None
    newest = 0
    for start in (0, _COPIES):
        (epoch,) = _WORD.unpack_from(copies, start)
        if newest < epoch <= commit:
            newest, best = epoch, copies[start : start + _COPIES]
    return best


def _inline_request(slot: int, byte: int) -> Request:
    action = checked(slot, RequestAction, byte >> 6, "a request's action")
    return Request(bytes([(byte & 0x3F) + 0x40]), action)


def _blob_request(slot: int, fields: dict[str, Any]) -> Request:
    return Request(
        type=bytes([fields["type"]]),
        action=checked(slot, RequestAction, fields["action"], "a request's action"),
        closing=bool(fields["closing"]),
        query_id=fields["query_id"],
        statement=fields["statement"],
    )


def at_message_boundary(view: LedgerView, slot: int, sent: int = 0) -> bool:
    """Say whether a message of ours may be put into the stream to a client.

    True when everything that was begun towards the client of `slot` has left: nothing waits in its
    outbox, in an IOBuf that was handed on to it, in its server's extra packets or the parsed part
    of its server's IOBuf, and its server is not in the middle of a message that is being forwarded.
    `sent` is how many bytes the kernel has written beyond `Copy.tx`: they come off what waits.
    False in case of doubt: bytes that the ledger does not have, a socket that is being closed, a
    slot that is damaged or no client's.
    """
    try:
        copy = view.committed_copy(slot)
        if copy is None or copy.kind is not Kind.CLIENT:
            return False
        if copy.flags & (Flag.VOLATILE | Flag.DOOMED):
            return False
        waiting = copy.outbox_len - copy.outbox_done if copy.outbox else 0
        if copy.flags & Flag.HANDED:
            waiting += copy.io_recv - copy.io_done
        if copy.link:
            server = view.committed_copy(copy.link)
            if server is None or server.flags & Flag.VOLATILE or _is_forwarding(server):
                return False
            waiting += view.pending_from(server, copy.link)
    except LedgerDamaged:
        return False
    return waiting == sent


def _is_forwarding(server: Copy) -> bool:
    """Say whether part of a message may have been sent while the rest is not even read.

    PgBouncer's sbuf_process_pending() keeps the action SKIP when it has skipped the first part of a
    message and sends the leftover; then `skip_remain` is 0 while `pkt_remain` is not.
    """
    if not server.pkt_remain:
        return False
    return server.pkt_action is PacketAction.SEND or not server.skip_remain
