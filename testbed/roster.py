"""Sessions of many kinds, each stopped in the middle, each with a known rest.

Every answer was rehearsed: the same was asked before, in the same session, so that what must come
is known to the byte, whatever PostgreSQL puts into it.
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from pgkeeper.trial.scram import Scram
from testbed.conversation import Conversation
from testbed.postgres import Auth
from testbed.rawclient import RawClient, frontend, text
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from testbed.keeper import Keeper
    from testbed.pooler import Pooler
    from testbed.postgres import Postgres

__all__ = ["LEARNT", "NAMES", "Roster", "prepare_database", "settings_for"]

LEARNT = "roster_learnt"
"""A user that only auth_query knows."""
_SECRET = "roster's secret"  # noqa: S105
TABLE = "roster"
_SLOW = "SELECT n, repeat(chr(97 + n % 26), 1000) FROM generate_series(1, 1500) n"
_LARGE = f"SELECT '{'large ' * 4000}'"
_SHARED = "SELECT 'shared by two'"
_HALF = "SELECT 'asked in two halves'"
_CLOSES = 12_000
_SYNC = frontend("S")
_SMALL_BUFFER = 4096


def prepare_database(postgres: Postgres) -> None:
    """What the roster needs of the server; may be called again."""
    postgres.sql(f"CREATE TABLE IF NOT EXISTS {TABLE} (n int)")
    if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (LEARNT,)):
        postgres.add_user(LEARNT, _SECRET, Auth.SCRAM)


def settings_for(hba: Path) -> dict[str, str | int | None]:
    """PgBouncer's settings; writes the file that says who needs a password."""
    hba.write_text(
        "host all postgres,pgbouncer_admin 127.0.0.1/32 trust\n"
        "host all all 127.0.0.1/32 scram-sha-256\n"
    )
    hba.chmod(0o644)
    return {
        "auth_type": "hba",
        "auth_hba_file": str(hba),
        "auth_user": "postgres",
        "auth_query": "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1",
        "max_prepared_statements": 20,
        # A slow reader's result must not fit into the buffers on its way.
        "tcp_socket_buffer": 16384,
        # What forged facts bring to a halt, these bring to an end.
        "query_wait_timeout": 20,
        "client_login_timeout": 20,
    }


def databases_for(postgres: Postgres) -> Mapping[str, str]:
    """The three pool modes, and one with a single server."""
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    modes = {mode: f"{target} pool_mode={mode}" for mode in ("session", "transaction")}
    return {**modes, "tight": f"{target} pool_mode=transaction pool_size=1"}


class Roster:
    """The sessions of one example; `number` is to be another each time.

    `open` brings them all to where they stop. They connect in the order of `NAMES`, and nobody
    else between the first and the last of them.
    """

    def __init__(self, keeper: Keeper, number: int) -> None:
        self.number = number
        self.conversations: dict[str, Conversation] = {}
        self._keeper = keeper
        self._welcome = b""

    def open(self) -> None:
        """All of them. Raises what a session raises that cannot even be opened."""
        for name in NAMES:
            with contextlib.ExitStack() as stack:
                buffer = _SMALL_BUFFER if name in ("slow reader", "flooded") else 0
                client = stack.enter_context(
                    RawClient(self._keeper.host, self._keeper.port, receive_buffer=buffer)
                )
                self.conversations[name] = _OPENERS[name](self, client)
                stack.pop_all()

    def close(self) -> None:
        """Leave with everybody who is still here."""
        for conversation in self.conversations.values():
            conversation.close()

    # What each of them is doing.

    def _idle(self, client: RawClient) -> Conversation:
        """Rests between two transactions, with parameters of its own."""
        client.login(parameters={"application_name": "first"})
        client.query(f"SET application_name TO 'idle {self.number}'")
        client.query("SET DateStyle TO 'German, DMY'")
        return _again(
            "idle",
            client,
            frontend("Q", text("SHOW application_name"))
            + frontend("Q", text("SELECT '2026-02-03'::date, current_setting('TimeZone')")),
            ready=2,
        )

    def _in_transaction(self, client: RawClient) -> Conversation:
        """Has written a row that nobody else may see yet."""
        client.login()
        return self._begin("in transaction", client, self.number)

    def _begin(self, name: str, client: RawClient, row: int) -> Conversation:
        client.query("BEGIN")
        client.query(f"INSERT INTO {TABLE} VALUES ({row})")  # noqa: S608
        seen = f"SELECT n, pg_backend_pid(), pg_current_xact_id() FROM {TABLE} WHERE n = {row}"  # noqa: S608
        conversation = _again(name, client, frontend("Q", text(seen)))
        conversation.ask += frontend("Q", text("COMMIT"))
        conversation.expected += frontend("C", text("COMMIT")) + frontend("Z", b"I")
        return conversation

    def _prepared(self, client: RawClient) -> Conversation:
        """Has prepared two statements, one of them large."""
        client.login()
        _prepare(client, "s", _SHARED)
        _prepare(client, "t", _LARGE)
        return _again("prepared", client, _execute("t") + _execute("s") + _SYNC)

    def _prepared_too(self, client: RawClient) -> Conversation:
        """Shares one text with the other, under another name."""
        client.login()
        _prepare(client, "u", _SHARED)
        _prepare(client, "v", f"SELECT {self.number}")
        return _again("prepared too", client, _execute("v") + _execute("u") + _SYNC)

    def _busy(self, client: RawClient) -> Conversation:
        """Is in a transaction on the only server of its pool."""
        client.login(database="tight")
        return self._begin("busy", client, -self.number)

    def _waiting(self, client: RawClient) -> Conversation:
        """Waits with its query until that server is free."""
        client.login(database="tight")
        client.send(frontend("Q", text("SELECT 'waited'")))
        wait_until(self._waits, what="a query waits for a server")
        expected = (
            frontend(
                "T",
                struct.pack("!h", 1),
                text("?column?"),
                struct.pack("!ihihih", 0, 0, 25, -1, -1, 0),
            )
            + frontend("D", struct.pack("!hi", 1, 6), b"waited")
            + frontend("C", text("SELECT 1"))
            + frontend("Z", b"I")
        )
        return Conversation("waiting", client, b"", expected)

    def _waits(self) -> bool:
        return any(
            held.state == "waiting" for held in self._keeper.sessions() if held.kind == "client"
        )

    def _half_asked(self, client: RawClient) -> Conversation:
        """Has sent the first half of a message."""
        client.login()
        ask = frontend("Q", text(_HALF))
        conversation = _again("half asked", client, ask)
        return _cut(conversation, 11)

    def _half_parsed(self, client: RawClient) -> Conversation:
        """Has sent a part of a Parse, which PgBouncer keeps until it has the whole of it."""
        client.login()
        parse = frontend("P", text("long"), text(f"SELECT '{'z' * 9000}'"), b"\0\0")
        expected = frontend("1") + frontend("3") + frontend("Z", b"I")
        ask = parse + frontend("C", b"S", text("long")) + _SYNC
        return _cut(Conversation("half parsed", client, ask, expected), 7000)

    def _slow_reader(self, client: RawClient) -> Conversation:
        """Does not read its result, which fills all buffers on its way."""
        client.login()
        conversation = _again("slow reader", client, frontend("Q", text(_SLOW)))
        return _cut(conversation, len(conversation.ask))

    def _flooded(self, client: RawClient) -> Conversation:
        """Does not read answers that PgBouncer gives itself: they wait in its outbox."""
        client.login()
        client.query("BEGIN")
        _prepare(client, "open", "SELECT 1")
        one = frontend("C", b"S", text("no such statement"))
        # Terminated by an answer that only the server can give.
        ask = one * _CLOSES + frontend("Q", text("COMMIT"))
        expected = frontend("3") * _CLOSES + frontend("C", text("COMMIT")) + frontend("Z", b"I")
        return _cut(Conversation("flooded", client, ask, expected), len(one) * _CLOSES)

    def _with_temp_table(self, client: RawClient) -> Conversation:
        """Keeps its server, with what only that one has."""
        client.login(database="session")
        client.query(f"CREATE TEMP TABLE mine AS SELECT {self.number} AS n")
        client.query("SELECT pg_advisory_lock(42), set_config('work_mem', '3MB', false)")
        return _again(
            "temp table",
            client,
            frontend(
                "Q", text("SELECT n, pg_backend_pid(), current_setting('work_mem') FROM mine")
            ),
        )

    def _learnt(self, client: RawClient) -> Conversation:
        """Logged in as a user of whom PgBouncer has learnt by asking PostgreSQL."""
        conversation = self._log_in("learnt", client)
        client.send(conversation.ask)
        self._welcome = b"".join(message.encoded for message in client.until_ready())
        return _again("learnt", client, frontend("Q", text("SELECT session_user, 'learnt'")))

    def _half_logged_in(self, client: RawClient) -> Conversation:
        """Has been asked for the proof of its password, and not answered yet."""
        conversation = self._log_in("half logged in", client)
        # The welcome is the pool's, but for key and signature, which are its own.
        signed = frontend("R", struct.pack("!i", 12), conversation.expected)
        rest = self._welcome[len(signed) :]
        at = len(signed) + rest.index(b"K\0\0\0\x0c") + 5
        conversation.expected = signed + rest
        conversation.free = range(at, at + 8)
        return conversation

    def _log_in(self, name: str, client: RawClient) -> Conversation:
        """The login up to the last message; `expected` is the signature alone."""
        scram = Scram(_SECRET)
        client.start_up(user=LEARNT, database="transaction")
        client.read()
        first = scram.first
        client.send(frontend("p", text("SCRAM-SHA-256"), struct.pack("!i", len(first)), first))
        final = scram.final(client.read().body[4:])
        return Conversation(name, client, frontend("p", final), scram.signature)


_OPENERS: dict[str, Callable[[Roster, RawClient], Conversation]] = {
    "idle": Roster._idle,
    "in transaction": Roster._in_transaction,
    "prepared": Roster._prepared,
    "prepared too": Roster._prepared_too,
    "busy": Roster._busy,
    "waiting": Roster._waiting,
    "half asked": Roster._half_asked,
    "half parsed": Roster._half_parsed,
    "slow reader": Roster._slow_reader,
    "flooded": Roster._flooded,
    "temp table": Roster._with_temp_table,
    "learnt": Roster._learnt,
    "half logged in": Roster._half_logged_in,
}

NAMES = tuple(_OPENERS)


def visit_pools(pooler: Pooler) -> None:
    """Let every pool and user of the roster be known again, and go."""
    for database in ("transaction", "session", "tight"):
        with RawClient(pooler.host, pooler.port) as client:
            client.login(database=database)
            client.query("SELECT 1")
    pooler.sql("SELECT 1", user=LEARNT, password=_SECRET)


def _again(name: str, client: RawClient, ask: bytes, ready: int = 1) -> Conversation:
    """Ask, note what comes up to the last of so many ReadyForQuery, and be about to ask again."""
    client.send(ask)
    expected = b"".join(message.encoded for _ in range(ready) for message in client.until_ready())
    return Conversation(name, client, ask, expected)


def _cut(conversation: Conversation, at: int) -> Conversation:
    """Say the first `at` bytes now."""
    conversation.client.send(conversation.ask[:at])
    conversation.ask = conversation.ask[at:]
    return conversation


def _prepare(client: RawClient, name: str, statement: str) -> None:
    client.send(frontend("P", text(name), text(statement), b"\0\0") + _SYNC)
    kinds = [message.kind for message in client.until_ready()]
    if kinds != ["1", "Z"]:
        raise AssertionError(f"Parse was answered by {kinds}")


def _execute(name: str) -> bytes:
    return frontend("B", text(""), text(name), bytes(6)) + frontend("E", text(""), bytes(4))
