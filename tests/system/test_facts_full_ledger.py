"""A ledger without room: who finds none is served all the same, unheld, and everybody says so."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, wait_until
from testbed.bystander import Bystander
from testbed.errors import ConnectionLostError, ServerError
from testbed.ledgers import at_rest, ledger_of
from testbed.pooler import ADMIN
from testbed.rawclient import frontend, text

if TYPE_CHECKING:
    from testbed import Keeper, Postgres
    from tests.fix_keeper import MakeKeeper

UNIT = 64  # bytes: KEEPER_UNIT of the ledger's format


@pytest.fixture
def keeper(make_keeper: MakeKeeper, postgres: Postgres) -> Keeper:
    """The smallest ledger there is, and a database for every name."""
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    return make_keeper(
        databases={
            "session": f"{target} pool_mode=session",
            "transaction": f"{target} pool_mode=transaction",
            "*": f"{target} pool_mode=transaction",
        },
        settings={"max_client_conn": 5, "max_prepared_statements": 1000},
    )


def test_no_slot_left(keeper: Keeper) -> None:
    """Each database has a pool and an idle server, and each of the two takes a slot."""
    with Bystander(keeper):
        fill_slots(keeper)
        with contextlib.ExitStack() as stack:
            extra = [
                stack.enter_context(RawClient(keeper.host, keeper.port)).login() for _ in range(3)
            ]
            for client in extra:
                client.query("BEGIN")
                assert client.query("SELECT 1") == [("1",)]
            held = {row.token: row for row in keeper.sessions() if row.kind == "client"}
            mine = [held[token] for token in sorted(held)][-len(extra) :]
            assert [row.reason for row in mine].count("ledger-full") >= 1
            assert keeper.status().sessions.unheld["ledger-full"] >= 1
            assert '"ledger-full"' in keeper.run("status", "--json").stdout

            keeper.kill_bouncer()

            # What was unheld ends with its pgbouncer, not with a false answer; what was held, or
            # said to be, goes on.
            for client, row in zip(extra, mine, strict=True):
                if row.held:
                    assert client.query("SELECT 2") == [("2",)]
                    assert client.transaction_status == "T"
                else:
                    with pytest.raises((ConnectionLostError, ServerError)):
                        client.query("SELECT 2")
        assert keeper.status().sessions.unheld == {}
        # There is room again when servers go.
        keeper.admin("RECONNECT")
        wait_until(lambda: len(keeper.admin("SHOW SERVERS")) <= 2, what="idle servers have gone")
        with RawClient(keeper.host, keeper.port).login() as client:
            keeper.kill_bouncer()
            assert client.query("SELECT 1") == [("1",)]


def fill_slots(keeper: Keeper) -> None:
    """Use up every slot but those that are in use anyway."""
    for number in range(200):
        with RawClient(keeper.host, keeper.port) as client:
            client.login(database=f"filler{number}")
            assert client.query("SELECT 1") == [("1",)]
        if keeper.status().sessions.unheld:
            break
    else:
        pytest.fail("200 pools and their servers fill no ledger of 268 slots")
    with ledger_of(keeper) as view:
        assert view.geometry.slots < 300


def test_no_room_for_statements(keeper: Keeper) -> None:
    """More prepared statements than the heap holds: the others' facts still have their room."""
    with (
        Bystander(keeper),
        RawClient(keeper.host, keeper.port).login() as greedy,
        RawClient(keeper.host, keeper.port).login() as modest,
    ):
        prepare(modest, "mine", "SELECT 42")
        count = fill_heap(keeper, greedy)
        # It is served, every one of its statements.
        for number in range(0, count, 50):
            assert execute(greedy, f"s{number}") == str(number)
        assert execute(greedy, f"s{count - 1}") == str(count - 1)
        assert unheld_reasons(keeper)["client"] != []

        keeper.kill_bouncer()

        assert execute(modest, "mine") == "42"
        # The greedy one is gone, or whole; never half.
        try:
            answers = {execute(greedy, f"s{number}") for number in (0, count - 1)}
        except (ConnectionLostError, ServerError):
            answers = set()
        assert answers in (set(), {"0", str(count - 1)})


def fill_heap(keeper: Keeper, client: RawClient) -> int:
    """Prepare large statements until the ledger has no room for them; how many."""
    with ledger_of(keeper) as view:
        needed = view.geometry.units * UNIT // 60_000 + 10
    for number in range(needed):
        prepare(client, f"s{number}", f"SELECT {number}{' ' * 60_000}")
    assert unheld_reasons(keeper)["client"]
    return needed


def test_no_room_for_an_answer_of_the_console(keeper: Keeper) -> None:
    """It comes all the same; the session that it went to is not held any more."""
    with (
        RawClient(keeper.host, keeper.port).login() as greedy,
        RawClient(keeper.host, keeper.port).login(user=ADMIN, database="pgbouncer") as console,
    ):
        before = console.query("SHOW CONFIG")
        fill_heap(keeper, greedy)
        # All in one read of PgBouncer's, and so at one time in the ledger.
        console.send(frontend("Q", text("SHOW CONFIG")) * 200)
        for _ in range(200):
            rows = [message for message in console.until_ready() if message.kind == "D"]
            assert len(rows) == len(before)
        # The answer to another console commits what has become of this one.
        keeper.admin("SHOW VERSION")
        assert [row.reason for row in keeper.sessions() if row.reason == "console"]
        keeper.kill_bouncer()
        with pytest.raises(ServerError, match="pgbouncer was restarted"):
            console.read()


def test_room_comes_back(keeper: Keeper) -> None:
    """When the greedy have gone, the ledger is as empty as it was."""
    before = at_rest(keeper)
    with RawClient(keeper.host, keeper.port).login() as greedy:
        fill_heap(keeper, greedy)
    assert at_rest(keeper) == before
    with RawClient(keeper.host, keeper.port).login() as client:
        prepare(client, "mine", "SELECT 42")
        assert unheld_reasons(keeper)["client"] == []
        keeper.kill_bouncer()
        assert execute(client, "mine") == "42"
    assert at_rest(keeper) == before


def unheld_reasons(keeper: Keeper) -> dict[str, list[str]]:
    """Why sockets are not held, by side, as `pgkeeper sessions` says; the console apart."""
    reasons: dict[str, list[str]] = {"client": [], "server": []}
    for row in keeper.sessions():
        if not row.held and row.reason not in (None, "console"):
            reasons[row.kind].append(str(row.reason))
    return reasons


def prepare(client: RawClient, name: str, statement: str) -> None:
    """Prepare a named statement."""
    client.send(frontend("P", text(name), text(statement), b"\0\0") + frontend("S"))
    kinds = [message.kind for message in client.until_ready()]
    assert kinds == ["1", "Z"]


def execute(client: RawClient, name: str) -> str | None:
    """The one value of a prepared statement. Raises `ServerError`, `ConnectionLostError`."""
    bind = frontend("B", text(""), text(name), b"\0\0\0\0\0\0")
    client.send(bind + frontend("E", text(""), b"\0\0\0\0") + frontend("S"))
    rows = []
    while True:
        message = client.read()
        if message.kind == "D":
            rows.append(message.row()[0])
        elif message.kind == "Z":
            (value,) = rows
            return value
