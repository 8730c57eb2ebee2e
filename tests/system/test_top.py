"""`pgkeeper top` against a real hanger: what it is told, what it ends, and in a real terminal."""

from __future__ import annotations

import contextlib
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeeper.control.client import RequestFailedError
from pgkeeper.control.report import TopQuery, token_name
from testbed import RawClient, snapshot, wait_until
from testbed.errors import ConnectionLostError
from testbed.ledgers import check_ledger
from testbed.process import send
from testbed.rawclient import frontend, text

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from pgkeeper.control.report import TopRow
    from testbed import Keeper, RunDir
    from testbed.postgres import Connection


#: Bytes of a value that fills every buffer between PostgreSQL and a client that does not read.
LONG = 30_000_000


def rows(keeper: Keeper, **query: object) -> list[TopRow]:
    return keeper.client.top(TopQuery(**query)).top.rows  # type: ignore[arg-type]


def token_of(keeper: Keeper, database: str) -> str:
    """Of the only client of that database."""
    (row,) = rows(keeper, match=database)
    return token_name(row.session.token)


@pytest.fixture
def running(keeper: Keeper) -> Iterator[RawClient]:
    """A session in a query that does not end by itself."""
    with RawClient(keeper.host, keeper.port).login(database="transaction") as client:
        client.send(frontend("Q", text("SELECT pg_sleep(600)")))
        wait_until(
            lambda: any(row.age for row in rows(keeper, match="transaction")), what="a query runs"
        )
        yield client
    # PostgreSQL does not notice before its end that nobody waits for it any more.
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sle'"
    keeper.sql(query, dbname="session")


def test_pgbouncer_dies_while_it_ends_one(keeper: Keeper) -> None:
    """That session has its error, whole, or goes on; nobody else notices."""
    ended = 0
    with RawClient(keeper.host, keeper.port).login(database="transaction") as bystander:
        bystander.query("BEGIN")
        for number in range(20):
            with RawClient(keeper.host, keeper.port).login(database="session") as victim:
                victim.query("SELECT 1")
                token, pid = token_of(keeper, "session"), keeper.bouncer_pid
                keeper.client.kill(token)
                time.sleep(number * 20e-6)  # another point each time
                send(pid, signal.SIGKILL)
                keeper.wait_active(other_than=pid)
                victim.send(frontend("Q", text("SELECT 'still here'")))
                if (answer := victim.read_any()).kind == "E":
                    assert answer.error_fields()["C"] == "57P01"
                    ended += 1
                    with pytest.raises(ConnectionLostError):
                        victim.read_any()
                else:
                    kinds = [answer.kind, *(message.kind for message in victim.until_ready())]
                    assert kinds == ["T", "D", "C", "Z"]
            assert bystander.query("SELECT 'unharmed'") == [("unharmed",)]
            wait_until(lambda: keeper.status().sessions.clients_held == 1, what="it has gone")
        bystander.query("COMMIT")
    assert ended
    check_ledger(keeper)


def test_what_runs_comes_first(keeper: Keeper, running: RawClient) -> None:
    with (
        contextlib.closing(keeper.connect(dbname="session")) as idle,
        contextlib.closing(keeper.connect(dbname="statement")),
    ):
        idle.execute("BEGIN")
        idle.execute("SELECT 1")
        top = keeper.client.top(TopQuery())
        assert top.top.total == top.top.matching == 3
        assert top.status.sessions.clients_held == 3
        first, second, third = top.top.rows
        assert first.session.doing == "in query (1 request outstanding)"
        assert first.age is not None
        assert first.address == keeper.host
        assert second.session.doing == "in transaction"
        assert third.session.database == "statement"
        assert third.age is None
        assert [row.session for row in (first, second, third)] == sorted(
            (row for row in keeper.sessions() if row.kind == "client"),
            key=lambda row: ["transaction", "session", "statement"].index(row.database or ""),
        )


def test_order_part_and_match(keeper: Keeper) -> None:
    with contextlib.ExitStack() as stack:
        for database in ("session", "transaction", "statement"):
            stack.enter_context(contextlib.closing(keeper.connect(dbname=database)))

        def names(**query: object) -> list[str | None]:
            return [row.session.database for row in rows(keeper, **query)]

        assert names(order="database") == ["session", "statement", "transaction"]
        assert names(order="database", reverse=True) == ["transaction", "statement", "session"]
        assert names(order="database", offset=1, limit=1) == ["statement"]
        assert names(order="token") == ["session", "transaction", "statement"]
        assert names(match="SESS postgres") == ["session"]
        assert names(match="127.0.0.1", limit=2, order="token") == ["session", "transaction"]
        assert names(match="nobody") == []
        assert names(limit=0) == []
        top = keeper.client.top(TopQuery(match="statement", limit=0)).top
        assert (top.total, top.matching) == (3, 1)
        assert {row.session.kind for row in rows(keeper, side="server")} <= {"server"}
        assert len(rows(keeper, side="all")) >= 3


def test_adoptions_that_a_session_has_survived(keeper: Keeper) -> None:
    """Kills and handoffs count, over a takeover too; sessions that came later have fewer."""
    with contextlib.closing(keeper.connect(dbname="session")):
        keeper.kill_bouncer()
        with contextlib.closing(keeper.connect(dbname="transaction")):
            assert keeper.run("handoff").returncode == 0
            keeper.take_over()
            keeper.wait_active()
            keeper.kill_bouncer()
            survived = {row.session.database: row.survived for row in rows(keeper)}
            assert survived == {"session": 3, "transaction": 2}
            assert [row.survived for row in rows(keeper, order="survived")] == [3, 2]


def test_an_ended_session_is_told_so_and_nobody_else_notices(
    keeper: Keeper, running: RawClient
) -> None:
    """As with KILL_CLIENT."""
    with (
        contextlib.closing(keeper.connect(dbname="session")) as victim,
        contextlib.closing(keeper.connect(dbname="statement")) as other,
    ):
        before = snapshot(other, pinned=False)
        keeper.client.kill(token_of(keeper, "session"))
        with pytest.raises(psycopg.OperationalError, match="terminated by the operator"):
            victim.execute("SELECT 1")
        keeper.client.kill(token_of(keeper, "transaction"))
        wait_until(lambda: len(rows(keeper)) == 1, what="both have gone")
        keeper.kill_bouncer()
        assert snapshot(other, pinned=False) == before
    check_ledger(keeper)


def test_in_the_middle_of_a_message_nothing_is_put_into_it(keeper: Keeper) -> None:
    """A client that does not read, with a long value on its way: what comes is the beginning."""
    with RawClient(keeper.host, keeper.port).login(database="session") as victim:
        victim.send(frontend("Q", text(f"SELECT repeat('x', {LONG})")))
        query = "SELECT true FROM pg_stat_activity WHERE wait_event = 'ClientWrite'"
        wait_until(lambda: keeper.sql(query, dbname="transaction"), what="every buffer is full")
        keeper.client.kill(token_of(keeper, "session"))
        wait_until(lambda: not rows(keeper, match="session"), what="it has gone")
        received = _until_the_end(victim.socket)
    (described,) = struct.unpack_from("!i", received, 1)
    row = received[1 + described :]
    assert received[:1] + row[:7] == b"TD" + struct.pack("!ih", LONG + 10, 1)
    value = row[11:]
    assert 0 < len(value) < LONG
    assert value.strip(b"x") == b""


def _until_the_end(connection: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 20):
            received += data
    return bytes(received)


def test_one_that_has_a_transaction(keeper: Keeper) -> None:
    """What was not committed is not there; the server is not given to anybody else."""
    keeper.sql("CREATE TABLE killed (n int)", dbname="session")
    with contextlib.closing(keeper.connect(dbname="transaction")) as victim:
        victim.execute("BEGIN")
        victim.execute("INSERT INTO killed VALUES (1)")
        keeper.client.kill(token_of(keeper, "transaction"))
        with pytest.raises(psycopg.OperationalError, match="terminated by the operator"):
            victim.execute("COMMIT")
    assert keeper.sql("SELECT count(*) FROM killed", dbname="session") == [(0,)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("c99999", "there is no such client"),
        ("c99999999999999999999999999", "there is no such client"),
        ("s1", "not the token of a client"),
        ("", "not the token of a client"),
        ("c1; DROP", "not the token of a client"),
    ],
)
def test_what_cannot_be_ended(keeper: Keeper, name: str, reason: str) -> None:
    with pytest.raises(RequestFailedError, match=reason):
        keeper.client.kill(name)


class Terminal:
    """A shell in a terminal of 80 columns and 24 lines, by tmux; it runs a command and tells how.

    tmux itself may miss that a process has ended.
    """

    def __init__(self, run_dir: RunDir, *command: str | Path) -> None:
        self._socket = str(run_dir.path / "tmux.sock")
        quoted = " ".join(f"'{word}'" for word in command)
        script = f"echo before it; {quoted}; echo exit status $?; cat"
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", script)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def shows(self, *words: str) -> None:
        try:
            wait_until(
                lambda: all(word in self.screen() for word in words),
                what=f"{words} on the screen",
                seconds=30,
                poll_s=0.1,
            )
        finally:
            print(self.screen())

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.stdout


def test_in_a_real_terminal(keeper: Keeper, run_dir: RunDir, running: RawClient) -> None:
    """Watch a kill, filter, and end a session; what stood there before comes back at the end."""
    if shutil.which("tmux") is None:
        pytest.skip("no tmux: the terminal application is NOT run in a terminal")
    command = Path(sys.executable).with_name("pgkeeper")
    words = ("top", "--socket", str(keeper.socket_path), "--interval", "0.2", "--allow-kill")
    with (
        contextlib.closing(keeper.connect(dbname="session")) as victim,
        Terminal(run_dir, command, *words) as terminal,
    ):
        pid = keeper.bouncer_pid
        terminal.shows(f"pgbouncer active {pid}", "query", "1-2 of 2 clients", "Kill")
        keeper.kill_bouncer()
        terminal.shows(f"pgbouncer active {keeper.bouncer_pid}, incarnation 2", "adoptions: 1")
        terminal.press("/", "s", "e", "s", "s", "Enter")
        terminal.shows("1-1 of 1 clients that match 'sess'")
        terminal.press("k")
        terminal.shows("End this session?", "survived  1 adoptions")
        terminal.press("y")
        terminal.shows("0-0 of 0 clients that match")
        _ended(victim)
        terminal.press("q")
        terminal.shows("before it", "exit status 0")


def _ended(connection: Connection) -> None:
    with pytest.raises(psycopg.OperationalError, match="terminated by the operator"):
        connection.execute("SELECT 1")
