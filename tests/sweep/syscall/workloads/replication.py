"""Replication connections, whose servers are theirs alone from the login on."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.sweep.syscall.stage import REPLICA_USER, Workload, act, cast
from tests.sweep.syscall.talker import COPY_DONE, copy_data, query

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Stage
    from tests.sweep.syscall.talker import Talker

_SLOT = "SELECT 'made' FROM pg_create_logical_replication_slot('sweep', 'test_decoding', true)"
_START = (
    "START_REPLICATION SLOT sweep LOGICAL 0/0"
    """ ("include-xids" 'off', "skip-empty-xacts" 'on')"""
)
# "Standby status update": nothing written so far, and an answer is asked for.
_STATUS = copy_data(struct.pack("!cQQQQB", b"r", 0, 0, 0, 0, 1))


def _replica(stage: Stage, name: str, kind: str) -> Talker:
    """Log in, while the other client works."""
    talker = stage.talker(name)
    parameters = {"replication": kind, "application_name": name, "options": "-c work_mem=3MB"}
    talker.start_up(REPLICA_USER, stage.database, parameters)
    stage.talkers[0].ask(query(act(f"while {name} logs in")))
    talker.finish_login(REPLICA_USER)
    return talker


def _read_changes(replica: Talker) -> None:
    """Read up to the end of a transaction."""
    while True:
        body = replica.until(b"d")
        if body[:1] == b"w" and body[25:].startswith(b"COMMIT"):
            return


def _with_a_writer(stage: Stage) -> None:
    """Whose commits are in the log at once: the server tells of nothing before."""
    stage.client("b").ask(query("SET synchronous_commit = on"))


def _replication(stage: Stage) -> None:
    """Logical: changes small and large, told while others work, and status both ways."""
    (b,) = stage.talkers
    a = _replica(stage, "a", "database")
    a.ask(query("SHOW application_name"))
    a.ask(query("SHOW work_mem"))
    a.ask(query(_SLOT))
    a.send(query(_START))
    a.until(b"W")
    # Before each wait the server is asked something: it may have gone to sleep just then, past what
    # was to wake it, and would sleep for half a minute (once in a thousand, also without a pooler).
    b.ask(query(act("first")))
    a.send(_STATUS)
    _read_changes(a)
    b.ask(query("BEGIN"), query(act("second")), query("ROLLBACK"), times=3)
    b.ask(query("INSERT INTO acts(tag) SELECT repeat('x', 50 * n) FROM generate_series(1, 99) n"))
    a.send_apart(_STATUS, 3, 9)
    _read_changes(a)
    a.send(_STATUS, COPY_DONE)
    a.ready()
    a.ask(query("SELECT 'the same session'"))


def _replicas(stage: Stage) -> None:
    """Physical ones, which take no SET; who leaves while its server logs in; one that stays."""
    (b,) = stage.talkers
    a = _replica(stage, "a", "true")
    a.ask(query("SHOW application_name"))
    gone = stage.talker("gone")
    gone.start_up(REPLICA_USER, stage.database, {"replication": "true"})
    gone.reset()
    c = _replica(stage, "c", "true")
    # Welcomed at once, as the pool has a welcome by now, it waits for a server with its command.
    c.send(query("SHOW application_name"))
    b.ask(query(act("while c waits")))
    c.ready()
    a.ask(query("SHOW work_mem"))
    b.ask(query(act("b")))
    a.ask(query("no such command"))
    c.finish()
    a.ask(query("SHOW wal_segment_size"))


WORKLOADS = (
    Workload("replication", _replication, opening=_with_a_writer),
    Workload("replicas", _replicas, opening=cast("b")),
)
