"""Session rows and message boundaries, from ledgers that the test writes."""

from __future__ import annotations

from typing import Any

import pytest

from pgkeeper.ledger.reader import SHOW_STATES, at_message_boundary, sessions
from protocol.ledger import BlobKind, Flag, Kind, SocketState
from tests.unit.ledger.builder import LedgerBuilder, pool_record, socket_record

CLIENT, SERVER, POOL = 2, 3, 1
CLIENT_TOKEN, SERVER_TOKEN = 5, 1 << 63 | 5
NOW = 2_000_000_000_000_000


class Pair:
    """A client linked to a server, both of one pool; tests change what they are about."""

    def __init__(self) -> None:
        self.builder = LedgerBuilder()
        self.client: dict[str, Any] = {
            "kind": Kind.CLIENT,
            "token": CLIENT_TOKEN,
            "state": SocketState.CL_ACTIVE,
            "link": SERVER,
            "pool": POOL,
            "record": self.builder.blob(BlobKind.RECORD, socket_record()),
        }
        self.server: dict[str, Any] = {
            "kind": Kind.SERVER,
            "token": SERVER_TOKEN,
            "state": SocketState.SV_ACTIVE,
            "link": CLIENT,
            "dst": CLIENT,
            "pool": POOL,
            "record": self.builder.blob(BlobKind.RECORD, socket_record(names=("alice",) * 4)),
        }
        unit = self.builder.blob(BlobKind.RECORD, pool_record())
        self.builder.copy(POOL, 1, kind=Kind.POOL, record=unit)

    def commit(self) -> None:
        self.builder.copy(CLIENT, 1, **self.client)
        self.builder.copy(SERVER, 1, **self.server)
        self.builder.commit(1)

    def rows(self):
        self.commit()
        return {row.kind: row for row in sessions(self.builder.view(), NOW)}

    def boundary(self, sent: int = 0) -> bool:
        self.commit()
        return at_message_boundary(self.builder.view(), CLIENT, sent)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_rows_name_both_sides_of_a_link(pair: Pair) -> None:
    rows = pair.rows()
    client, server = rows["client"], rows["server"]
    assert (client.slot, client.token, client.linked) == (CLIENT, CLIENT_TOKEN, SERVER_TOKEN)
    assert (server.slot, server.token, server.linked) == (SERVER, SERVER_TOKEN, CLIENT_TOKEN)
    assert (client.user, client.database, client.state) == ("alice", "shop", "active")
    assert (client.held, client.reason, client.doing) == (True, None, "idle")
    assert client.transaction_age is None


def test_every_state_has_pgbouncers_word() -> None:
    assert set(SHOW_STATES) == set(SocketState)
    assert SHOW_STATES[SocketState.SV_TESTED] == "tested"


@pytest.mark.parametrize(
    ("state", "word", "doing"),
    [
        (SocketState.CL_LOGIN, "login", "login"),
        (SocketState.CL_WAITING, "waiting", "waiting for a server"),
        (SocketState.CL_WAITING_LOGIN, "waiting", "login"),
    ],
)
def test_clients_without_a_server(pair: Pair, state: SocketState, word: str, doing: str) -> None:
    pair.client.update(state=state, link=0, pool=0, record=0)
    pair.server.update(state=SocketState.SV_IDLE, link=0)
    rows = pair.rows()
    assert (rows["client"].state, rows["client"].doing) == (word, doing)
    assert (rows["client"].user, rows["client"].database) == (None, None)
    assert (rows["server"].state, rows["server"].doing) == ("idle", "idle")


def test_queries_and_transactions(pair: Pair) -> None:
    pair.client["xact_start"] = NOW - 2_500_000
    assert pair.rows()["client"].doing == "in transaction"
    assert pair.rows()["client"].transaction_age == 2.5
    pair.server.update(n_requests=1, request=bytes([ord("Q") - 0x40]) + bytes(21))
    assert pair.rows()["client"].doing == "in query (1 request outstanding)"
    assert pair.rows()["server"].outstanding == 1
    pair.server["flags"] = Flag.COPY_MODE
    assert pair.rows()["server"].doing == "in COPY"


def test_a_message_that_has_only_begun(pair: Pair) -> None:
    query = b"Q\x00\x00\x00\x0aabc"
    pair.builder.iobuf(1, b"S\x00\x00\x00\x04" + query)
    pair.client.update(io=1, io_recv=5 + len(query))
    row = pair.rows()["client"]
    assert row.message_type == "Q"
    assert row.doing == "idle, message in flight (type Q)"
    pair.client.update(io_recv=5)
    assert pair.rows()["client"].message_type is None
    pair.client.update(io_recv=5 + len(query), pkt_remain=77)
    row = pair.rows()["client"]
    assert (row.message_type, row.message_left) == (None, 77)
    assert row.doing == "idle, message in flight (77 bytes to come)"


def test_what_was_handed_on_to_a_client_is_no_message_of_its_own(pair: Pair) -> None:
    pair.builder.iobuf(1, b"D\x00\x00\x00\x0aabcdef")
    pair.client.update(io=1, io_recv=11, flags=Flag.HANDED)
    row = pair.rows()["client"]
    assert (row.message_type, row.doing) == (None, "idle")


@pytest.mark.parametrize(("sent", "is_boundary"), [(0, False), (10, False), (11, True)])
def test_a_boundary_comes_when_what_was_handed_on_has_left(
    pair: Pair, sent: int, is_boundary: bool
) -> None:
    pair.client.update(io=1, io_recv=11, flags=Flag.HANDED)
    assert pair.boundary(sent) is is_boundary


def test_bytes_that_are_no_message_have_no_type(pair: Pair) -> None:
    pair.builder.iobuf(1, b"Q\x00\x00\x00\x00")
    pair.client.update(io=1, io_recv=5)
    assert pair.rows()["client"].message_type is None


@pytest.mark.parametrize(
    ("flag", "reason"), [(Flag.VOLATILE, "in-flight"), (Flag.CONSOLE, "console")]
)
def test_what_is_not_held_says_why(pair: Pair, flag: Flag, reason: str) -> None:
    pair.client["flags"] = flag
    row = pair.rows()["client"]
    assert (row.held, row.reason) == (False, reason)


def test_a_closing_socket_is_known_by_its_token(pair: Pair) -> None:
    pair.client.update(link=0)
    pair.server = {"kind": Kind.CLOSING, "token": SERVER_TOKEN}
    server = pair.rows()["server"]
    assert (server.state, server.doing) == ("closing", "being disconnected")


@pytest.mark.parametrize("what", ["copy", "record"])
def test_a_damaged_slot_has_a_row_that_says_so(pair: Pair, what: str) -> None:
    pair.commit()
    at = pair.builder.copy(CLIENT, 1, **pair.client)
    if what == "record":
        at = pair.builder.blob_at(pair.client["record"]) + 10
    pair.builder.data[at + 20] ^= 1
    row = next(row for row in sessions(pair.builder.view(), NOW) if row.slot == CLIENT)
    assert (row.state, row.held, row.reason) == ("damaged", False, "damaged")
    assert row.token == (CLIENT_TOKEN if what == "record" else 0)


def test_pools_have_no_rows(pair: Pair) -> None:
    pair.commit()
    assert [row.slot for row in sessions(pair.builder.view(), NOW)] == [CLIENT, SERVER]


def test_an_idle_client_stands_at_a_boundary(pair: Pair) -> None:
    assert pair.boundary()
    pair.client["link"] = 0
    pair.server["link"] = 0
    assert pair.boundary()


def test_what_waits_towards_the_client_counts(pair: Pair) -> None:
    pair.server.update(io=1, io_done=3, io_parse=10, io_recv=15)
    assert not pair.boundary()
    assert pair.boundary(sent=7)
    pair.server["extra"] = pair.builder.blob(BlobKind.EXTRA, b"12345")
    assert pair.boundary(sent=12)
    pair.client["outbox"] = pair.builder.blob(BlobKind.OUTBOX, b"outbox", growing=True)
    pair.client.update(outbox_done=2, outbox_len=6)
    assert pair.boundary(sent=16)
    assert not pair.boundary(sent=12)


@pytest.mark.parametrize(
    ("fields", "boundary"),
    [
        ({"pkt_action": 1, "pkt_remain": 9}, False),  # being forwarded
        ({"pkt_action": 2, "pkt_remain": 9, "skip_remain": 9}, True),  # being skipped
        ({"pkt_action": 2, "pkt_remain": 9, "skip_remain": 0}, False),  # leftover being sent
        ({"pkt_action": 3, "pkt_remain": 9, "skip_remain": 9}, True),  # kept for a callback
        ({"pkt_action": 1, "pkt_remain": 0}, True),
        ({"flags": Flag.VOLATILE}, False),
    ],
)
def test_a_server_in_the_middle_of_a_message(
    pair: Pair, fields: dict[str, int], boundary: bool
) -> None:
    pair.server.update(fields)
    assert pair.boundary() is boundary


def test_what_the_client_itself_sends_does_not_matter(pair: Pair) -> None:
    pair.client.update(pkt_action=1, pkt_remain=9, io=1, io_parse=5, io_recv=8)
    assert pair.boundary()


@pytest.mark.parametrize(
    "fields",
    [
        {"flags": Flag.VOLATILE},
        {"flags": Flag.DOOMED},
        {"kind": Kind.CLOSING},
        {"kind": Kind.SERVER},
        {"kind": Kind.FREE},
        {"link": 9},
        {"flags": 1 << 31},
    ],
)
def test_in_doubt_it_is_no_boundary(pair: Pair, fields: dict[str, int]) -> None:
    pair.client.update(fields)
    assert not pair.boundary()
