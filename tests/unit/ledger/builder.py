"""A ledger written by the test: what pgbouncer's store would have written, but in Python."""

from __future__ import annotations

import struct
from typing import Any

from protocol import ledger_layouts as layouts
from protocol.ledger import (
    SIGNATURE,
    UNIT,
    BlobKind,
    Geometry,
    Kind,
    LedgerView,
    blob_check,
    copy_check,
    entry_check,
    head_check,
)

SMALL = Geometry(slots=16, iobufs=4, pkt_buf=256, units=256)


def counted(value: str | bytes | None) -> bytes:
    """A counted string as records have it."""
    if value is None:
        return struct.pack("=H", 0xFFFF)
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("=H", len(data)) + data


def socket_record(*, names: tuple[str | None, ...] = ("alice", None, "shop", None), **fields: Any):
    """The payload of a KeeperSocketRecord without tracked parameters."""
    fixed = layouts.SOCKET_RECORD.build(**fields)
    return fixed + b"".join(counted(name) for name in names)


def pool_record(database: str = "shop", user: str = "alice", **fields: Any) -> bytes:
    """The payload of a KeeperPoolRecord without tracked parameters."""
    fixed = layouts.POOL_RECORD.build(**fields)
    return fixed + b"".join(
        counted(text) for text in (database, user, database, "fingerprint", b"welcome")
    )


def catalog(*entries: tuple[int, int, str]) -> bytes:
    """The payload of a catalog: entries of query id, unit of the statement, and name."""
    data = b""
    for query_id, statement, name in entries:
        fields = {"query_id": query_id, "statement": statement, "name_length": len(name)}
        bare = layouts.CATALOG_ENTRY.build(**fields)
        check = entry_check(bare, name.encode())
        data += layouts.CATALOG_ENTRY.build(**fields, check=check) + name.encode()
    return data


class LedgerBuilder:
    """A ledger in a bytearray; `commit` makes true what was written for its epoch."""

    def __init__(self, geometry: Geometry = SMALL) -> None:
        self.geometry = geometry
        self.data = bytearray(geometry.size)
        self.next_unit = 1
        self.header = {
            "magic": layouts.MAGIC,
            "version": layouts.FORMAT_VERSION,
            "header_size": layouts.HEADER_SIZE,
            "signature": SIGNATURE,
            "layout": layouts.FORMAT_LAYOUT,
            "size": geometry.size,
            "slots": geometry.slots,
            "iobufs": geometry.iobufs,
            "iobuf_size": geometry.iobuf_size,
            "pkt_buf": geometry.pkt_buf,
            "units": geometry.units,
            "slot_offset": geometry.slot_offset,
            "iobuf_offset": geometry.iobuf_offset,
            "heap_offset": geometry.heap_offset,
            "generation": 1,
        }
        self.commit(0)

    def commit(self, epoch: int, **act: int) -> None:
        """Set the commit word and its act record."""
        records = bytearray(self.header.get("act", bytes(2 * layouts.ACT.size)))
        at = (epoch & 1) * layouts.ACT.size
        act.setdefault("watermark", 100)
        records[at : at + layouts.ACT.size] = layouts.ACT.build(epoch=epoch, **act)
        self.set_header(act=bytes(records), commit=epoch)

    def set_header(self, **fields: Any) -> None:
        """Change fields of the header."""
        self.header.update(fields)
        self.data[: layouts.HEADER.size] = layouts.HEADER.build(**self.header)

    def copy(self, slot: int, epoch: int, *, kind: int = Kind.CLIENT, **fields: Any) -> int:
        """Write a slot's copy of an epoch: to place epoch & 1; returns its offset in the ledger."""
        raw = layouts.COPY.build(epoch=epoch, kind=kind, **fields)
        raw = layouts.COPY.build(epoch=epoch, kind=kind, check=copy_check(raw, slot), **fields)
        at = self.geometry.slot_offset + (slot - 1) * layouts.SLOT.size
        at += (epoch & 1) * layouts.COPY.size
        self.data[at : at + len(raw)] = raw
        return at

    def blob(self, kind: BlobKind, payload: bytes, *, growing: bool = False) -> int:
        """Put a blob into the heap; returns its unit."""
        size = layouts.BLOB.size + len(payload)
        units = 1 << max(-(-size // UNIT) - 1, 0).bit_length()
        unit = -(-(self.next_unit - 1) // units) * units + 1
        self.next_unit = unit + units
        assert self.next_unit <= self.geometry.units + 1
        head = layouts.BLOB.build(
            units=units,
            length=0 if growing else len(payload),
            kind=kind,
            check=head_check(unit, units, kind) if growing else blob_check(payload),
        )
        at = self.blob_at(unit)
        self.data[at : at + size] = head + payload
        return unit

    def blob_at(self, unit: int) -> int:
        """Offset of a heap unit in the ledger."""
        return self.geometry.heap_offset + (unit - 1) * UNIT

    def iobuf(self, number: int, data: bytes, start: int = 0) -> None:
        """Put bytes into an IOBuf, at position `start`."""
        at = self.geometry.iobuf_offset + (number - 1) * self.geometry.iobuf_size
        at += layouts.IOBUF_HEAD + start
        self.data[at : at + len(data)] = data

    def view(self) -> LedgerView:
        """A view of a copy of the bytes as they are now."""
        return LedgerView(bytes(self.data))
