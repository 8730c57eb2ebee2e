"""The scripts that are killed at each system call.

Each leaves its traces in the table `acts`, one row a statement, so that a statement that runs twice
or not at all is seen, and in the transcripts of its clients.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.rawclient import frontend
from tests.sweep.syscall.talker import (
    FLUSH,
    SYNC,
    Talker,
    bind,
    close_statement,
    describe,
    execute,
    parse,
    query,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

USER = "sweeper"
MD5_USER = "sweeper_md5"
SCRAM_USER = "sweeper_scram"
QUERY_USER = "sweeper_query"
# Known to auth_query alone, and trusted.
LATE_USER = "sweeper_late"
AUTH_USER = "sweeper_auth"
SECRET = "wellknown"


class Stage:
    """What a script may use: clients of one pooler and one database, finished at its end."""

    def __init__(self, port: int, database: str, sleeping: Callable[[], None]) -> None:
        self.port = port
        #: Returns as soon as a server is in pg_sleep().
        self.await_sleep = sleeping
        self.database = database
        self.talkers: list[Talker] = []

    def talker(self, name: str, *, receive_buffer: int | None = None) -> Talker:
        """A connected client that has said nothing yet."""
        talker = Talker(name, self.port, receive_buffer=receive_buffer)
        self.talkers.append(talker)
        return talker

    def client(self, name: str, user: str = USER, **parameters: str) -> Talker:
        """A client that is logged in."""
        talker = self.talker(name)
        talker.log_in(user, self.database, SECRET, parameters)
        return talker


@dataclass(frozen=True, slots=True)
class Workload:
    """A script, and what it needs.

    `pool` are options of the ini's database, `settings` of [pgbouncer]. `warm` runs before the
    kills begin; a pool is new otherwise.
    """

    name: str
    script: Callable[[Stage], None]
    pool: str = ""
    settings: Mapping[str, str | int] = field(default_factory=dict)
    warm: Callable[[Stage], None] | None = None


def act(tag: str) -> str:
    """A statement that leaves a row behind."""
    return f"INSERT INTO acts(tag) VALUES ('{tag}')"


def _one_server(stage: Stage) -> None:
    stage.client("warm").ask(query("SELECT 1"))


def _simple(stage: Stage) -> None:
    a = stage.client("a")
    a.ask(query(act("one")))
    a.ask(query("SELECT n, repeat('x', n) FROM generate_series(1, 50) n"))
    a.ask(query("SELECT 1/0"))
    a.ask(query(act("two") + "; " + act("three")))
    a.ask(query(""))
    a.ask(query("SELECT nothing FROM nowhere"))
    a.ask(query("SET application_name = 'changed'"))
    a.ask(query(act("four") + " RETURNING tag"))


def _extended(stage: Stage) -> None:
    """More named statements than max_prepared_statements: some are evicted and come back."""
    a, b = stage.client("a"), stage.client("b")
    insert = "INSERT INTO acts(tag) VALUES ($1)"
    a.ask(parse("", insert), bind("", "unnamed"), execute(), SYNC)
    for number in range(5):
        statement = f"{insert} RETURNING tag || ' {number}'"
        a.ask(parse(f"s{number}", statement), describe(f"s{number}"), SYNC)
        a.ask(bind(f"s{number}", f"a{number}"), execute(), SYNC)
    # The same text under another name, and by another client: one statement on the server.
    b.ask(parse("other", f"{insert} RETURNING tag || ' 0'"), bind("other", "b"), execute(), SYNC)
    for number in (0, 3, 1, 4, 0):
        a.ask(bind(f"s{number}", f"again{number}"), execute(), SYNC)
    a.ask(close_statement("s0"), SYNC)
    a.ask(parse("bad", "SELECT nothing FROM nowhere"), SYNC)
    a.ask(
        bind("s1", "in one go"), execute(), close_statement("s1"), bind("s2", "go"), execute(), SYNC
    )
    b.ask(bind("other", "b again"), execute(), SYNC)
    a.send(parse("s1", insert), describe("s1"), FLUSH)
    a.until(b"n")
    a.ask(bind("s1", "after a flush"), execute(), SYNC)
    # PgBouncer knows no such statement, and ends the session.
    a.send(bind("s0", "closed"), execute(), SYNC)
    a.until(b"E")


def _transaction(stage: Stage) -> None:
    a = stage.client("a")
    a.ask(query("BEGIN"))
    a.ask(query("CREATE TEMP TABLE mine(n int) ON COMMIT DROP"))
    a.ask(query("INSERT INTO mine VALUES (1), (2)"))
    a.ask(query(act("rolled back")))
    a.ask(query("SELECT n + 0 FROM mine"))
    a.ask(query("SELECT 1/0"))
    a.ask(query("SELECT 'ignored'"))
    a.ask(query("ROLLBACK"))
    a.ask(query("BEGIN"), query(act("committed")), query("COMMIT"), times=3)
    a.ask(query("BEGIN; SELECT count(*) FROM acts"))
    a.ask(query("SAVEPOINT s"))
    a.ask(query("SELECT nothing"))
    a.ask(query("ROLLBACK TO s"))
    a.ask(query(act("after the savepoint")))
    a.ask(query("COMMIT"))


def _slow_reader(stage: Stage) -> None:
    a = stage.talker("a", receive_buffer=4096)
    a.log_in(USER, stage.database)
    a.send(query("SELECT n, repeat(md5(n::text), 4) FROM generate_series(1, 2200) n"))
    while a.next_message(chunk=16384, pause=0.0005)[0] != b"Z":
        pass
    a.ask(query(act("read")))


def _bursts(stage: Stage) -> None:
    """Messages and results that fill PgBouncer's buffer exactly, one shortly after the other."""
    a, b = stage.client("a"), stage.client("b")
    for length in (4096, 4096, 8192, 4095, 4097, 4096):
        statement = act(f"burst of {length}")
        a.ask(query(f"{statement} /* {'.' * (length - len(statement) - 13)} */"))
    # PostgreSQL sends 8192 bytes at a time, whenever its rows have filled them.
    a.send(query("SELECT n, repeat('x', 900), pg_sleep(0.0005) FROM generate_series(1, 80) n"))
    b.ask(query(act("meanwhile")))
    a.ready()
    a.ask(query(act("a")))


def _copy(stage: Stage) -> None:
    a = stage.client("a")
    a.send(query("COPY acts(tag) FROM STDIN"))
    a.until(b"G")
    rows = b"".join(f"row {number}\n".encode() for number in range(400))
    for start in range(0, len(rows), 700):
        a.send(frontend("d", rows[start : start + 700]))
    a.ask(frontend("c"))
    a.ask(query("COPY (SELECT n, md5(n::text) FROM generate_series(1, 900) n) TO STDOUT"))
    a.send(query("COPY acts(tag) FROM STDIN"))
    a.until(b"G")
    a.send(frontend("d", b"never"))
    a.ask(frontend("f", b"changed my mind\0"))
    a.ask(query("SELECT count(*) FROM acts"))


def _pipeline(stage: Stage) -> None:
    a = stage.client("a")
    insert = "INSERT INTO acts(tag) VALUES ($1)"
    messages = []
    for number in range(30):
        statement = "SELECT 1/0" if number == 17 else insert
        values = () if number == 17 else (f"p{number}",)
        messages += [parse("", statement), bind("", *values), execute()]
        if number % 5 == 4:
            messages.append(SYNC)
    a.ask(*messages, times=6)
    # Once more in pieces that end within a header and within a body.
    data = b"".join(messages)
    cuts = [0, 3, 57, 400, 1001, 1002, len(data)]
    for start, end in itertools.pairwise(cuts):
        a.send(data[start:end])
    a.ready(6)


def _contention(stage: Stage) -> None:
    """Three clients, one server: two of them wait."""
    a, b, c = stage.client("a"), stage.client("b"), stage.client("c")
    a.ask(query("BEGIN"), query(act("a begins")), times=2)
    b.send(query(act("b")))
    c.send(parse("", act("c")), bind(""), execute(), SYNC)
    a.ask(query("SELECT 1"))
    a.ask(query("COMMIT"))
    b.ready()
    c.ready()
    b.send(query("BEGIN; " + act("b again")))
    b.ready()
    a.send(query(act("a last")))
    c.finish()
    b.ask(query("ROLLBACK"))
    a.ready()


def _parameters(stage: Stage) -> None:
    """Clients with different parameters take turns on one server."""
    a = stage.client("a", application_name="first", DateStyle="German, DMY")
    b = stage.client("b", application_name="second")
    c = stage.client("c", application_name="third", TimeZone="Asia/Tokyo")
    show = "SELECT current_setting('application_name'), DATE '2024-02-01', now() IS NOT NULL"
    for client in (a, b, c, a, c, b):
        client.ask(query(show))
    b.ask(query("SET DateStyle = 'SQL'"))
    a.ask(parse("", show), bind(""), execute(), SYNC)
    b.ask(query(show + "; " + act("b")))
    c.ask(query(show))
    # Both wait for the server, and each needs a SET first.
    c.ask(query("BEGIN"))
    a.send(query(act("a")))
    b.send(query(show))
    c.ask(query("COMMIT"))
    a.ready()
    b.ready()


def _statements(stage: Stage) -> None:
    """Pipelines of named statements shared by two clients, some larger than pkt_buf."""
    a, b = stage.client("a"), stage.client("b")
    insert = "INSERT INTO acts(tag) VALUES ($1)"
    texts = [f"{insert} RETURNING length(tag) + {n}" for n in range(5)]
    texts.append(f"{insert} /* {'long' * 3000} */")
    for client in (a, b):
        client.ask(
            *(parse(f"s{n}", text) + describe(f"s{n}") for n, text in enumerate(texts)), SYNC
        )
    for turn in range(3):
        for client in (a, b):
            tag = f"{client.name}{turn}"
            batch = [
                bind(f"s{n}", f"{tag}-{n}") + execute() for n in (turn, turn + 2, 5, turn + 1, turn)
            ]
            client.send(*batch, bind(f"s{turn}", tag + "x" * 9000), execute(), SYNC)
        a.ready()
        b.ready()
    # The error leaves what follows it in its batch undone, a Parse and a Close among it.
    again = parse("t", texts[0]) + bind("t", "t") + execute()
    a.ask(close_statement("s3"), parse("s3", "SELECT 1/0"), bind("s3"), execute(), again, SYNC)
    other = parse("u", texts[0]) + bind("u", "u") + execute()
    a.ask(other, close_statement("u"), close_statement("nothing"), SYNC)
    b.ask(query("BEGIN"))
    b.ask(bind("s3", "in b"), execute(), parse("bad", "SELECT nothing"), other, SYNC)
    b.ask(bind("s4", "ignored"), execute(), SYNC)
    a.send(parse("v", texts[0] + " "), bind("v", "a waits"), execute(), SYNC)
    b.ask(query("ROLLBACK"))
    b.ask(bind("s4", "in b again"), execute(), SYNC)
    a.ready()


def _ends(stage: Stage) -> None:
    """Clients and servers that go away in the middle of things."""
    a, b, c, d = (stage.client(name) for name in "abcd")
    big = "SELECT n, repeat('x', 500) FROM generate_series(1, 20000) n"
    # The server ends while it is in a transaction; another one takes its place.
    a.ask(query("BEGIN"))
    a.ask(query(act("never committed")))
    a.send(query("SELECT pg_terminate_backend(pg_backend_pid())"))
    a.drain()
    # A client leaves while its result is on the way, one within a transaction, one while it waits.
    b.send(query(big))
    b.until(b"D")
    b.abandon()
    c.ask(query(act("c")))
    d.ask(query("BEGIN"), query(act("d")), times=2)
    e = stage.client("e")
    e.send(query(act("e waits, and may run")))
    d.abandon()
    e.ready()
    e.ask(parse("", "COPY acts(tag) FROM STDIN"), bind(""), execute(), FLUSH, times=0)
    e.until(b"G")
    e.send(frontend("d", b"half a row"))
    e.finish(terminate=False)
    # What nobody understands.
    c.send(frontend("?", b"what"))
    c.drain()
    stage.client("f").ask(query(act("f")))


def _session(stage: Stage) -> None:
    """Session pooling: the reset query runs whenever a client leaves."""
    a = stage.client("a", application_name="first")
    a.ask(query("CREATE TEMP TABLE mine(n int)"))
    a.ask(query("INSERT INTO mine VALUES (1)"))
    # An expression: a column would bring the table's OID, which grows from run to run.
    a.ask(query("SELECT n + 0 FROM mine"))
    a.ask(parse("s", act("session")), SYNC)
    a.ask(bind("s"), execute(), SYNC)
    a.finish()
    b = stage.client("b")
    b.ask(query("SELECT to_regclass('mine')"))
    b.ask(query("SET work_mem = '1MB'"))
    b.finish(terminate=False)
    c = stage.client("c")
    c.ask(query("SHOW work_mem"))
    c.ask(query("BEGIN"))
    c.ask(query(act("never committed")))
    c.finish()
    d = stage.client("d")
    d.ask(query("SELECT count(*) FROM acts"))
    d.abandon()
    stage.client("e").ask(query(act("last")))


def _logins(stage: Stage) -> None:
    for user in (USER, MD5_USER, SCRAM_USER, QUERY_USER):
        talker = stage.talker(user)
        talker.ask_for_tls()
        talker.log_in(user, stage.database, SECRET, {"application_name": user})
        talker.ask(query(act(user)))
    for user in (MD5_USER, SCRAM_USER, QUERY_USER, "sweeper_nobody"):
        talker = stage.talker(f"{user} is wrong")
        talker.log_in(user, stage.database, "guessed")
        talker.finish(terminate=False)
    # Pools exist and users are known by now.
    for user in (SCRAM_USER, QUERY_USER):
        stage.client(f"{user} again", user).ask(query(act(user)))


def _cancel(stage: Stage) -> None:
    a, b = stage.client("a"), stage.client("b")
    a.send(query("SELECT pg_sleep(2)"))
    b.ask(query(act("meanwhile")))
    stage.await_sleep()
    a.cancel()
    a.ready()
    a.ask(query(act("after")))
    # Nobody is running anything: it must hit nothing.
    a.cancel()
    b.ask(query(act("b")))
    a.ask(query(act("a")))


WORKLOADS = (
    Workload("simple", _simple),
    Workload("extended", _extended, settings={"max_prepared_statements": 3}, pool="pool_size=1"),
    Workload("transaction", _transaction, warm=_one_server),
    Workload("slow-reader", _slow_reader, warm=_one_server),
    Workload("bursts", _bursts, warm=_one_server),
    Workload("copy", _copy, warm=_one_server),
    Workload("pipeline", _pipeline, warm=_one_server),
    Workload("contention", _contention, pool="pool_size=1"),
    Workload("parameters", _parameters, pool="pool_size=1"),
    Workload(
        "statements", _statements, settings={"max_prepared_statements": 3}, pool="pool_size=1"
    ),
    Workload("ends", _ends, pool="pool_size=1"),
    Workload("session", _session, pool="pool_size=1 pool_mode=session"),
    Workload("logins", _logins, settings={"auth_type": "hba"}),
    Workload("cancel", _cancel, warm=_one_server),
)
