"""Much data, to and from those who do not keep up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.rawclient import frontend
from tests.sweep.syscall.stage import MD5_USER, USER, Workload, act, one_server
from tests.sweep.syscall.talker import (
    COPY_DONE,
    SYNC,
    TERMINATE,
    bind,
    copy_data,
    execute,
    parse,
    query,
    startup,
)

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Stage


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
    # PostgreSQL sends 8192 bytes at a time, whenever its rows have filled them; it is at it for
    # longer than a new server needs for its login after a kill, so that "b" gets that one.
    a.send(query("SELECT n, repeat('x', 900), pg_sleep(0.002) FROM generate_series(1, 80) n"))
    # Requests of two clients that come while nobody serves have no order.
    a.await_read()
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


def _tiny_reader(stage: Stage) -> None:
    stage.talker("a", receive_buffer=4096).log_in(USER, stage.database)
    stage.client("b", MD5_USER).ask(query("SELECT 'a server of its own'"))


def _one_row(stage: Stage) -> None:
    """One message of 6 MB to a reader who takes little at a time; others work meanwhile."""
    a, b = stage.talkers
    a.send(query("SELECT repeat('row', 2000000)"))
    a.until(b"T")
    for number in range(3):
        b.ask(query(act(f"meanwhile {number}")))
    a.until(b"D")
    a.ready()
    a.ask(query(act("read")))


def _pushers(stage: Stage) -> None:
    stage.talker("a", send_buffer=8192, receive_buffer=8192).log_in(USER, stage.database)
    stage.client("b", MD5_USER).ask(query("SELECT 'a server of its own'"))


def _deaf_server(stage: Stage) -> None:
    """A COPY of 2 MB while its server waits for a lock and reads nothing."""
    a, b = stage.talkers
    b.ask(query("BEGIN; LOCK TABLE bulk IN EXCLUSIVE MODE"))
    a.send(query("COPY bulk FROM STDIN"))
    stage.await_lock()
    data = b"".join(copy_data(bytes([97 + n]) * 69999 + b"\n") for n in range(26))
    left = a.stuff(data + copy_data(b"last\n") + COPY_DONE)
    b.ask(query("SELECT 'the server of a is full'"))
    b.ask(query("COMMIT"))
    a.send(left)
    a.ready()
    a.ask(query("INSERT INTO acts(tag) SELECT md5(line) FROM bulk"))
    a.ask(query("TRUNCATE bulk"))


def _both_full(stage: Stage) -> None:
    """A pipeline of large Binds whose answers nobody reads: both directions come to a stop."""
    a, b = stage.talkers
    a.ask(parse("s", "SELECT $1 || 'answer'"), SYNC)
    batch = b"".join(bind("s", str(n % 10) * 99999) + execute() for n in range(60))
    left = a.stuff(batch + SYNC)
    b.ask(query(act("while all is full")))
    a.pump(left)
    a.ready()
    a.ask(query(act("read")))


def _crumbs(stage: Stage) -> None:
    """A session whose every byte comes alone, and one whose answers end within a header."""
    a = stage.talker("a")
    a.send_apart(startup(USER, stage.database), *range(1, 12))
    a.ready()
    statement = query(act("crumbs"))
    a.send_apart(statement, *range(1, 9), len(statement) - 1)
    a.ready()
    insert = parse("", "INSERT INTO acts(tag) VALUES ($1)") + bind("", "a") + execute() + SYNC
    a.send_apart(insert, *range(1, 7), 44, 45, 46, 47, 49, 70, len(insert) - 1)
    a.ready()
    # Two messages whose border lies within a piece, then a half that waits for the other.
    pair = query(act("first")) + query(act("second"))
    a.send_apart(pair, len(pair) // 2 - 2, len(pair) // 2 + 3)
    a.ready(2)
    a.ask(query("BEGIN"))
    a.send_apart(query("COPY acts(tag) FROM STDIN"), 2, 9)
    a.until(b"G")
    data = copy_data(b"one\ntwo\n") + copy_data(b"three\n") + COPY_DONE
    a.send_apart(data, *range(1, 8), 12, 13, 14, 15, 19, 20, 25, 26)
    a.ready()
    a.ask(query("COMMIT"))
    a.send_apart(TERMINATE, *range(1, 5))
    a.drain()


# 6 MB are many system calls even so.
_BULK = {"pkt_buf": 65536, "tcp_socket_buffer": 65536}

WORKLOADS = (
    Workload("slow-reader", _slow_reader, warm=one_server),
    Workload("bursts", _bursts, warm=one_server),
    Workload("copy", _copy, warm=one_server),
    Workload("crumbs", _crumbs, warm=one_server),
    Workload("one-row", _one_row, opening=_tiny_reader, settings=_BULK),
    Workload("deaf-server", _deaf_server, opening=_pushers, settings=_BULK),
    Workload("both-full", _both_full, opening=_pushers, settings=_BULK),
)
