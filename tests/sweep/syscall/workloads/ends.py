"""Clients and servers that go away, in whatever they are in the middle of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.rawclient import frontend
from tests.sweep.syscall.stage import USER, Workload, act, cast, one_server
from tests.sweep.syscall.talker import (
    FLUSH,
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


def _cancel(stage: Stage) -> None:
    a, b = stage.client("a"), stage.client("b")
    a.send(query("SELECT pg_sleep(2)"))
    # Only then is the server taken that b would get.
    stage.await_sleep()
    b.ask(query(act("meanwhile")))
    a.cancel()
    a.ready()
    a.ask(query(act("after")))
    # Nobody is running anything: it must hit nothing.
    a.cancel()
    b.ask(query(act("b")))
    a.ask(query(act("a")))


def _resets(stage: Stage) -> None:
    """Clients that end with an RST: resting, in a transaction, in a result, in a COPY, waiting."""
    a, b, c, d, e, f, g = stage.talkers
    b.reset()
    c.ask(query("BEGIN"), query(act("never committed")), times=2)
    c.reset()
    a.ask(query(act("after c")))
    d.send(query("SELECT n, repeat('x', 500) FROM generate_series(1, 20000) n"))
    d.until(b"D")
    d.reset()
    a.ask(query(act("after d")))
    e.send(query("COPY acts(tag) FROM STDIN"))
    e.until(b"G")
    e.send(copy_data(b"never\n"), copy_data(b"half")[:7])
    e.reset()
    a.ask(query("BEGIN"), query(act("after e")), times=2)
    f.send(query("SELECT 'f waits'"))
    f.await_read()
    f.reset()
    g.send(query(act("g waits")))
    a.ask(query("COMMIT"))
    g.ready()
    # During the login, and with something unread behind it.
    h = stage.talker("h")
    h.send_apart(startup(USER, stage.database)[:20])
    h.reset()
    i = stage.client("i")
    i.send(query("SELECT 'nobody reads this'"))
    i.await_answer()
    i.reset()
    a.ask(query(act("last")))


def _farewells(stage: Stage) -> None:
    """Terminate, and a shut down side, behind statements that are still to be run."""
    a, b, c, d = stage.talkers
    a.send(query(act("a")), TERMINATE)
    a.drain()
    b.ask(query("BEGIN"), query(act("never committed")), times=2)
    b.send(query("SELECT 'read'"), TERMINATE, query(act("behind the end")))
    b.drain()
    c.send(query(act("c")), parse("", act("c too")), bind(""), execute(), SYNC)
    c.ready(2)
    c.finish(terminate=False)
    d.send(query(act("d")), TERMINATE)
    d.drain()


WORKLOADS = (
    Workload("ends", _ends, pool="pool_size=1"),
    Workload("cancel", _cancel, warm=one_server),
    Workload("resets", _resets, pool="pool_size=1", warm=one_server, opening=cast(*"abcdefg")),
    Workload("farewells", _farewells, pool="pool_size=1", warm=one_server, opening=cast(*"abcd")),
)
