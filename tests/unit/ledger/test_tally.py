"""The cheap count of a ledger's sockets is what the dear list says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgkeeper.ledger.reader import sessions
from pgkeeper.ledger.tally import Pool, Tally, count
from protocol.ledger import BlobKind, Flag, Geometry, Kind, LedgerView, SocketState
from tests.unit.ledger.builder import LedgerBuilder, pool_record, socket_record

SERVER = 1 << 63
SHOP = Pool("shop", "alice")


def tallied(view: LedgerView, held: set[int]) -> Tally:
    tally = Tally()
    for _ in count(view, held, tally, 60.0):
        pass
    return tally


def shop() -> LedgerBuilder:
    """A pool (slot 1), a client (2) linked to a server (3), and one that logs in (4)."""
    ledger = LedgerBuilder()
    pool = ledger.blob(BlobKind.RECORD, pool_record("shop", "alice"))
    ledger.copy(1, 1, kind=Kind.POOL, record=pool)
    record = ledger.blob(BlobKind.RECORD, socket_record())
    ledger.copy(2, 1, token=7, pool=1, link=3, state=SocketState.CL_ACTIVE, record=record)
    ledger.copy(
        *(3, 1),
        kind=Kind.SERVER,
        token=SERVER | 1,
        pool=1,
        link=2,
        state=SocketState.SV_ACTIVE,
        record=record,
    )
    ledger.copy(4, 1, token=8, state=SocketState.CL_LOGIN, record=record)
    ledger.commit(1)
    return ledger


def test_held_sockets_by_pool() -> None:
    tally = tallied(shop().view(), {7, 8, SERVER | 1})
    assert tally.clients == {SHOP: 1, Pool(): 1}
    assert tally.servers == {SHOP: 1}
    assert tally.unheld == {}
    assert tally.tokens == {7, 8, SERVER | 1}


def test_what_would_not_survive_is_counted_by_reason() -> None:
    ledger = shop()
    ledger.copy(2, 2, token=7, pool=1, state=SocketState.CL_ACTIVE, flags=Flag.VOLATILE)
    ledger.copy(4, 2, token=8, state=SocketState.CL_LOGIN, flags=Flag.CONSOLE)
    ledger.commit(2)
    tally = tallied(ledger.view(), {7, 8})
    assert tally.clients == tally.servers == {}
    assert tally.unheld == {"in-flight": 1, "console": 1, "not-registered": 1}


def test_what_is_not_committed_does_not_count() -> None:
    ledger = shop()
    ledger.copy(4, 2, kind=Kind.FREE)
    ledger.copy(5, 2, token=9, state=SocketState.CL_LOGIN)
    view = ledger.view()
    assert tallied(view, {7, 8, 9}).tokens == {7, 8, SERVER | 1}
    ledger.commit(2)
    assert tallied(ledger.view(), {7, 8, 9}).tokens == {7, 9, SERVER | 1}


def test_a_closing_socket_is_no_connection_any_more() -> None:
    ledger = shop()
    ledger.copy(4, 2, kind=Kind.CLOSING, token=8)
    ledger.commit(2)
    tally = tallied(ledger.view(), {7, 8, SERVER | 1})
    assert tally.clients == {SHOP: 1}
    assert 8 in tally.tokens


def test_others_get_their_turn() -> None:
    ledger = LedgerBuilder(Geometry(slots=1000, iobufs=4, pkt_buf=256, units=256))
    turns = list(count(ledger.view(), (), Tally(), 0.0))
    assert len(turns) == 4


@given(st.lists(st.tuples(st.integers(0, 16 * 448 - 1), st.integers(0, 255)), max_size=8))
def test_no_damage_is_more_than_a_wrong_number(changes: list[tuple[int, int]]) -> None:
    ledger = shop()
    for at, value in changes:
        ledger.data[ledger.geometry.slot_offset + at] = value
    view = ledger.view()
    tallied(view, {7, 8})
    list(sessions(view, 0))
