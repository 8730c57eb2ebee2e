"""Two thousand sessions over a kill, and nothing that is left of them when they have gone."""

from __future__ import annotations

import contextlib
import itertools
import resource
from typing import TYPE_CHECKING

import pytest

from protocol.ledger import Kind
from testbed import RawClient, wait_until
from testbed.ledgers import at_rest, check_ledger, ledger_of
from testbed.rawclient import frontend, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.fix_keeper import MakeKeeper

SESSIONS = 2000


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for our own ends of the sessions."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SESSIONS + 500
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_two_thousand_sessions_and_nothing_left_of_them(make_keeper: MakeKeeper) -> None:
    keeper = make_keeper(
        settings={
            "max_client_conn": SESSIONS + 100,
            "listen_backlog": 1024,
            "max_prepared_statements": 10,
        }
    )
    empty = at_rest(keeper)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(RawClient(keeper.host, keeper.port, timeout=30)).login(
                parameters={"application_name": f"raw {number}"}
            )
            for number in range(SESSIONS)
        ]
        # Every tenth has a prepared statement, every hundredth a transaction.
        for client, number in zip(clients[::10], itertools.count(0, 10), strict=False):
            prepare(client, number)
        in_transaction = clients[5::100][:15]
        for client in in_transaction:
            client.query("BEGIN")
        assert keeper.status().sessions.clients_held == SESSIONS
        usage = check_ledger(keeper)
        assert usage.slots[Kind.CLIENT] == SESSIONS

        status = keeper.kill_bouncer()

        assert status.sessions.clients_held == SESSIONS
        assert (status.adoptions.sessions_lost, status.sessions.unheld) == (0, {})
        assert check_ledger(keeper).slots[Kind.CLIENT] == SESSIONS
        for client in in_transaction:
            client.query("COMMIT")
            assert client.transaction_status == "I"
        assert names(clients) == [f"raw {number}" for number in range(SESSIONS)]
        for client, number in zip(clients[::10], itertools.count(0, 10), strict=False):
            assert execute(client) == str(number)

    wait_until(lambda: keeper.status().sessions.clients_held == 0, what="all have been released")
    assert at_rest(keeper) == empty


def test_slots_and_blobs_are_used_again(make_keeper: MakeKeeper) -> None:
    """Many more sessions, one after the other, than a small ledger has room for, over kills."""
    keeper = make_keeper(settings={"max_client_conn": 20, "max_prepared_statements": 10})
    empty = at_rest(keeper)
    with ledger_of(keeper) as view:
        assert view.geometry.slots < 320
        assert view.geometry.units * 64 < 320 * 60_000
    for round_ in range(3):
        for number in range(320):
            with RawClient(keeper.host, keeper.port).login() as client:
                prepare(client, number, padding=60_000)
                assert execute(client) == str(number)
        assert keeper.status().sessions.unheld == {}, f"round {round_}"
        keeper.kill_bouncer()
    assert at_rest(keeper) == empty


def prepare(client: RawClient, number: int, *, padding: int = 0) -> None:
    """Prepare a statement of its own under the name `mine`."""
    statement = f"SELECT {number}" + " " * padding
    client.send(frontend("P", text("mine"), text(statement), b"\0\0") + frontend("S"))
    assert [message.kind for message in client.until_ready()] == ["1", "Z"]


def execute(client: RawClient) -> str | None:
    """What the statement `mine` says."""
    bind = frontend("B", text(""), text("mine"), b"\0\0\0\0\0\0")
    client.send(bind + frontend("E", text(""), b"\0\0\0\0") + frontend("S"))
    messages = {message.kind: message for message in client.until_ready()}
    assert "E" not in messages, messages["E"].error_fields()
    return messages["D"].row()[0]


def names(clients: Sequence[RawClient]) -> list[str | None]:
    """What each session is called, asked of all at once."""
    for client in clients:
        client.send(frontend("Q", text("SHOW application_name")))
    answers = []
    for client in clients:
        (row,) = (message.row() for message in client.until_ready() if message.kind == "D")
        answers.append(row[0])
    return answers
