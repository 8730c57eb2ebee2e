"""Pools: who gets which server, and in what state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sweep.syscall.outcome import CHECK_QUERY, CONNECT_QUERY
from tests.sweep.syscall.stage import MD5_USER, USER, Workload, act, cast
from tests.sweep.syscall.talker import SYNC, bind, execute, parse, query

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Stage


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


def _always_reset(stage: Stage) -> None:
    """The server is reset after each transaction, whether or not somebody waits for it."""
    a, b = stage.talkers
    for number in range(3):
        a.ask(query(act(f"a{number}")))
        # An answer that ends in the middle of a buffer, after some that filled it.
        a.ask(query("SELECT n, repeat('x', 700) FROM generate_series(1, 40) n"))
    a.ask(query("BEGIN"))
    b.send(query(act("b")))
    a.ask(query("SET standard_conforming_strings = off"))
    a.ask(query("COMMIT"))
    b.ready()
    b.ask(parse("", act("b again")), bind(""), execute(), SYNC)
    # Upstream does not reset, but closes, what has not been released when its client goes.
    stage.await_idle()


def _statement_pooling(stage: Stage) -> None:
    """Each statement gets a server of its own; a transaction block ends the session."""
    a, b = stage.talkers
    for number in range(3):
        a.send(query(f"{act('a')}; {act(f'a{number}')}"))
        a.await_read()
        b.send(parse("", act(f"b{number}")), bind(""), execute(), SYNC)
        a.ready()
        b.ready()
    a.ask(query("SELECT 1/0"))
    a.send(query("BEGIN"))
    a.drain()
    b.ask(query(act("last")))


def _check_query(stage: Stage) -> None:
    """A server that has rested is checked before somebody else gets it."""
    a, b = stage.talkers
    a.ask(query(act("a")))
    stage.await_server_state("used")
    b.send(query(f"BEGIN; {act('b')}"))
    b.await_read()
    a.send(parse("", act("a again")), bind(""), execute(), SYNC)
    # Before the server is released: if it rested in between, it would be checked again.
    a.await_read()
    b.ready()
    b.ask(query("COMMIT"))
    a.ready()
    stage.await_server_state("used")
    stage.end_server("")
    stage.await_servers(0)
    b.ask(query(act("on a new one")))


def _connect_query(stage: Stage) -> None:
    """Each new server runs a query before its first client."""
    a, b = stage.talkers
    a.ask(query("SHOW work_mem"))
    a.ask(query("BEGIN"))
    b.send(query(act("b")))
    b.ready()
    b.ask(query("SHOW work_mem"))
    a.ask(query("COMMIT"))


def _host_names(stage: Stage) -> None:
    """application_name_add_host: the server is told from where its client comes."""
    a = stage.client("a", application_name="first")
    b = stage.client("b")
    show = "SELECT current_setting('application_name')"
    for client in (a, b, a):
        client.ask(query(show))
    b.ask(query("SET application_name = 'changed'"))
    a.ask(query(show))
    b.ask(query(show))


def _one_use(stage: Stage) -> None:
    """server_lifetime=0: no server is used twice."""
    a, b = stage.talkers
    a.ask(query("SELECT set_config('my.mark', 'a', false)"))
    b.ask(query("SELECT current_setting('my.mark', true)"))
    a.ask(query("BEGIN"))
    b.send(query(act("b waits")))
    a.ask(query("SELECT set_config('my.mark', 'again', false)"))
    a.ask(query("COMMIT"))
    b.ready()
    b.ask(query("SELECT current_setting('my.mark', true)"))


def _rest(stage: Stage) -> None:
    """server_idle_timeout: a server that rests is closed, a busy one is not."""
    a, b = stage.talkers
    a.ask(query("SELECT set_config('my.mark', 'a', false)"))
    b.ask(query("BEGIN; " + act("b")))
    stage.await_servers(1)
    a.ask(query("SELECT current_setting('my.mark', true)"))
    b.ask(query("COMMIT"))
    stage.await_servers(0)
    a.ask(query(act("a")))


def _refused(stage: Stage) -> None:
    """max_client_conn: who comes too much is told so, and comes in when another has left."""
    a, b = stage.talkers
    c = stage.client("c")
    d = stage.talker("d is too many")
    d.log_in(USER, stage.database)
    d.drain()
    a.ask(query(act("a")))
    b.finish()
    e = stage.client("e")
    e.ask(query(act("e")))
    c.ask(query(act("c")))


def _limits(stage: Stage) -> None:
    """max_db_connections: the idle server of one user gives way to another user's."""
    (a,) = stage.talkers
    b = stage.client("b", MD5_USER)
    a.ask(query(act("a")))
    b.ask(query(act("b")))
    a.ask(query("BEGIN"))
    b.send(query(act("b waits")))
    a.ask(query(act("a again")))
    a.ask(query("COMMIT"))
    b.ready()


def _reserve(stage: Stage) -> None:
    """reserve_pool_size: who waits too long gets a server beyond the pool's size."""
    a, b, c = stage.talkers
    a.ask(query("BEGIN"))
    b.ask(query(act("b")))
    b.ask(query("BEGIN"))
    c.send(query(act("c waits for one of both")))
    a.ask(query("COMMIT"))
    c.ready()
    b.ask(query("COMMIT"))


WORKLOADS = (
    Workload("contention", _contention, pool="pool_size=1"),
    Workload("parameters", _parameters, pool="pool_size=1"),
    Workload("session", _session, pool="pool_size=1 pool_mode=session"),
    Workload(
        "always-reset",
        _always_reset,
        pool="pool_size=1",
        settings={"server_reset_query_always": 1},
        opening=cast("a", "b"),
    ),
    Workload(
        "statement-pooling",
        _statement_pooling,
        pool="pool_size=1 pool_mode=statement",
        opening=cast("a", "b"),
    ),
    Workload(
        "check-query",
        _check_query,
        pool="pool_size=1",
        settings={"server_check_delay": 0, "server_check_query": CHECK_QUERY},
        opening=cast("a", "b"),
    ),
    Workload(
        "connect-query",
        _connect_query,
        pool=f"connect_query='{CONNECT_QUERY}'",
        opening=cast("a", "b"),
    ),
    Workload(
        "host-names",
        _host_names,
        pool="pool_size=1",
        settings={"application_name_add_host": 1},
    ),
    Workload(
        "one-use",
        _one_use,
        pool="pool_size=1",
        settings={"server_lifetime": 0},
        opening=cast("a", "b"),
    ),
    Workload("rest", _rest, settings={"server_idle_timeout": "0.2"}, opening=cast("a", "b")),
    Workload("refused", _refused, settings={"max_client_conn": 3}, opening=cast("a", "b")),
    Workload(
        "limits",
        _limits,
        pool="max_db_connections=1",
        settings={"auth_type": "hba"},
        opening=cast("a"),
    ),
    Workload(
        "reserve",
        _reserve,
        pool="pool_size=1 reserve_pool=1",
        settings={"reserve_pool_timeout": "0.1"},
        opening=cast("a", "b", "c"),
    ),
)
