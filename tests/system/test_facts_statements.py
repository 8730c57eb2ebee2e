"""Prepared statements over kills: names, texts, plans, and the server's own knowledge of them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from testbed import AsyncpgSession, PsycopgSession, RawClient
from testbed.ledgers import check_ledger
from testbed.rawclient import frontend, text

if TYPE_CHECKING:
    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    """Servers keep three statements, so that they forget all the time."""
    return make_keeper(settings={"max_prepared_statements": 3, "default_pool_size": 2})


def prepare(client: RawClient, name: str, statement: str) -> list[str]:
    """Prepare a statement; the kinds of the answers."""
    client.send(frontend("P", text(name), text(statement), b"\0\0") + frontend("S"))
    return [message.kind for message in client.until_ready()]


def execute(client: RawClient, name: str, row_limit: int = 0) -> tuple[list[str | None], list[str]]:
    """Execute a statement without parameters; its rows' first columns and the errors' codes."""
    bind = frontend("B", text(""), text(name), bytes(6))
    limit = row_limit.to_bytes(4, "big")
    client.send(bind + frontend("E", text(""), limit) + frontend("S"))
    messages = list(client.until_ready())
    rows = [message.row()[0] for message in messages if message.kind == "D"]
    return rows, [message.error_fields()["C"] for message in messages if message.kind == "E"]


def test_more_statements_than_a_server_keeps(keeper: Keeper) -> None:
    """Two servers, three statements each, twelve in use: a wrong number would answer wrongly."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(keeper.host, keeper.port)).login() for _ in "abc"]
        for who, client in enumerate(clients):
            for what in range(4):
                assert prepare(client, f"s{what}", f"SELECT {10 * who + what}") == ["1", "Z"]
        for turn in range(6):
            for who, client in enumerate(clients):
                what = (turn + who) % 4
                assert execute(client, f"s{what}") == ([str(10 * who + what)], [])
            keeper.kill_bouncer()
        for who, client in enumerate(clients):
            for what in range(4):
                assert execute(client, f"s{what}") == ([str(10 * who + what)], [])
    check_ledger(keeper)


def test_the_same_name_means_what_each_client_meant(keeper: Keeper) -> None:
    with (
        RawClient(keeper.host, keeper.port).login() as one,
        RawClient(keeper.host, keeper.port).login() as other,
    ):
        prepare(one, "s", "SELECT 1")
        prepare(other, "s", "SELECT 2")
        keeper.kill_bouncer()
        assert execute(one, "s") == (["1"], [])
        assert execute(other, "s") == (["2"], [])


def test_a_new_statement_gets_no_old_number(keeper: Keeper) -> None:
    """The counter of PGBOUNCER_n goes on: the servers still know the old ones."""
    with RawClient(keeper.host, keeper.port).login() as client:
        prepare(client, "old", "SELECT 'old'")
        assert execute(client, "old") == (["old"], [])
        keeper.kill_bouncer()
        prepare(client, "new", "SELECT 'new'")
        assert execute(client, "new") == (["new"], [])
        assert execute(client, "old") == (["old"], [])


def test_a_closed_statement_stays_closed(keeper: Keeper) -> None:
    with RawClient(keeper.host, keeper.port).login() as client:
        prepare(client, "s", "SELECT 1")
        client.send(frontend("C", b"S", text("s")) + frontend("S"))
        assert [message.kind for message in client.until_ready()] == ["3", "Z"]
        keeper.kill_bouncer()
        assert prepare(client, "s", "SELECT 2") == ["1", "Z"]
        assert execute(client, "s") == (["2"], [])


def test_a_kill_between_the_messages_of_a_pipeline(keeper: Keeper) -> None:
    """Parse, Bind, Describe, Execute, Close, Sync: killed before each of them, then once more."""
    bind = frontend("B", text(""), text("s"), bytes(6))
    pipeline = [
        frontend("P", text("s"), text("SELECT 42"), b"\0\0"),
        frontend("D", b"S", text("s")),
        bind,
        frontend("D", b"P", text("")),
        frontend("E", text(""), bytes(4)),
        frontend("C", b"S", text("s")),
        frontend("S"),
    ]
    expected = ["1", "t", "T", "2", "T", "D", "C", "3", "Z"]
    with RawClient(keeper.host, keeper.port).login() as client:
        for at in range(len(pipeline) + 1):
            client.send(b"".join(pipeline[:at]))
            keeper.kill_bouncer()
            client.send(b"".join(pipeline[at:]))
            assert [message.kind for message in client.until_ready()] == expected
        # And in the middle of each message.
        for at in range(len(pipeline)):
            whole = b"".join(pipeline)
            cut = sum(map(len, pipeline[:at])) + len(pipeline[at]) // 2
            client.send(whole[:cut])
            keeper.kill_bouncer()
            client.send(whole[cut:])
            assert [message.kind for message in client.until_ready()] == expected
    check_ledger(keeper)


def test_an_error_in_a_pipeline_skips_to_its_sync(keeper: Keeper) -> None:
    with RawClient(keeper.host, keeper.port).login() as client:
        broken = frontend("P", text(""), text("SELECT broken"), b"\0\0")
        client.send(broken + frontend("H"))
        assert client.read_any().kind == "E"
        keeper.kill_bouncer()
        rest = frontend("B", text(""), text(""), bytes(6)) + frontend("E", text(""), bytes(4))
        client.send(rest + frontend("S"))
        assert [message.kind for message in client.until_ready()] == ["Z"]
        assert client.query("SELECT 1") == [("1",)]


def test_a_half_read_portal_goes_on(keeper: Keeper) -> None:
    with RawClient(keeper.host, keeper.port).login() as client:
        client.query("BEGIN")
        prepare(client, "s", "SELECT n FROM generate_series(1, 4) AS n")
        bind = frontend("B", text("p"), text("s"), bytes(6))
        two = frontend("E", text("p"), (2).to_bytes(4, "big")) + frontend("S")
        client.send(bind + two)
        assert [message.kind for message in client.until_ready()] == ["2", "D", "D", "s", "Z"]
        keeper.kill_bouncer()
        client.send(two)
        rows = [message.row()[0] for message in client.until_ready() if message.kind == "D"]
        assert rows == ["3", "4"]
        client.query("COMMIT")


def test_the_drivers_own_statements(keeper: Keeper) -> None:
    """psycopg prepares after five times, asyncpg at once: both by names they never ask about."""

    async def scenario() -> None:
        sessions = (
            await PsycopgSession.open(keeper, "transaction"),
            await AsyncpgSession.open(keeper, "transaction"),
        )
        for turn in range(12):
            for session in sessions:
                for n in range(5):
                    assert await session.fetch(f"SELECT {n} AS n") == [(n,)]
            if turn % 3 == 2:
                await asyncio.to_thread(keeper.kill_bouncer)
        for session in sessions:
            await session.close()

    asyncio.run(scenario())
