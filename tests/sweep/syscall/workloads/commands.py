"""An operator at the admin console. Only the console session itself may be lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from testbed.waiting import wait_until
from tests.sweep.syscall.stage import Workload, act, cast, one_server
from tests.sweep.syscall.talker import LostError, query

if TYPE_CHECKING:
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


WORKLOADS = (
    Workload(
        "kill-client",
        _kill_client,
        pool="pool_size=1",
        warm=one_server,
        opening=cast(*"abcd", named=True),
        console=True,
    ),
    Workload(
        "kill-database",
        _kill_database,
        pool="pool_size=1",
        warm=one_server,
        opening=cast(*"abc"),
        console=True,
    ),
    Workload(
        "reconnect",
        _reconnect,
        pool="pool_size=1",
        warm=one_server,
        opening=cast("a", "b"),
        console=True,
    ),
    Workload(
        "pause",
        _pause,
        pool="pool_size=1",
        warm=one_server,
        opening=cast("a", "b"),
        console=True,
    ),
    Workload(
        "pause-busy",
        _pause_busy,
        pool="pool_size=1",
        warm=one_server,
        opening=cast("a", "b"),
        console=True,
    ),
)
