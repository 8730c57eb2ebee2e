"""LedgerView: which copy counts, what records say, and that damage is all that can go wrong."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import ledger_layouts as layouts
from protocol.ledger import (
    Act,
    BlobKind,
    Flag,
    GlobalRecord,
    Kind,
    LedgerDamaged,
    LedgerMismatch,
    LedgerView,
    PoolRecord,
    RequestAction,
    SocketRecord,
    SocketState,
    UserRecord,
    blob_check,
    copy_check,
)
from tests.unit.ledger.builder import (
    SMALL,
    LedgerBuilder,
    catalog,
    counted,
    pool_record,
    socket_record,
)


@pytest.fixture
def builder() -> LedgerBuilder:
    return LedgerBuilder()


def test_an_empty_ledger_has_no_slots(builder: LedgerBuilder) -> None:
    view = builder.view()
    assert list(view.iter_slots()) == []
    assert view.commit == 0
    assert view.act().act is Act.NONE


def test_copies_beyond_the_commit_word_do_not_count(builder: LedgerBuilder) -> None:
    builder.copy(3, 6, token=1)
    builder.copy(3, 7, token=2)
    for commit, token in ((5, None), (6, 1), (7, 2), (8, 2)):
        builder.commit(commit)
        copy = builder.view().committed_copy(3)
        assert (copy.token if copy else None) == token


def test_a_slot_committed_as_free_is_free(builder: LedgerBuilder) -> None:
    builder.copy(3, 6, token=1)
    builder.copy(3, 7, kind=Kind.FREE)
    builder.commit(7)
    assert builder.view().committed_copy(3) is None


def test_the_older_copy_does_not_stand_in_for_a_damaged_one(builder: LedgerBuilder) -> None:
    builder.copy(3, 6, token=1)
    at = builder.copy(3, 7, token=2)
    builder.commit(7)
    builder.data[at + 9] ^= 1
    with pytest.raises(LedgerDamaged) as caught:
        builder.view().committed_copy(3)
    assert caught.value.slot == 3


def test_damage_elsewhere_does_not_end_a_walk(builder: LedgerBuilder) -> None:
    at = builder.copy(3, 7, token=2)
    builder.copy(5, 7, token=4)
    builder.commit(7)
    builder.data[at + 9] ^= 1
    damaged: list[LedgerDamaged] = []
    assert [slot for slot, _ in builder.view().iter_slots(damaged)] == [5]
    assert [damage.slot for damage in damaged] == [3]
    with pytest.raises(LedgerDamaged):
        list(builder.view().iter_slots())


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": 7},
        {"state": 17},
        {"wait_type": 5},
        {"pkt_action": 4},
        {"flags": 1 << 31},
        {"link": SMALL.slots + 1},
        {"dst": SMALL.slots + 1},
        {"pool": SMALL.slots + 1},
        {"canceled_server": SMALL.slots + 1},
        {"io": SMALL.iobufs + 1},
        {"io": 1, "io_done": 2, "io_parse": 1, "io_recv": 3},
        {"io": 1, "io_recv": SMALL.pkt_buf + 1},
        {"outbox": SMALL.units + 1},
        {"outbox_done": 2, "outbox_len": 1},
        {"extra": SMALL.units + 1},
        {"record": SMALL.units + 1},
        {"requests": SMALL.units + 1},
        {"doom": SMALL.units + 1},
        {"n_requests": 41},
    ],
)
def test_values_that_cannot_be_are_damage(builder: LedgerBuilder, fields: dict[str, int]) -> None:
    builder.copy(3, 7, **fields)
    builder.commit(7)
    with pytest.raises(LedgerDamaged) as caught:
        builder.view().committed_copy(3)
    assert caught.value.slot == 3


@pytest.mark.parametrize("slot", [0, SMALL.slots + 1, -1])
def test_a_slot_that_does_not_exist_is_damage(builder: LedgerBuilder, slot: int) -> None:
    view = builder.view()
    for read in (view.committed_copy, view.figures, view.epochs):
        with pytest.raises(LedgerDamaged):
            read(slot)


@pytest.mark.parametrize("field", ["magic", "layout", "signature"])
def test_another_format_is_named_with_ours(builder: LedgerBuilder, field: str) -> None:
    ours = builder.header[field]
    builder.set_header(**{field: 0xABC})
    with pytest.raises(LedgerMismatch) as caught:
        builder.view()
    assert (caught.value.field, caught.value.found, caught.value.expected) == (field, 0xABC, ours)
    assert "0xabc" in str(caught.value)
    assert f"{ours:#x}" in str(caught.value)


def test_who_made_it_may_know_a_newer_format(builder: LedgerBuilder) -> None:
    """With other names for what is spare to us; which format is written says the act record."""
    builder.set_header(version=layouts.FORMAT_VERSION + 1, signature=0xABC)
    builder.commit(1, format=layouts.FORMAT_VERSION)
    assert builder.view().act().format == layouts.FORMAT_VERSION


@pytest.mark.parametrize(
    "field",
    [
        *("size", "slots", "iobufs", "iobuf_size", "pkt_buf", "units"),
        *("slot_offset", "iobuf_offset", "heap_offset", "header_size"),
    ],
)
def test_sizes_that_contradict_each_other_are_damage(builder: LedgerBuilder, field: str) -> None:
    builder.set_header(**{field: builder.header[field] + 4096})
    with pytest.raises(LedgerDamaged):
        builder.view()


@pytest.mark.parametrize("length", [0, 4095, SMALL.size - 1])
def test_a_short_ledger_is_damage(builder: LedgerBuilder, length: int) -> None:
    with pytest.raises(LedgerDamaged):
        LedgerView(bytes(builder.data[:length]))


def test_the_act_record_must_belong_to_the_commit_word(builder: LedgerBuilder) -> None:
    builder.commit(7, act=Act.SEND, slot=2, source=3, watermark=9)
    act = builder.view().act()
    assert (act.act, act.slot, act.source, act.watermark) == (Act.SEND, 2, 3, 9)
    builder.set_header(commit=8)
    with pytest.raises(LedgerDamaged):
        builder.view().act()


def test_a_socket_record_is_read(builder: LedgerBuilder) -> None:
    statement = builder.blob(BlobKind.STATEMENT, struct.pack("=Q", 7) + b"select 1")
    entries = catalog((7, statement, "first"), (8, statement, ""))
    unit = builder.blob(BlobKind.CATALOG, entries + b"not counted yet", growing=True)
    names = ("alice", None, "shop", "-c x=y", "UTF8", None)
    payload = socket_record(
        names=names, id=5, cancel_key=b"secret!!", n_vars=2, catalog=unit, catalog_used=len(entries)
    )
    builder.copy(2, 1, record=builder.blob(BlobKind.RECORD, payload))
    builder.commit(1)
    view = builder.view()
    copy = view.committed_copy(2)
    assert copy is not None
    record = view.record(copy, 2)
    assert isinstance(record, SocketRecord)
    assert (record.id, record.cancel_key) == (5, b"secret!!")
    assert (record.credentials, record.credentials_database, record.database) == names[:3]
    assert record.startup_options == "-c x=y"
    assert record.variables == ("UTF8", None)
    read = view.catalog(record, 2)
    assert [(entry.query_id, entry.name) for entry in read] == [(7, "first"), (8, "")]
    assert "secret" not in repr(record)


def test_the_other_records_are_read_and_keep_secrets(builder: LedgerBuilder) -> None:
    user = layouts.USER_RECORD.build(
        cred_kind=2, has_scram_keys=1, client_key=b"SECRET" * 5, server_key=b"SECRET" * 5
    ) + b"".join(counted(text) for text in ("bob", "shop", "SECRET"))
    facts = layouts.GLOBAL_RECORD.build(
        mock_nonce=b"SECRET", n_vars=2, n_settings=1, pause_mode=1, peer_id=3, n_databases=1
    )
    texts = ("client_encoding", "TimeZone", "auth_query", "SECRET", "shop", "paused disabled")
    facts += b"".join(map(counted, texts))
    for slot, kind, payload in (
        (1, Kind.POOL, pool_record(stats=tuple(range(11)), welcome_ready=1)),
        (2, Kind.USER, user),
        (3, Kind.GLOBAL, facts),
    ):
        builder.copy(slot, 1, kind=kind, record=builder.blob(BlobKind.RECORD, payload))
    builder.commit(1)
    view = builder.view()
    pool, user_record, global_record = (view.record(copy) for _, copy in view.iter_slots())
    assert isinstance(pool, PoolRecord)
    assert (pool.database, pool.stats, pool.welcome) == ("shop", tuple(range(11)), b"welcome")
    assert isinstance(user_record, UserRecord)
    assert (user_record.name, user_record.password) == ("bob", "SECRET")
    assert isinstance(global_record, GlobalRecord)
    assert global_record.variables == ("client_encoding", "TimeZone")
    assert global_record.settings == (("auth_query", "SECRET"),)
    assert global_record.databases == (("shop", "paused disabled"),)
    assert "SECRET" not in repr((pool, user_record, global_record))


def test_a_record_of_another_shape_is_damage(builder: LedgerBuilder) -> None:
    payload = socket_record()
    for slot, wrong in enumerate(
        (payload + b"x", payload[:-1], payload[:-2], payload[:10], socket_record(cred_kind=6)), 1
    ):
        builder.copy(slot, 1, record=builder.blob(BlobKind.RECORD, wrong))
    builder.commit(1)
    view = builder.view()
    for slot, copy in view.iter_slots():
        with pytest.raises(LedgerDamaged) as caught:
            view.record(copy, slot)
        assert caught.value.slot == slot


def test_a_count_of_settings_cannot_exhaust_memory(builder: LedgerBuilder) -> None:
    payload = layouts.GLOBAL_RECORD.build(n_settings=0xFFFFFFFF)
    builder.copy(1, 1, kind=Kind.GLOBAL, record=builder.blob(BlobKind.RECORD, payload))
    builder.commit(1)
    view = builder.view()
    copy = view.committed_copy(1)
    assert copy is not None
    with pytest.raises(LedgerDamaged):
        view.record(copy)


def test_a_blob_must_be_what_its_referrer_says(builder: LedgerBuilder) -> None:
    unit = builder.blob(BlobKind.EXTRA, b"bytes to be sent")
    view = builder.view()
    assert view.blob(1, unit, BlobKind.EXTRA) == b"bytes to be sent"
    with pytest.raises(LedgerDamaged, match="no OUTBOX blob"):
        view.blob(1, unit, BlobKind.OUTBOX, 3)
    for wrong in (0, SMALL.units + 1):
        with pytest.raises(LedgerDamaged, match="beyond the heap"):
            view.blob(1, wrong, BlobKind.EXTRA)
    at = builder.blob_at(unit)
    builder.data[at + layouts.BLOB.size] ^= 1
    with pytest.raises(LedgerDamaged, match="check"):
        builder.view().blob(1, unit, BlobKind.EXTRA)
    builder.data[at : at + 4] = struct.pack("=I", SMALL.units)
    builder.data[at + 4 : at + 8] = struct.pack("=I", SMALL.units * 64)
    with pytest.raises(LedgerDamaged, match="shorter"):
        builder.view().blob(1, unit, BlobKind.EXTRA)
    builder.data[at : at + 4] = struct.pack("=I", SMALL.units + 1)
    with pytest.raises(LedgerDamaged, match="end inside"):
        builder.view().blob(1, unit, BlobKind.EXTRA)


def test_outstanding_requests_inline_and_in_a_blob(builder: LedgerBuilder) -> None:
    inline = bytes(action << 6 | ord(letter) - 0x40 for action, letter in ((0, "Q"), (2, "P")))
    unit = builder.blob(
        BlobKind.REQUESTS,
        layouts.REQUEST.build(type=ord("C"), action=1, closing=1, query_id=9, statement=4),
    )
    builder.copy(1, 1, kind=Kind.SERVER, n_requests=2, request=inline + bytes(20))
    builder.copy(2, 1, kind=Kind.SERVER, requests=unit)
    builder.copy(3, 1, kind=Kind.SERVER, n_requests=1, request=b"\xff" + bytes(21))
    builder.commit(1)
    view = builder.view()
    first, second = (view.requests(copy) for slot, copy in view.iter_slots() if slot < 3)
    assert [(request.type, request.action) for request in first] == [
        (b"Q", RequestAction.FORWARD),
        (b"P", RequestAction.FAKE),
    ]
    assert [(r.type, r.action, r.closing, r.query_id, r.statement) for r in second] == [
        (b"C", RequestAction.SKIP, True, 9, 4)
    ]
    broken = view.committed_copy(3)
    assert broken is not None
    with pytest.raises(LedgerDamaged):
        view.requests(broken, 3)


def test_a_copy_that_is_being_overwritten_is_read_again(builder: LedgerBuilder) -> None:
    """A live ledger: the writer overtakes the reader between the commit word and the copy."""
    builder.copy(3, 6, token=1)
    builder.copy(3, 7, token=2)
    builder.commit(6)
    at = builder.geometry.slot_offset + 2 * layouts.SLOT.size
    view = LedgerView(builder.data)

    class Overtaking(LedgerView):
        reads = 0

        @property
        def commit(self) -> int:
            Overtaking.reads += 1
            if Overtaking.reads == 1:
                builder.data[at + 9] ^= 1  # copy 6 is being written over ...
                return 6
            return 7  # ... because 7 has been committed

    assert Overtaking(builder.data).committed_copy(3).token == 2
    with pytest.raises(LedgerDamaged):
        view.committed_copy(3)


def _full_ledger() -> LedgerBuilder:
    builder = LedgerBuilder()
    statement = builder.blob(BlobKind.STATEMENT, struct.pack("=Q", 7) + b"select 1")
    entries = catalog((7, statement, "first"))
    record = socket_record(
        catalog=builder.blob(BlobKind.CATALOG, entries, growing=True), catalog_used=len(entries)
    )
    pool = builder.blob(BlobKind.RECORD, pool_record())
    request = layouts.REQUEST.build(type=ord("C"), statement=statement)
    builder.copy(1, 1, kind=Kind.POOL, record=pool)
    builder.copy(
        *(2, 1),
        token=1,
        state=SocketState.CL_ACTIVE,
        link=3,
        pool=1,
        record=builder.blob(BlobKind.RECORD, record),
        outbox=builder.blob(BlobKind.OUTBOX, b"outbox", growing=True),
        outbox_len=6,
    )
    builder.copy(
        *(3, 1),
        kind=Kind.SERVER,
        token=1 << 63 | 1,
        state=SocketState.SV_ACTIVE,
        link=2,
        pool=1,
        io=1,
        io_parse=10,
        io_recv=20,
        record=builder.blob(BlobKind.RECORD, socket_record()),
        requests=builder.blob(BlobKind.REQUESTS, request),
        extra=builder.blob(BlobKind.EXTRA, b"extra"),
        doom=builder.blob(BlobKind.DOOM, b"doom"),
        flags=Flag.READY,
    )
    builder.commit(1)
    return builder


FULL = bytes(_full_ledger().data)


def _read_everything(data: bytes) -> None:
    """Everything that LedgerView offers; LedgerDamaged is the only way out."""
    try:
        view = LedgerView(data)
    except LedgerDamaged:
        return
    for slot in range(1, view.geometry.slots + 1):
        try:
            copy = view.committed_copy(slot)
            view.figures(slot)
            view.epochs(slot)
            if copy is None:
                continue
            view.iobuf(copy, copy.io_done, copy.io_recv)
            view.requests(copy, slot)
            view.pending_from(copy, slot)
            record = view.record(copy, slot)
            if isinstance(record, SocketRecord):
                view.catalog(record, slot)
            view.blob(slot, copy.outbox, BlobKind.OUTBOX, copy.outbox_len)
            view.blob(slot, copy.doom, BlobKind.DOOM)
        except LedgerDamaged:
            continue
    try:
        view.act()
    except LedgerDamaged:
        return


_COPY_AREA = SMALL.slot_offset, SMALL.slot_offset + 3 * layouts.SLOT.size
_HEAP_AREA = SMALL.heap_offset, SMALL.heap_offset + 64 * 24
_AREAS = [(0, layouts.HEADER.size), _COPY_AREA, _HEAP_AREA, (0, SMALL.size)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_scribbled_bytes_only_ever_mean_damage(data: st.DataObject) -> None:
    ledger = bytearray(FULL)
    for _ in range(data.draw(st.integers(1, 8))):
        first, last = data.draw(st.sampled_from(_AREAS))
        at = data.draw(st.integers(first, last - 1))
        scribble = data.draw(st.binary(min_size=1, max_size=16))[: len(ledger) - at]
        ledger[at : at + len(scribble)] = scribble
    _read_everything(bytes(ledger))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_scribbled_bytes_with_good_checks_only_ever_mean_damage(data: st.DataObject) -> None:
    """The checks do not stand in for looking at what they cover."""
    ledger = bytearray(FULL)
    for slot in (1, 2, 3):
        at = SMALL.slot_offset + (slot - 1) * layouts.SLOT.size + layouts.COPY.size
        for _ in range(data.draw(st.integers(0, 3))):
            field = data.draw(st.sampled_from(layouts.COPY.fields[4:-1]))
            value = data.draw(st.binary(min_size=field.size, max_size=field.size))
            ledger[at + field.offset : at + field.offset + field.size] = value
        check = copy_check(ledger[at : at + layouts.COPY.size], slot)
        end = at + layouts.COPY.size
        ledger[end - 8 : end] = struct.pack("=Q", check)
        record = struct.unpack_from("=I", ledger, at + layouts.COPY.field("record").offset)[0]
        if 1 <= record <= 64:
            _scribble_record(data, ledger, SMALL.heap_offset + (record - 1) * 64)
    _read_everything(bytes(ledger))


def _scribble_record(data: st.DataObject, ledger: bytearray, at: int) -> None:
    length = struct.unpack_from("=I", ledger, at + 4)[0]
    if not 0 < length < 4096:
        return
    payload = at + layouts.BLOB.size
    where = payload + data.draw(st.integers(0, length - 1))
    value = data.draw(st.binary(min_size=1, max_size=4))
    ledger[where : where + len(value)] = value
    check = blob_check(ledger[payload : payload + length])
    ledger[at + 12 : at + 16] = struct.pack("=I", check)
