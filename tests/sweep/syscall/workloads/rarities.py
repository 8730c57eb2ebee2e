"""What few clients do: portals that stop half-way, function calls, COPY that fails, DISCARD."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from testbed.rawclient import frontend, text
from tests.sweep.syscall.stage import MD5_USER, Workload, act, cast, one_server
from tests.sweep.syscall.talker import (
    COPY_DONE,
    FLUSH,
    SYNC,
    bind,
    copy_data,
    describe,
    execute,
    parse,
    query,
)

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Stage


def _portal(name: str, statement: str, *values: str) -> bytes:
    """A Bind message of a named portal."""
    packed = b"".join(struct.pack("!i", len(v)) + v.encode() for v in values)
    head = text(name) + text(statement) + struct.pack("!hh", 0, len(values))
    return frontend("B", head, packed, struct.pack("!h", 0))


def _fetch(name: str, limit: int) -> bytes:
    """An Execute message of a named portal."""
    return frontend("E", text(name), struct.pack("!i", limit))


def _close_portal(name: str) -> bytes:
    return frontend("C", b"P", text(name))


def _call(function: int, *arguments: str) -> bytes:
    """A FunctionCall message, all in text format."""
    packed = b"".join(struct.pack("!i", len(a.encode())) + a.encode() for a in arguments)
    head = struct.pack("!ihh", function, 0, len(arguments))
    return frontend("F", head, packed, struct.pack("!h", 0))


def _portals(stage: Stage) -> None:
    """Row limits: two portals in turn, over Syncs and Flushes; one that writes; one that fails."""
    a, b = stage.talkers
    a.ask(query("BEGIN"))
    series = "SELECT n, repeat('x', n) FROM generate_series(1, $1) n"
    a.ask(parse("s", series), describe("s"), _portal("p", "s", "90"), _fetch("p", 3), SYNC)
    b.send(query(act("b waits")))
    a.send(_portal("q", "s", "400"), _fetch("q", 300), FLUSH)
    a.until(b"s")
    a.ask(_fetch("p", 40), _fetch("q", 5), _fetch("p", 2), SYNC)
    a.send(_fetch("p", 0), FLUSH)
    a.until(b"C")
    returning = "INSERT INTO acts(tag) SELECT 'w' || n FROM generate_series(1, 9) n RETURNING tag"
    a.ask(parse("", returning), _portal("w", ""), _fetch("w", 4), SYNC)
    a.ask(_fetch("w", 0), _close_portal("q"), _close_portal("nothing"), SYNC)
    a.ask(query("COMMIT"))
    b.ready()
    # An unnamed one, suspended and left; and one whose error comes after some rows.
    a.ask(parse("", series), bind("", "50"), execute(20), SYNC)
    a.ask(query(act("after a suspended one")))
    a.ask(parse("", "SELECT 10 / (5 - n) FROM generate_series(1, 9) n"), bind(""), execute(2), SYNC)
    a.ask(query("BEGIN"))
    failing = "SELECT 10 / (5 - n) FROM generate_series(1, 9) n"
    a.ask(parse("", failing), _portal("f", ""), _fetch("f", 2), SYNC)
    a.ask(_fetch("f", 0), SYNC)
    a.ask(_fetch("f", 0), SYNC)
    a.ask(query("ROLLBACK"))


def _cursors(stage: Stage) -> None:
    """WITH HOLD: made in a transaction, read on after its end, in both protocols."""
    a, b = stage.talkers
    rows = "SELECT n, repeat('x', 40) FROM generate_series(1, 300) n"
    a.ask(query("BEGIN"))
    a.ask(query(f"DECLARE kept CURSOR WITH HOLD FOR {rows}"))
    a.ask(query("FETCH 50 FROM kept"))
    b.ask(query(act("meanwhile")))
    a.ask(query("COMMIT"))
    a.ask(query("FETCH 100 FROM kept"), query("MOVE 10 FROM kept"), times=2)
    a.ask(parse("", "FETCH ALL FROM kept"), bind(""), execute(30), SYNC)
    a.ask(query("FETCH BACKWARD 5 FROM kept"))
    a.ask(query("CLOSE kept"))
    a.ask(query("FETCH 1 FROM kept"))


# pg_proc.dat
_LO_CREATE, _LO_OPEN, _LO_CLOSE, _LO_READ, _LO_WRITE, _LO_UNLINK = 715, 952, 953, 954, 955, 964
_OBJECT = "770001"
_READ_WRITE = "393216"


def _function_calls(stage: Stage) -> None:
    """Large objects by function calls, as libpq does it: written, read back, and gone again."""
    a, b = stage.talkers
    stage.sql(f"SELECT lo_unlink(oid) FROM pg_largeobject_metadata WHERE oid = {_OBJECT}")
    a.ask(query("BEGIN"))
    a.ask(_call(_LO_CREATE, _OBJECT))
    a.ask(_call(_LO_OPEN, _OBJECT, _READ_WRITE))
    for number in range(4):
        a.ask(_call(_LO_WRITE, "0", f"{number}" * 3000))
    a.ask(query("SELECT lo_lseek(0, 0, 0)"))
    b.send(query(act("b waits")))
    a.send(_call(_LO_READ, "0", "7000"), _call(_LO_READ, "0", "9000"))
    a.ready(2)
    a.ask(_call(_LO_CLOSE, "0"), query("COMMIT"), times=2)
    b.ready()
    a.ask(query(f"SELECT length(lo_get({_OBJECT}))"))
    # Alone, each is a transaction; one fails.
    a.ask(_call(_LO_OPEN, "1", _READ_WRITE))
    a.ask(_call(_LO_UNLINK, _OBJECT))
    a.ask(query("BEGIN"), _call(_LO_OPEN, _OBJECT, _READ_WRITE), query("COMMIT"), times=3)
    a.ask(query(act("a")))


def _two_users(stage: Stage) -> None:
    """Each has a server of its own: PgBouncer keeps one linked over a COPY that failed."""
    stage.client("a").ask(query("SELECT 'a server'"))
    stage.client("b", MD5_USER).ask(query("SELECT 'another server'"))


def _failing_copies(stage: Stage) -> None:
    """COPY that the server ends: the client goes on sending, and then goes on working."""
    a, b = stage.talkers
    wrong = copy_data(b"not a number\n")
    a.send(query("COPY acts(id) FROM STDIN"))
    a.until(b"G")
    a.send(copy_data(b"1\n"), wrong)
    a.until(b"E")
    a.send(copy_data(b"2\n" * 3000))
    a.send(COPY_DONE)
    a.ready()
    a.ask(query(act("after a failed one")))
    a.send(parse("", "COPY acts(id) FROM STDIN"), bind(""), execute(), FLUSH)
    a.until(b"G")
    a.send(wrong)
    a.until(b"E")
    b.ask(query(act("b")))
    a.send(copy_data(b"3\n" * 50), COPY_DONE, SYNC)
    a.ready()
    a.ask(query("BEGIN"))
    a.send(query("COPY acts(tag) FROM STDIN"))
    a.until(b"G")
    a.ask(copy_data(b"never\n"), frontend("f", text("given up")))
    a.ask(query("COMMIT"))
    # One that begins and fails while it writes to us.
    a.ask(query("COPY (SELECT 10 / (500 - n) FROM generate_series(1, 900) n) TO STDOUT"))
    a.ask(query(act("a")))
    # Who leaves within one, both ways; the server is not given on.
    b.send(query("COPY (SELECT n, repeat('x', 500) FROM generate_series(1, 20000) n) TO STDOUT"))
    b.until(b"d")
    b.abandon()
    a.ask(query(act("last")))


def _discards(stage: Stage) -> None:
    """DISCARD ALL and DEALLOCATE ALL: what a client or a server had prepared is forgotten."""
    a, b, c = stage.talkers
    insert = "INSERT INTO acts(tag) VALUES ($1)"
    for client in (a, b, c):
        client.ask(parse("s", insert), parse("t", insert + " RETURNING tag"), SYNC)
        client.ask(bind("s", client.name), execute(), SYNC)
    a.ask(query("DEALLOCATE ALL"))
    # The server has forgotten both, and is told anew.
    b.ask(bind("s", "b again"), execute(), bind("t", "b too"), execute(), SYNC)
    a.ask(parse("s", insert + " RETURNING 1"), bind("s", "a anew"), execute(), SYNC)
    b.ask(query("DISCARD ALL"))
    c.ask(bind("t", "c"), execute(), bind("s", "c again"), execute(), SYNC)
    a.ask(bind("s", "a still"), execute(), SYNC)
    c.ask(parse("", "DISCARD ALL"), bind(""), execute(), SYNC)
    a.ask(bind("s", "a yet"), execute(), SYNC)
    # PgBouncer does not know it any more, and ends the session.
    b.send(bind("s", "never"), execute(), SYNC)
    b.drain()
    a.ask(query(act("last")))


WORKLOADS = (
    Workload("portals", _portals, pool="pool_size=1", warm=one_server, opening=cast("a", "b")),
    Workload("cursors", _cursors, pool="pool_mode=session", opening=cast("a", "b")),
    Workload(
        "function-calls",
        _function_calls,
        pool="pool_size=1",
        warm=one_server,
        opening=cast("a", "b"),
    ),
    Workload(
        "failing-copies",
        _failing_copies,
        pool="pool_size=1",
        opening=_two_users,
    ),
    Workload("discards", _discards, pool="pool_size=1", warm=one_server, opening=cast(*"abc")),
)
