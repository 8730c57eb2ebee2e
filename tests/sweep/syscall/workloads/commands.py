"""An operator, at the admin console and with `pgkeeper top`."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from testbed.rawclient import frontend
from testbed.waiting import wait_until
from tests.sweep.syscall.stage import USER, Workload, act, cast, one_server
from tests.sweep.syscall.talker import SYNC, LostError, parse, query, startup

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sweep.syscall.stage import Stage


def _kill_client(stage: Stage) -> None:
    """KILL_CLIENT: one at rest, one in a transaction, one that waits."""
    a, b, c, d = stage.talkers
    _kill(stage, "b")
    b.drain()
    c.ask(query("BEGIN"), query(act("never committed")), times=2)
    d.send(query(act("never run")))
    d.await_read()
    _kill(stage, "d")
    d.drain()
    a.send(query(act("a waits")))
    _kill(stage, "c")
    c.drain()
    a.ready()


def _kill(stage: Stage, name: str) -> None:
    columns = 0
    for row in stage.console("SHOW CLIENTS"):
        if name in row:
            stage.console(f"KILL_CLIENT {row[-1]}")
            columns += 1
    if columns != 1:
        raise LostError(f"the console shows {columns} clients {name}")


# Each fills many of the buffers between PostgreSQL and a client that does not read.
_LONG = 20_000
_MANY = 40


def _end_sessions(stage: Stage) -> None:
    """`pgkeeper top`: one at rest, one that waits, in a transaction, in a result, in its login."""
    a, b, c, d, e = stage.talkers
    stage.end(b)
    b.drain()
    c.ask(query("BEGIN"), query(act("never committed")), times=2)
    d.send(query(act("never run")))
    d.await_read()
    stage.end(d)
    d.drain()
    a.send(query(act("a waits")))
    a.await_read()
    stage.end(c)
    c.drain()
    a.ready()
    # Nothing may be said in the middle of a message.
    e.send(query(f"SELECT repeat('x', {_LONG}) FROM generate_series(1, {_MANY})"))
    e.until(b"T")
    e.await_answer()
    stage.end(e)
    row = struct.pack("!hi", 1, _LONG) + b"x" * _LONG
    e.drain_cut(frontend("D", row) * _MANY)
    f = stage.talker("f")
    f.send(startup(USER, stage.database)[:20])
    f.await_read()
    stage.end(f)
    f.drain()
    a.ask(query(act("a")))


def _with_one_who_does_not_read(stage: Stage) -> None:
    cast(*"abcd")(stage)
    stage.talker("e", receive_buffer=4096).log_in(USER, stage.database)


def _kill_database(stage: Stage) -> None:
    """KILL, then RESUME: everybody is told, nothing is committed, others come in again."""
    a, b, c = stage.talkers
    a.ask(query(act("a")))
    b.ask(query("BEGIN"), query(act("never committed")), times=2)
    c.send(query(act("never run")))
    c.await_read()
    stage.console(f'KILL "{stage.database}"')
    for client in (a, b, c):
        client.drain()
    stage.console(f'RESUME "{stage.database}"')
    stage.client("d").ask(query(act("d")))


def _reconnect(stage: Stage) -> None:
    """RECONNECT: a server at rest is closed at once, one in a transaction at its end."""
    a, b = stage.talkers
    a.ask(query("SELECT set_config('my.mark', 'a', false)"))
    stage.console("RECONNECT")
    a.ask(query("SELECT current_setting('my.mark', true)"))
    a.ask(query("BEGIN; SELECT set_config('my.mark', 'again', false)"))
    stage.console("RECONNECT")
    a.ask(query("SELECT current_setting('my.mark', true)"))
    b.send(query("SELECT current_setting('my.mark', true)"))
    a.ask(query("COMMIT"))
    b.ready()
    a.ask(query(act("a")))


def _pause(stage: Stage) -> None:
    """PAUSE and RESUME, of all and of one database: clients wait, and go on."""
    a, b = stage.talkers
    a.ask(query(act("a")))
    stage.console("PAUSE")
    a.send(query(act("a waits")))
    a.await_read()
    b.send(query(act("b waits")))
    b.await_read()
    stage.console("RESUME")
    a.ready()
    b.ready()
    stage.console(f'PAUSE "{stage.database}"')
    b.send(query(act("b waits again")))
    b.await_read()
    a.send(query("BEGIN"))
    a.await_read()
    stage.console(f'RESUME "{stage.database}"')
    b.ready()
    a.ready()
    a.ask(query("COMMIT"))


def _pause_busy(stage: Stage) -> None:
    """PAUSE waits for the end of a transaction, which goes on; then nothing moves until RESUME."""
    a, b = stage.talkers
    a.ask(query("BEGIN"))
    with ThreadPoolExecutor(1) as operator:
        pause = operator.submit(stage.console, "PAUSE")
        wait_until(
            lambda: ("paused", "yes") in stage.console("SHOW STATE"),
            what="it is paused",
            poll_s=0.02,
        )
        a.ask(query(act("a goes on")))
        b.send(query(act("b waits")))
        b.await_read()
        a.ask(query("COMMIT"))
        pause.result()
    a.send(query(act("a waits")))
    a.await_read()
    stage.console("RESUME")
    b.ready()
    a.ready()


def _operators(stage: Stage) -> None:
    """Sessions of the console that stay: answers short and long, errors, two questions at once."""
    a, boss, other = stage.talkers
    boss.ask(query("SHOW VERSION"))
    boss.ask(query("SHOW CONFIG"))
    boss.ask(query("SHOW VERSION"), query("SHOW CONFIG"), times=2)
    boss.ask(query("no such command"))
    boss.ask(query("SET query_wait_timeout = 100"))
    boss.ask(query("PAUSE"))
    other.ask(query("PAUSE"))
    a.send(query(act("a waits")))
    a.await_read()
    boss.ask(query("RESUME"))
    other.ask(query("RESUME"))
    a.ready()
    other.ask(query(f'KILL "{stage.database}"'), query(f'RESUME "{stage.database}"'), times=2)
    a.drain()
    other.send(parse("", "SHOW VERSION"), SYNC)
    other.drain()
    boss.ask(query("SET query_wait_timeout = 120"))


def _waiting_operators(stage: Stage) -> None:
    """PAUSE and WAIT_CLOSE that take until somebody has done something."""
    a, boss = stage.talkers
    a.ask(query("BEGIN"))
    boss.send(query(f'PAUSE "{stage.database}"'))
    boss.await_read()
    a.ask(query(act("a goes on")))
    a.ask(query("COMMIT"))
    boss.ready()
    boss.ask(query(f'RESUME "{stage.database}"'))
    a.ask(query("BEGIN"))
    boss.ask(query("RECONNECT"))
    boss.send(query(f'WAIT_CLOSE "{stage.database}"'))
    boss.await_read()
    a.ask(query(act("a goes on again")))
    a.ask(query("COMMIT"))
    boss.ready()
    a.ask(query(act("a")))


def _reload(stage: Stage) -> None:
    """RELOAD: within a transaction, while somebody waits, and what the console has set is gone."""
    a, boss = stage.talkers
    a.ask(query("BEGIN"))
    boss.ask(query("RELOAD"))
    a.ask(query(act("a goes on")))
    b = stage.client("b")
    b.send(query(act("b waits")))
    b.await_read()
    boss.ask(query("SET query_wait_timeout = 77"), query("RELOAD"), times=2)
    a.ask(query("COMMIT"))
    b.ready()
    boss.ask(query("SHOW CONFIG"))
    a.ask(query(act("a")))


def _disable(stage: Stage) -> None:
    """DISABLE and ENABLE: who is in goes on; RECONNECT of one database meanwhile."""
    a, boss = stage.talkers
    a.ask(query("BEGIN"))
    boss.ask(query(f'DISABLE "{stage.database}"'))
    a.ask(query(act("a goes on")))
    a.ask(query("COMMIT"))
    boss.ask(query(f'RECONNECT "{stage.database}"'))
    a.ask(query(act("on a new one")))
    boss.ask(query(f'ENABLE "{stage.database}"'))
    stage.client("c").ask(query(act("c")))


def _with_operators(*names: str) -> Callable[[Stage], None]:
    """A client, and operators of these names."""

    def opening(stage: Stage) -> None:
        stage.client("a")
        for name in names:
            stage.operator(name)

    return opening


WORKLOADS = (
    *(
        Workload(
            name,
            script,
            pool="pool_size=1",
            warm=one_server,
            opening=_with_operators("boss"),
        )
        for name, script in (("reload", _reload), ("disable", _disable))
    ),
    Workload(
        "operators",
        _operators,
        pool="pool_size=1",
        warm=one_server,
        opening=_with_operators("boss", "other"),
    ),
    Workload(
        "waiting-operators",
        _waiting_operators,
        pool="pool_size=1",
        warm=one_server,
        opening=_with_operators("boss"),
    ),
    Workload(
        "kill-client",
        _kill_client,
        pool="pool_size=1",
        warm=one_server,
        opening=cast(*"abcd", named=True),
    ),
    Workload(
        "end-sessions",
        _end_sessions,
        pool="pool_size=1",
        settings={"tcp_socket_buffer": 4096},
        warm=one_server,
        opening=_with_one_who_does_not_read,
    ),
    Workload(
        "kill-database",
        _kill_database,
        pool="pool_size=1",
        warm=one_server,
        opening=cast(*"abc"),
    ),
    Workload(
        "reconnect",
        _reconnect,
        pool="pool_size=1",
        warm=one_server,
        opening=cast("a", "b"),
    ),
    Workload(
        "pause",
        _pause,
        pool="pool_size=1",
        warm=one_server,
        opening=cast("a", "b"),
    ),
    Workload(
        "pause-busy",
        _pause_busy,
        pool="pool_size=1",
        warm=one_server,
        opening=cast("a", "b"),
    ),
)
