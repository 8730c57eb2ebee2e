"""Catalogs that a successor leaves in the ledger: looked up there, unfolded when they change."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, wait_until
from testbed.errors import ConnectionLostError
from testbed.ledgers import at_rest, check_ledger
from testbed.pooler import ADMIN
from testbed.rawclient import frontend, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper

LOOKUPS = 8  # FOLDED_LOOKUPS of catalog.c: one more, and the catalog is unfolded
SYNC = frontend("S")


def parse(name: str, statement: str) -> bytes:
    return frontend("P", text(name), text(statement), b"\0\0")


def execution(name: str) -> bytes:
    return frontend("B", text(""), text(name), bytes(6)) + frontend("E", text(""), bytes(4)) + SYNC


def prepare(client: RawClient, statements: dict[str, str]) -> None:
    """Prepare all of them in one go; values by names."""
    client.send(b"".join(parse(n, f"SELECT '{v}'") for n, v in statements.items()) + SYNC)
    kinds = [message.kind for message in client.until_ready()]
    assert kinds == ["1"] * len(statements) + ["Z"]


def values(client: RawClient) -> list[str | None]:
    """The first columns of what is answered up to the next ReadyForQuery, and no error."""
    messages = list(client.until_ready())
    assert [message for message in messages if message.kind == "E"] == []
    return [message.row()[0] for message in messages if message.kind == "D"]


def value(client: RawClient, name: str) -> str | None:
    client.send(execution(name))
    (only,) = values(client)
    return only


def close(client: RawClient, name: str) -> None:
    client.send(frontend("C", b"S", text(name)) + SYNC)
    assert [message.kind for message in client.until_ready()] == ["3", "Z"]


def end_of(client: RawClient, data: bytes) -> str:
    """Send what must end the session; the message."""
    client.send(data)
    messages = []
    with contextlib.suppress(ConnectionLostError):
        while True:
            messages.append(client.read_any())
    return messages[-1].error_fields()["M"]


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    return make_keeper(settings={"max_prepared_statements": 30, "default_pool_size": 2})


def counts(keeper: Keeper) -> list[int]:
    """How many statements each client has by SHOW CLIENTS, but for the console's own."""
    rows = keeper.admin("SHOW CLIENTS")
    return sorted(row["prepared_statements"] for row in rows if row["user"] != ADMIN)


def test_names_are_found_before_and_after_unfolding(keeper: Keeper) -> None:
    """Names of every length, more than once, each over kills."""
    names = {"n" * length: str(length) for length in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 40)}
    with RawClient(keeper.host, keeper.port).login() as client:
        prepare(client, names)
        for _ in range(3):
            keeper.kill_bouncer()
            assert counts(keeper) == [len(names)]
            for _ in range(2):  # more than LOOKUPS in all
                assert {name: value(client, name) for name in names} == names
            assert counts(keeper) == [len(names)]
    check_ledger(keeper)


@pytest.mark.parametrize("lookups", [0, 1, LOOKUPS, LOOKUPS + 1])
def test_a_folded_catalog_is_changed(keeper: Keeper, lookups: int) -> None:
    """After some lookups: one more statement, one less, one with another meaning; then a kill."""
    expected = {f"s{number}": str(number) for number in range(5)}
    with RawClient(keeper.host, keeper.port).login() as client:
        prepare(client, expected)
        for turn in range(3):
            keeper.kill_bouncer()
            for _ in range(lookups):
                assert value(client, "s4") == expected["s4"]
            more = {f"more{turn}": f"more in turn {turn}"}
            prepare(client, more)
            close(client, "s0")
            prepare(client, {"s0": f"other in turn {turn}"})
            close(client, "s1" if turn == 0 else f"more{turn - 1}")
            expected |= more | {"s0": f"other in turn {turn}"}
            del expected["s1" if turn == 0 else f"more{turn - 1}"]
            assert counts(keeper) == [len(expected)]
            keeper.kill_bouncer()
            assert {name: value(client, name) for name in expected} == expected
    check_ledger(keeper)


def test_a_name_is_taken_or_unknown_as_before_the_kill(keeper: Keeper) -> None:
    """Both end a session, with PgBouncer's own words."""
    for data, message in (
        (parse("taken", "SELECT 3") + SYNC, "prepared statement name is already in use"),
        (execution("unknown"), "prepared statement did not exist"),
        (execution("take"), "prepared statement did not exist"),
        (frontend("D", b"S", text("takenn")) + SYNC, "prepared statement did not exist"),
    ):
        with RawClient(keeper.host, keeper.port).login() as client:
            prepare(client, {"taken": "1", "other": "2"})
            keeper.kill_bouncer()
            assert end_of(client, data) == message
    check_ledger(keeper)


def test_all_are_forgotten_at_once(keeper: Keeper) -> None:
    """DEALLOCATE ALL and DISCARD ALL empty a catalog, folded or not, and every name is free."""
    for command in ("DEALLOCATE ALL", "DISCARD ALL"):
        with (
            RawClient(keeper.host, keeper.port).login() as client,
            RawClient(keeper.host, keeper.port).login() as other,
        ):
            for one in (client, other):
                prepare(one, {"a": "1", "b": "2"})
            keeper.kill_bouncer()
            client.query(command)
            assert counts(keeper) == [0, 2]
            prepare(client, {"a": "3"})
            keeper.kill_bouncer()
            assert (value(client, "a"), value(other, "a"), value(other, "b")) == ("3", "1", "2")
            assert end_of(client, execution("b")) == "prepared statement did not exist"


def test_nothing_is_left_of_those_who_leave(keeper: Keeper) -> None:
    """Texts go with their last user: who leaves folded, who was looked up, who was unfolded."""
    with RawClient(keeper.host, keeper.port).login() as client:
        assert client.query("SELECT 1") == [("1",)]
    empty = at_rest(keeper)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(keeper.host, keeper.port)).login() for _ in "abc"]
        for number, client in enumerate(clients):
            prepare(client, {"shared": "1", "own": f"of {number}"})
        keeper.kill_bouncer()
        assert value(clients[1], "own") == "of 1"
        for _ in range(LOOKUPS + 1):
            assert value(clients[2], "own") == "of 2"
        clients[0].close()
        wait_until(lambda: counts(keeper) == [2, 2], what="the first has left")
        keeper.kill_bouncer()
        assert [value(client, "shared") for client in clients[1:]] == ["1", "1"]
    # Servers keep what was prepared on them; without those nothing may be left.
    wait_until(lambda: counts(keeper) == [], what="all have left")
    keeper.admin("RECONNECT")
    wait_until(lambda: keeper.admin("SHOW SERVERS") == [], what="the servers have gone")
    with RawClient(keeper.host, keeper.port).login() as client:
        assert client.query("SELECT 1") == [("1",)]
    assert at_rest(keeper) == empty


def many(sessions: int, statements: int, make_keeper: MakeKeeper, kills: int) -> None:
    """So many sessions with so many statements each; after each kill all are asked at once.

    The same name means something else in each session.
    """
    keeper = make_keeper(
        settings={
            "max_client_conn": sessions + 50,
            "max_prepared_statements": statements,
            "listen_backlog": 1024,
            "log_connections": 0,
            "log_disconnections": 0,
        }
    )
    with contextlib.ExitStack() as stack:
        clients = []
        for who in range(sessions):
            client = RawClient(keeper.host, keeper.port, timeout=60)
            clients.append(stack.enter_context(client).login())
            prepare(client, {f"s{n}": str((who + n) % statements) for n in range(statements)})
        for kill in range(kills):
            before = keeper.status().pgbouncer
            assert before.pid is not None
            os.kill(before.pid, signal.SIGKILL)
            for who, client in enumerate(clients):
                client.send(execution(f"s{(3 * who + kill) % statements}"))
            for who, client in enumerate(clients):
                meant = (who + (3 * who + kill) % statements) % statements
                assert values(client) == [str(meant)]
            status = keeper.wait_active(after=before.incarnation)
            assert status.adoptions.sessions_lost == 0
            assert status.sessions.clients_held == sessions
        check_ledger(keeper)


def test_many_statements_of_many_sessions(make_keeper: MakeKeeper) -> None:
    many(200, 50, make_keeper, kills=3)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for our own ends of the sessions."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 6000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (6000, max(hard, 6000)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("many_descriptors")
def test_a_million_statements(make_keeper: MakeKeeper) -> None:
    """What the figures of docs/adoption.md are about."""
    many(5000, 200, make_keeper, kills=3)
