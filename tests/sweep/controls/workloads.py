"""Scripts that need a rule which the sweep's own workloads could do without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sweep.syscall.stage import Workload, act
from tests.sweep.syscall.talker import SYNC, bind, close_statement, execute, parse, query

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Stage

_INSERT = "INSERT INTO acts(tag) VALUES ($1)"
# PgBouncer's pkt_buf as it comes.
_BUFFER = 4096


def _queue(stage: Stage) -> None:
    """Who waits for the server logged in last, and the latest of them asked first."""
    clients = [stage.client(name) for name in "abcd"]
    a, waiting = clients[0], clients[:0:-1]
    for turn in range(2):
        a.ask(query("BEGIN"))
        for client in waiting:
            # No server is needed for the answer to Close: when it comes, the client waits.
            client.send(close_statement("nothing"), query(act(f"{client.name}{turn}")))
            client.until(b"3")
        a.ask(query(act(f"a{turn}")))
        a.ask(query("COMMIT"))
        for client in waiting:
            client.ready()


def _resync(stage: Stage) -> None:
    """Buffers full of a little that can be sent and a Parse that lacks only its end."""
    a, b = stage.client("a"), stage.client("b")
    for number in range(4):
        name = f"{'long' * 10}{number}"
        statement = f"{_INSERT} RETURNING {number} /* {'.' * (_BUFFER - 150)} */"
        for client in (a, b):
            small = parse("", act(f"{client.name}{number}")) + bind("") + execute()
            client.ask(small, parse(name, statement), bind(name, "named"), execute(), SYNC)


def _drops(stage: Stage) -> None:
    """A client that sends byte by byte."""
    a = stage.client("a")
    a.ask(query("SELECT 1"))
    for byte in query(act("drop by drop")):
        a.send(bytes([byte]))
    a.ready()
    a.ask(query(act("in one go")))


WORKLOADS = (
    Workload("queue", _queue, pool="pool_size=1"),
    Workload("resync", _resync, pool="pool_size=1"),
    Workload("drops", _drops, pool="pool_size=1"),
)
