"""The ledger's checksums, as format.h computes them.

They notice a scribbled slot or blob, not a malicious one: whoever can write to the ledger is
pgbouncer itself.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from protocol.ledger_layouts import CATALOG_ENTRY, COPY, MAGIC

if TYPE_CHECKING:
    from protocol.layout import Buffer

_MASK64: Final = (1 << 64) - 1
_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3

_WORDS: Final = struct.Struct(f"={COPY.size // 8}Q")
_CHECK: Final = COPY.field("check").offset // 8
_BLOB_WORD: Final = struct.Struct("=Q")
_HEAD: Final = struct.Struct("=3I")
_ENTRY_CHECK: Final = CATALOG_ENTRY.field("check")


def fnv1a64(data: Buffer) -> int:
    """Hash bytes with FNV-1a, 64 bits."""
    value = _FNV_OFFSET
    for byte in data:
        value = (value ^ byte) * _FNV_PRIME & _MASK64
    return value


def copy_check(copy: Buffer, slot: int) -> int:
    """`keeper_check()` of the bytes of a copy of `slot`: what its field `check` must be."""
    total = MAGIC + slot
    for place, word in enumerate(_WORDS.unpack_from(copy)):
        if place != _CHECK:
            by = 2 * place + 1
            total += word << by | word >> (64 - by)
    return total & _MASK64


def blob_check(payload: Buffer) -> int:
    """`keeper_blob_check()` of an immutable blob's payload; never 0."""
    data = bytes(payload)
    value = _FNV_OFFSET ^ len(data)
    for (word,) in _BLOB_WORD.iter_unpack(data + bytes(-len(data) % _BLOB_WORD.size)):
        value = (value ^ word) * _FNV_PRIME & _MASK64
        value ^= value >> 32
    return (value ^ value >> 32) & 0xFFFFFFFF | 1


def head_check(unit: int, units: int, kind: int) -> int:
    """`keeper_head_check()` of an append-only blob: what the check in its head must be."""
    return blob_check(_HEAD.pack(unit, units, kind))


def entry_check(entry: Buffer, name: Buffer) -> int:
    """`keeper_entry_check()` of the bytes of a KeeperCatalogEntry and the name that follows it."""
    bare = bytearray(entry)
    bare[_ENTRY_CHECK.offset : _ENTRY_CHECK.offset + _ENTRY_CHECK.size] = bytes(_ENTRY_CHECK.size)
    value = (blob_check(bare) ^ blob_check(name) << 1) & 0xFFFFFFFF
    return (value ^ value >> 16) & 0xFFFF
