"""Sessions that PgBouncer ends because of the time: once, and with the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sweep.syscall.stage import SCRAM_USER, USER, Workload, act, cast, one_server
from tests.sweep.syscall.talker import query, startup

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Stage


def _query_timeout(stage: Stage) -> None:
    a, b = stage.talkers
    b.ask(query("SET application_name = 'asleep'"))
    b.send(query("SELECT pg_sleep(30)"))
    stage.await_sleep()
    a.ask(query(act("meanwhile")))
    b.drain()
    # The server would notice only when it woke up.
    stage.end_server("asleep")
    a.ask(query(act("after")))


def _idle_transaction_timeout(stage: Stage) -> None:
    a, b = stage.talkers
    b.ask(query("BEGIN"), query(act("never committed")), times=2)
    a.send(query(act("a waits")))
    b.drain()
    a.ready()


def _client_idle_timeout(stage: Stage) -> None:
    a, b = stage.talkers
    a.ask(query("BEGIN"))
    b.ask(query(act("b")))
    b.drain()
    a.ask(query("COMMIT"))
    a.ask(query(act("a")))


def _query_wait_timeout(stage: Stage) -> None:
    a, b, c = stage.talkers
    a.ask(query("BEGIN; " + act("a")))
    b.send(query(act("never run")))
    b.drain()
    c.send(query(act("c waits")))
    a.ask(query("COMMIT"))
    c.ready()


def _login_timeout(stage: Stage) -> None:
    """A start-up packet that comes half, a password that does not come, and one that does."""
    (a,) = stage.talkers
    b, c = stage.talker("b"), stage.talker("c")
    b.send(startup(USER, stage.database)[:25])
    c.start_up(SCRAM_USER, stage.database)
    c.until(b"R")
    a.ask(query(act("meanwhile")))
    b.drain()
    c.drain()
    stage.client("d", SCRAM_USER).ask(query(act("d")))


WORKLOADS = (
    Workload(
        "query-timeout",
        _query_timeout,
        settings={"query_timeout": "0.5"},
        warm=one_server,
        opening=cast("a", "b"),
    ),
    Workload(
        "idle-transaction-timeout",
        _idle_transaction_timeout,
        pool="pool_size=1",
        settings={"idle_transaction_timeout": "0.5"},
        warm=one_server,
        opening=cast("a", "b"),
    ),
    Workload(
        "client-idle-timeout",
        _client_idle_timeout,
        settings={"client_idle_timeout": "0.5"},
        warm=one_server,
        opening=cast("a", "b"),
    ),
    Workload(
        "query-wait-timeout",
        _query_wait_timeout,
        pool="pool_size=1",
        settings={"query_wait_timeout": "0.5"},
        warm=one_server,
        opening=cast("a", "b", "c"),
    ),
    Workload(
        "login-timeout",
        _login_timeout,
        settings={"client_login_timeout": "0.5", "auth_type": "hba"},
        warm=one_server,
        opening=cast("a"),
    ),
)
