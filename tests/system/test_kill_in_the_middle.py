"""A kill at a chosen place in a conversation, each time the same."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, wait_until
from testbed.bystander import Bystander
from testbed.errors import ConnectionLostError, ServerError
from testbed.ledgers import check_ledger
from testbed.load import pattern
from testbed.process import send
from testbed.rawclient import frontend, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Keeper, Postgres
    from tests.fix_keeper import MakeKeeper


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Iterator[Keeper]:
    """With a bystander; and the ledger is checked when all is over."""
    kept = make_keeper(settings={"max_prepared_statements": 50, "default_pool_size": 3})
    with Bystander(kept):
        yield kept
    check_ledger(kept)


def test_while_a_query_runs(keeper: Keeper, postgres: Postgres) -> None:
    with RawClient(keeper.host, keeper.port).login() as client:
        with held_lock(postgres, 4713):
            ask_for_lock(postgres, client, 4713)
            keeper.kill_bouncer()
        assert answer(client) == ["got 4713"]


def test_an_answer_that_comes_while_nobody_serves(keeper: Keeper, postgres: Postgres) -> None:
    with RawClient(keeper.host, keeper.port).login() as client:
        pid = keeper.bouncer_pid
        with held_lock(postgres, 4714):
            ask_for_lock(postgres, client, 4714)
            # As good as dead, and cannot be replaced before the answer has come.
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not postgres.runs(lock_statement(4714)), what="it has been answered")
        send(pid, signal.SIGKILL)
        assert answer(client) == ["got 4714"]


def lock_statement(number: int) -> str:
    return f"SELECT 'got {number}' FROM pg_advisory_xact_lock({number})"


@contextlib.contextmanager
def held_lock(postgres: Postgres, number: int) -> Iterator[None]:
    """Somebody else has the lock."""
    with contextlib.closing(postgres.connect()) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (number,))
        yield


def ask_for_lock(postgres: Postgres, client: RawClient, number: int) -> None:
    """Send the query, which waits in the server."""
    client.send(frontend("Q", text(lock_statement(number))))
    wait_until(lambda: postgres.runs(lock_statement(number)), what="it runs")


def answer(client: RawClient) -> list[str | None]:
    """The first column of the rows up to ReadyForQuery. Raises `ServerError`."""
    rows = []
    while (message := client.read()).kind != "Z":
        if message.kind == "D":
            rows.append(message.row()[0])
    return rows


@pytest.mark.parametrize("read_before", [1, 4095, 4096, 4097, 100_000, 3_000_000])
def test_a_long_row_of_which_a_part_was_read(keeper: Keeper, read_before: int) -> None:
    """It is longer than all buffers on its way, so pgbouncer stands in the middle of it."""
    size = 12_000_000
    # Byte n of the value is a letter that n determines, in a pattern of 23 letters.
    letters = "abcdefghijklmnopqrstuvw"
    statement = f"SELECT left(repeat('{letters}', {size // 23 + 1}), {size})"
    with RawClient(keeper.host, keeper.port).login() as client:
        client.send(frontend("Q", text(statement)))
        assert client.read().kind == "T"
        start = client.read_bytes(read_before)
        keeper.kill_bouncer()
        rest = client.read_bytes(11 + size - read_before)
        value = (start + rest)[11:]
        assert value == (letters.encode() * (size // 23 + 1))[:size]
        assert [message.kind for message in client.until_ready()] == ["C", "Z"]


@pytest.mark.parametrize("sent_before", [3, 5, 20, 4096, 70_000, 5_000_000])
def test_a_large_value_of_which_a_part_was_sent(keeper: Keeper, sent_before: int) -> None:
    value = pattern(0, 6_000_000)
    bind = frontend(
        "B",
        *(text(""), text(""), (1).to_bytes(2, "big"), (1).to_bytes(2, "big")),
        *((1).to_bytes(2, "big"), len(value).to_bytes(4, "big"), value),
        *((1).to_bytes(2, "big"), (1).to_bytes(2, "big")),
    )
    # bytea, so that what comes back is what was sent.
    parse = frontend("P", text(""), text("SELECT $1::bytea"), b"\0\0")
    messages = parse + bind + frontend("E", text(""), bytes(4)) + frontend("S")
    with (
        RawClient(keeper.host, keeper.port).login() as client,
        ThreadPoolExecutor() as threads,
    ):
        client.send(messages[: len(parse) + sent_before])
        keeper.kill_bouncer()
        # The value comes back while it is still being sent.
        sender = threads.submit(client.send, messages[len(parse) + sent_before :])
        kinds = []
        for message in client.until_ready():
            kinds.append(message.kind)
            if message.kind == "D":
                assert message.body[6:] == value
        sender.result(10)
        assert kinds == ["1", "2", "D", "C", "Z"]


def test_copy_in_and_copy_out(keeper: Keeper, postgres: Postgres) -> None:
    postgres.sql("DROP TABLE IF EXISTS middle")
    postgres.sql("CREATE TABLE middle (n int)")
    lines = [f"{n}\n".encode() for n in range(1000)]
    with contextlib.closing(keeper.connect()) as connection:
        with connection.cursor() as cursor, cursor.copy("COPY middle FROM STDIN") as copy:
            for number, line in enumerate(lines):
                copy.write(line)
                if number % 300 == 100:
                    keeper.kill_bouncer()
        with connection.cursor() as cursor, cursor.copy("COPY middle TO STDOUT") as copy:
            got = []
            for number, part in enumerate(copy):
                got.append(bytes(part))
                if number % 300 == 100:
                    keeper.kill_bouncer()
        assert got == lines


def test_a_copy_that_the_client_gives_up(keeper: Keeper, postgres: Postgres) -> None:
    postgres.sql("DROP TABLE IF EXISTS middle")
    postgres.sql("CREATE TABLE middle (n int)")
    with RawClient(keeper.host, keeper.port).login() as client:
        client.send(frontend("Q", text("COPY middle FROM STDIN")))
        assert client.read().kind == "G"
        client.send(frontend("d", b"1\n"))
        keeper.kill_bouncer()
        client.send(frontend("f", text("changed my mind")))
        with pytest.raises(ServerError, match="changed my mind"):
            answer(client)
        assert client.read().kind == "Z"
        assert client.query("SELECT count(*) FROM middle") == [("0",)]


def test_who_waits_for_a_server_goes_on_waiting(keeper: Keeper) -> None:
    """First come, first served, also over a kill."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(keeper.host, keeper.port)) for _ in range(6)]
        busy, waiting = clients[:2], clients[2:]
        for client in clients:
            client.login()
        # One of the three servers is the bystander's.
        for client in busy:
            client.query("BEGIN")
        for number, client in enumerate(waiting, 1):
            client.send(frontend("Q", text(f"SELECT nextval('turn'), {number}")))
            wait_until(partial(waiting_are, keeper, number), what=f"{number} wait")
            if number == 2:
                keeper.kill_bouncer()
        keeper.kill_bouncer()
        assert cl_waiting(keeper) == len(waiting)
        busy[0].query("COMMIT")
        turns = [answer(client)[0] for client in waiting]
        assert turns == sorted(turns, key=lambda turn: int(turn or 0))
        busy[1].query("COMMIT")


@pytest.fixture(autouse=True)
def _turns(postgres: Postgres) -> None:
    postgres.sql("DROP SEQUENCE IF EXISTS turn")
    postgres.sql("CREATE SEQUENCE turn")


def waiting_are(keeper: Keeper, number: int) -> bool:
    """Whether so many clients wait for a server."""
    return cl_waiting(keeper) == number


def cl_waiting(keeper: Keeper) -> int:
    """How many clients wait for a server."""
    return sum(int(row["cl_waiting"]) for row in keeper.admin("SHOW POOLS"))


def test_a_cancel_right_before_the_kill(keeper: Keeper, postgres: Postgres) -> None:
    """It may be lost, as a cancel may; it must not hit anybody else, or end the session."""
    with (
        RawClient(keeper.host, keeper.port).login() as client,
        RawClient(keeper.host, keeper.port).login() as other,
    ):
        other.query("BEGIN")
        for turn in range(10):
            statement = f"SELECT pg_sleep(60) /* cancel {turn} */"
            client.send(frontend("Q", text(statement)))
            wait_until(partial(postgres.runs, statement), what="it runs")
            with socket.create_connection((keeper.host, keeper.port), 10) as request:
                request.sendall(cancel_request(client))
                keeper.kill_bouncer()
            # A second one, in case that the first was lost.
            with contextlib.suppress(ConnectionLostError, ServerError):
                if postgres.runs(statement):
                    client.cancel()
            with pytest.raises(ServerError) as canceled:
                answer(client)
            assert canceled.value.sqlstate == "57014"
            assert client.read().kind == "Z"
            assert client.query("SELECT 1") == [("1",)]
            assert other.query("SELECT 1") == [("1",)]
        other.query("COMMIT")


def cancel_request(client: RawClient) -> bytes:
    """A CancelRequest with the key that the client got at its login."""
    return frontend("", struct.pack("!ii", 80877102, client.backend_pid) + client.cancel_key)


def test_a_client_that_leaves_while_nobody_serves(keeper: Keeper, postgres: Postgres) -> None:
    """Its transaction is rolled back, and its server goes or is cleaned."""
    postgres.sql("DROP TABLE IF EXISTS middle")
    postgres.sql("CREATE TABLE middle (n int)")
    pid = keeper.bouncer_pid
    client = RawClient(keeper.host, keeper.port).login()
    idle = RawClient(keeper.host, keeper.port).login()
    client.query("BEGIN")
    client.query("INSERT INTO middle VALUES (1)")
    os.kill(pid, signal.SIGSTOP)
    client.socket.close()
    idle.close()
    send(pid, signal.SIGKILL)
    keeper.wait_active(other_than=pid)
    wait_until(
        lambda: keeper.status().sessions.clients_held == 2, what="only the bystander is there"
    )
    open_transactions = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO middle%'"
    )
    wait_until(lambda: postgres.value(open_transactions) == 0, what="its server has gone")
    assert postgres.value("SELECT count(*) FROM middle") == 0


def test_a_server_that_ends_while_nobody_serves(keeper: Keeper, postgres: Postgres) -> None:
    """Its client is told what PostgreSQL said; who has no server gets another one."""
    with (
        RawClient(keeper.host, keeper.port).login(database="session") as pinned,
        RawClient(keeper.host, keeper.port).login() as free,
    ):
        ((backend,),) = pinned.query("SELECT pg_backend_pid()")
        ((idle,),) = free.query("SELECT pg_backend_pid()")
        pid = keeper.bouncer_pid
        os.kill(pid, signal.SIGSTOP)
        for one in (backend, idle):
            assert postgres.value("SELECT pg_terminate_backend(%s, 5000)", (one,)) is True
        send(pid, signal.SIGKILL)
        keeper.wait_active(other_than=pid)
        pinned.send(frontend("Q", text("SELECT 1")))
        with pytest.raises((ServerError, ConnectionLostError)) as told:
            answer(pinned)
        assert not isinstance(told.value, ServerError) or told.value.fields["S"] == "FATAL"
        assert free.query("SELECT 1") == [("1",)]


@pytest.mark.parametrize("size", [60_000, 70_000, 2_000_000])
def test_a_large_parse_of_which_a_part_was_sent(keeper: Keeper, size: int) -> None:
    """PgBouncer collects a Parse as a whole, however long it is."""
    parse = frontend("P", text("large"), text(f"SELECT {size}{' ' * size}"), b"\0\0")
    with RawClient(keeper.host, keeper.port).login() as client:
        client.send(parse[: size // 2])
        wait_until(lambda: doing_a_parse(keeper), what="it has been read")
        keeper.kill_bouncer()
        client.send(parse[size // 2 :] + frontend("S"))
        assert [message.kind for message in client.until_ready()] == ["1", "Z"]
        bind = frontend("B", text(""), text("large"), bytes(6))
        client.send(bind + frontend("E", text(""), bytes(4)) + frontend("S"))
        assert answer(client) == [str(size)]


def doing_a_parse(keeper: Keeper) -> bool:
    """Whether some session is in the middle of a Parse."""
    return any("message" in row.doing or row.reason for row in keeper.sessions())
