"""The consistency check finds nothing in a sound ledger, and everything else elsewhere."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from pgkeeper.ledger.check import check, usage
from protocol.ledger import (
    Act,
    BlobKind,
    Flag,
    Kind,
    LedgerDamaged,
    SocketState,
    blob_check,
    head_check,
)
from tests.unit.ledger.builder import LedgerBuilder, catalog, pool_record, socket_record

if TYPE_CHECKING:
    from collections.abc import Callable


class Sound:
    """A pool, a linked pair that shares a statement, an idle server and a user-less global slot."""

    def __init__(self) -> None:
        builder = self.builder = LedgerBuilder()
        self.statement = builder.blob(BlobKind.STATEMENT, b"text")
        self.slots: dict[int, dict[str, Any]] = {
            1: {"kind": Kind.POOL, "record": builder.blob(BlobKind.RECORD, pool_record())},
            2: {
                "kind": Kind.CLIENT,
                "token": 1,
                "state": SocketState.CL_ACTIVE,
                "link": 3,
                "pool": 1,
                "record": self.record(7),
                "io": 1,
            },
            3: {
                "kind": Kind.SERVER,
                "token": 1 << 63 | 1,
                "state": SocketState.SV_ACTIVE,
                "link": 2,
                "pool": 1,
                "record": self.record(7),
                "io": 2,
                "extra": builder.blob(BlobKind.EXTRA, b"extra" * 30),
            },
            4: {
                "kind": Kind.SERVER,
                "token": 1 << 63 | 2,
                "state": SocketState.SV_IDLE,
                "pool": 1,
                "outbox": builder.blob(BlobKind.OUTBOX, b"outbox", growing=True),
                "outbox_len": 6,
            },
        }
        self.act: dict[str, int] = {"act": Act.RECV, "slot": 2, "watermark": 1}

    def record(self, query_id: int) -> int:
        entries = catalog((query_id, self.statement, ""))
        unit = self.builder.blob(BlobKind.CATALOG, entries, growing=True)
        payload = socket_record(catalog=unit, catalog_used=len(entries))
        return self.builder.blob(BlobKind.RECORD, payload)

    def view(self):
        for slot, fields in self.slots.items():
            self.builder.copy(slot, 1, **fields)
        self.builder.commit(1, **self.act)
        return self.builder.view()


@pytest.fixture
def sound() -> Sound:
    return Sound()


def test_a_sound_ledger_has_no_findings(sound: Sound) -> None:
    view = sound.view()
    assert check(view) == []
    used = usage(view)
    assert used.slots == {Kind.POOL: 1, Kind.CLIENT: 1, Kind.SERVER: 2}
    # statement, 2 catalogs, 2 records of 2 units, pool's record of 4, extra of 4 and an outbox
    assert (used.iobufs, used.units) == (2, 1 + 2 + 4 + 4 + 4 + 1)


def test_an_empty_ledger_uses_nothing() -> None:
    view = LedgerBuilder().view()
    assert check(view) == []
    assert usage(view).units == 0


def _set(slot: int, **fields: Any) -> Callable[[Sound], None]:
    return lambda sound: sound.slots[slot].update(fields)


def _overlap(sound: Sound) -> None:
    """A blob in the middle of another one: slot 4's outbox inside the four units of slot 3's."""
    inside = sound.slots[3]["extra"] + 1
    at, other = (sound.builder.blob_at(unit) for unit in (inside, sound.slots[4]["outbox"]))
    sound.slots[4]["outbox"] = inside
    # shorten the outer payload's checked part: the head of the inner blob lies in it
    head = bytearray(sound.builder.data[other : other + 16])
    units, _, kind = struct.unpack_from("=3I", head)
    struct.pack_into("=I", head, 12, head_check(inside, units, kind))
    outer = sound.builder.blob_at(sound.slots[3]["extra"])
    sound.builder.data[at : at + 16] = head
    payload = sound.builder.data[outer + 16 : outer + 16 + 150]
    sound.builder.data[outer + 12 : outer + 16] = blob_check(payload).to_bytes(4, "little")


def _damage(sound: Sound) -> None:
    sound.builder.data[sound.builder.blob_at(sound.statement) + 16] ^= 1


def _same_epochs(sound: Sound) -> None:
    at = sound.builder.copy(9, 1, kind=Kind.FREE)
    sound.builder.data[at - 192 : at] = sound.builder.data[at : at + 192]


FAULTS: dict[str, tuple[Callable[[Sound], None], str]] = {
    "link to nobody": (_set(2, link=9), "linked to slot 9, which is free"),
    "link not answered": (_set(3, link=0), "which is linked to 0"),
    "link to a pool": (lambda s: (_set(2, link=1)(s), _set(1, link=2)(s)), "linked to a POOL"),
    "pool is a server": (_set(2, pool=4), "its pool is no pool"),
    "cancels a client": (_set(4, canceled_server=2), "it cancels is no server"),
    "client state": (_set(2, state=SocketState.SV_IDLE), "client in state SV_IDLE"),
    "server state": (_set(4, state=SocketState.CL_ACTIVE), "server in state CL_ACTIVE"),
    "token twice": (_set(4, token=1 << 63 | 1), "token is not its own"),
    "no token": (_set(4, token=0), "token is not its own"),
    "client token for a server": (_set(4, token=1 << 62), "token of the other side"),
    "token above watermark": (_set(2, token=2), "above the watermark"),
    "two owners of an IOBuf": (_set(2, io=2), "IOBuf 2 is also slot 2's"),
    "outbox missing": (_set(4, outbox=0), "outbox that does not exist"),
    "outbox too short": (_set(4, outbox_len=500), "shorter than its contents"),
    "blob shared": (lambda s: _set(2, record=s.slots[3]["record"])(s), "overlaps the RECORD"),
    "blob overlaps": (_overlap, "overlaps the"),
    "blob missing": (_set(2, record=200), "no RECORD blob"),
    "blob damaged": (_damage, "check of its STATEMENT blob"),
    "slot damaged": (_set(2, kind=9), "kind is 9"),
    "epoch far ahead": (lambda s: s.builder.copy(9, 5, kind=Kind.FREE), "further beyond"),
    "epoch twice": (_same_epochs, "same epoch"),
    "act on a free slot": (lambda s: s.act.update(slot=9), "act record says RECV"),
    "two globals": (
        lambda s: s.slots.update({5: {"kind": Kind.GLOBAL}, 6: {"kind": Kind.GLOBAL}}),
        "more than one slot",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_found(sound: Sound, name: str) -> None:
    spoil, expected = FAULTS[name]
    spoil(sound)
    view = sound.view()
    found = [str(finding) for finding in check(view)]
    assert any(expected in text for text in found), found
    with pytest.raises(LedgerDamaged):
        usage(view)


def test_a_doomed_socket_may_have_lost_its_link(sound: Sound) -> None:
    sound.slots[3].update(link=0, flags=Flag.DOOMED)
    assert check(sound.view()) == []


def test_a_commit_under_way_is_no_fault(sound: Sound) -> None:
    sound.builder.copy(9, 2, kind=Kind.CLIENT, token=77)
    assert check(sound.view()) == []


def test_the_act_record_must_be_the_words(sound: Sound) -> None:
    view = sound.view()
    sound.builder.set_header(commit=2)
    assert [finding.slot for finding in check(view)] == []
    assert any("act record" in finding.what for finding in check(sound.builder.view()))
