"""What happens after pgbouncer was killed and before its successor has adopted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sweep.syscall.stage import MD5_USER, USER, Workload, act, cast, one_server
from tests.sweep.syscall.talker import (
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
    from collections.abc import Callable

    from tests.sweep.syscall.stage import Stage


def _with_a_worker(*names: str, named: bool = False) -> Callable[[Stage], None]:
    """For `opening`: `a` works on a server of its own while something happens to the others."""

    def opening(stage: Stage) -> None:
        stage.client("a", MD5_USER).ask(query("SELECT 'a'"))
        cast(*names, named=named)(stage)

    return opening


_BIG = "SELECT n, repeat('x', 500) FROM generate_series(1, 20000) n"


def _clients_go(stage: Stage) -> None:
    """Clients leave: at rest, in a transaction, in a result, in a COPY, in half a message."""
    a, b, c, d, e, f, g = stage.talkers
    with stage.while_nobody_serves(b.reset):
        a.ask(query(act("while b leaves")))
    c.ask(query("BEGIN"), query(act("never committed")), times=2)
    with stage.while_nobody_serves(c.abandon):
        a.ask(parse("", act("while c leaves")), bind(""), execute(), SYNC)
    d.send(query(_BIG))
    d.until(b"D")
    with stage.while_nobody_serves(d.reset):
        a.ask(query(act("while d leaves")))
    e.ask(query("BEGIN"))
    e.send(query("COPY acts(tag) FROM STDIN"))
    e.until(b"G")
    e.send(copy_data(b"never committed\n"), copy_data(b"half")[:6])
    with stage.while_nobody_serves(e.abandon):
        a.ask(query(act("while e leaves")))
    f.ask(query("BEGIN"), query(act("never committed")), times=2)
    f.send(query("SELECT 'half'")[:9])
    with stage.while_nobody_serves(f.reset):
        a.ask(query(act("while f leaves")))
    with stage.while_nobody_serves(lambda: g.send(TERMINATE)):
        a.ask(query(act("while g says goodbye")))
    g.drain()
    stage.client("h").ask(query(act("the server is free")))


def _waiting_client_goes(stage: Stage) -> None:
    """A client leaves with the only server, another while it waits; the next in line gets it."""
    a, b, c, d = stage.talkers
    b.ask(query("BEGIN"), query(act("never committed")), times=2)
    with stage.while_nobody_serves(b.reset):
        a.send(query(act("a waits")))
        a.await_read()
        c.send(parse("", act("c waits")), bind(""), execute(), SYNC)
        c.await_read()
    a.ready()
    c.ready()
    a.ask(query("BEGIN"))
    d.send(query("SELECT 'd waits'"))
    d.await_read()
    with stage.while_nobody_serves(d.reset):
        a.ask(query(act("while d leaves")))
        c.send(query(act("c waits again")))
    a.ask(query("COMMIT"))
    c.ready()


def _servers_go(stage: Stage) -> None:
    """Servers end: at rest, in a transaction, in a query, in a COPY."""
    a, b, c, d, e = stage.talkers
    b.ask(query("BEGIN"), query(act("never committed")), times=2)
    with stage.while_nobody_serves(lambda: stage.end_server("b")):
        a.ask(query(act("while the server of b ends")))
    b.drain()
    c.send(query("SELECT pg_sleep(30)"))
    stage.await_sleep()
    with stage.while_nobody_serves(lambda: stage.end_server("c")):
        a.ask(query(act("while the server of c ends")))
    c.drain()
    d.send(query("COPY acts(tag) FROM STDIN"))
    d.until(b"G")
    d.send(copy_data(b"never\n"))
    stage.await_copied()
    with stage.while_nobody_serves(lambda: stage.end_server("d")):
        a.ask(query(act("while the server of d ends")))
    d.drain()
    # The last one rests; who asks next gets a new one.
    e.ask(query("SELECT 'e'"))
    with stage.while_nobody_serves(lambda: stage.end_server("e")):
        a.ask(query(act("while the server of e ends")))
    stage.await_servers(1)
    e.ask(query(act("e on a new one")))


def _last_server_goes(stage: Stage) -> None:
    """The only server ends, in a transaction, while others wait; and at rest, before a query."""
    a, b, c = stage.talkers
    b.ask(query("BEGIN"), query(act("never committed")), times=2)
    with stage.while_nobody_serves(lambda: stage.end_server("b")):
        a.send(query(act("a waits")))
        a.await_read()
        c.send(parse("", act("c waits")), bind(""), execute(), SYNC)
        c.await_read()
    b.drain()
    a.ready()
    c.ready()
    c.ask(query("SELECT 'the last to use it'"))

    def end_and_ask() -> None:
        stage.end_server("c")
        a.send(query(act("a on a new one")))

    with stage.while_nobody_serves(end_and_ask):
        d = stage.client("d")
    a.ready()
    d.ask(query(act("d")))


def _more_comes(stage: Stage) -> None:
    """Clients go on: with whole messages and halves, with new connections, with a cancel."""
    a, b, c = stage.talkers
    second, third = query(act("second")), query(act("third"))

    def go_on() -> None:
        b.send(second, third[:11])

    b.send(query(act("first")))
    with stage.while_nobody_serves(go_on):
        a.ask(query("SELECT 'a'"))
        b.ready()
    b.send(third[11:])
    b.ready(2)
    # The second half of a message whose first half was read or not.
    batch = parse("s", act("prepared") + f" /* {'long' * 3000} */") + bind("s") + execute() + SYNC
    b.send(batch[:7000])
    with stage.while_nobody_serves(lambda: b.send(batch[7000:])):
        a.ask(query("SELECT 'a again'"))
    b.ready()
    # Somebody comes.
    late = stage.talker("late")
    late.send(startup(USER, stage.database)[:9])
    with stage.while_nobody_serves(lambda: late.send(startup(USER, stage.database)[9:])):
        a.ask(query("SELECT 'a, and late'"))
    late.ready()
    late.ask(query(act("late")))

    def come() -> None:
        new = stage.talker("new")
        new.send(startup(USER, stage.database), query(act("new")))

    with stage.while_nobody_serves(come):
        a.ask(query("SELECT 'a, and new'"))
    stage.talkers[-1].ready(2)
    # More of a COPY, and its end.
    c.send(query("COPY acts(tag) FROM STDIN"))
    c.until(b"G")
    c.send(copy_data(b"one\n"), copy_data(b"two\n")[:3])
    with stage.while_nobody_serves(lambda: c.send(copy_data(b"two\n")[3:], copy_data(b""))):
        a.ask(query("SELECT 'a, and copy'"))
    c.send(b"c\0\0\0\4")
    c.ready()


def _cancel_comes(stage: Stage) -> None:
    """A CancelRequest comes, for a query that runs on; none of it is left for the next one."""
    a, b = stage.talkers
    b.send(query("SELECT pg_sleep(30)"))
    stage.await_sleep()
    with stage.while_nobody_serves(b.send_cancel):
        a.ask(query("SELECT 'while a cancel comes'"))
    b.ready()
    # Its server is given to nobody as long as the request to cancel is being closed.
    stage.await_idle()
    b.ask(query(act("b")))
    a.ask(query(act("a")))


def _news(stage: Stage) -> None:
    """Notifications for sessions that listen; more than a buffer of them."""
    a, b = stage.talkers
    a.ask(query("LISTEN news"))
    with stage.while_nobody_serves(lambda: _tell(stage, "one")):
        b.ask(query(act("b")))
    a.until(b"A")
    a.ask(query("BEGIN"))
    with stage.while_nobody_serves(lambda: _tell(stage, "two")):
        a.ask(query(act("a")))
    # PostgreSQL tells it before it says that it is ready.
    a.ask(query("COMMIT"))

    def tell_much() -> None:
        stage.sql("SELECT pg_notify('news', n || repeat('x', 2000)) FROM generate_series(1, 9) n")

    with stage.while_nobody_serves(tell_much):
        b.ask(query(act("b again")))
    for _ in range(9):
        a.until(b"A")
    a.ask(query("SELECT 'the same session'"))


def _tell(stage: Stage, news: str) -> None:
    stage.sql(f"NOTIFY news, '{news}'")


WORKLOADS = (
    Workload(
        "clients-go",
        _clients_go,
        pool="pool_size=1",
        warm=one_server,
        opening=_with_a_worker(*"bcdefg"),
        absences=True,
    ),
    Workload(
        "waiting-client-goes",
        _waiting_client_goes,
        pool="pool_size=1",
        warm=one_server,
        opening=cast(*"abcd"),
        absences=True,
    ),
    Workload(
        "servers-go",
        _servers_go,
        pool="pool_size=1",
        opening=_with_a_worker(*"bcde", named=True),
        absences=True,
    ),
    Workload(
        "last-server-goes",
        _last_server_goes,
        pool="pool_size=1",
        opening=cast(*"abc", named=True),
        absences=True,
    ),
    Workload(
        "more-comes",
        _more_comes,
        pool="pool_size=1",
        warm=one_server,
        opening=_with_a_worker("b", "c"),
        absences=True,
    ),
    Workload("cancel-comes", _cancel_comes, opening=_with_a_worker("b"), absences=True),
    Workload("news", _news, pool="pool_mode=session", opening=cast("a", "b"), absences=True),
)
