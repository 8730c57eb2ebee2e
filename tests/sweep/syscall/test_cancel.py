"""However pgbouncer dies, a client's cancel request reaches the server once, and no other query."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

import pytest

from testbed.bouncer import Bouncer
from testbed.relay import Relay
from tests.sweep.syscall.stage import USER, Workload, act, cast
from tests.sweep.syscall.sweep import Sweep, every, twice
from tests.sweep.syscall.talker import Talker, query

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.postgres import Connection, Postgres
    from testbed.rundir import RunDir
    from tests.sweep.syscall.bed import KeeperFactory
    from tests.sweep.syscall.stage import Stage
    from tests.sweep.syscall.sweep import Plan

_SLEEP = query("SELECT pg_sleep(5)")


def _cancels(stage: Stage, relay: Relay) -> None:
    """Two queries are cancelled; what their sessions ask at once afterwards is not.

    How many requests have passed stands in the transcript, those of the run before included.
    """
    a, b = stage.client("a"), stage.client("b")
    for client in (a, b):
        client.send(_SLEEP)
        stage.await_sleep()
        client.cancel()
        client.ready()
        client.ask(query(act(client.name)))
        client.ask(query(f"SELECT pg_sleep(0.01), '{client.name}'"))
    b.transcript += b"%d cancel requests" % relay.take_cancels()


_EACH = pytest.mark.parametrize(
    "plan",
    [
        pytest.param(every(7), id="some points"),
        pytest.param(every(), id="every point", marks=[pytest.mark.slow]),
        pytest.param(twice(11, stride=7), id="the successor too", marks=[pytest.mark.slow]),
    ],
)


@_EACH
@pytest.mark.timeout(1800)
def test_a_cancel_request_passes_once(
    plan: Plan,
    keeper_factory: KeeperFactory,
    sweep_postgres: Postgres,
    watcher: Connection,
    tracer_program: Path,
) -> None:
    with Relay(sweep_postgres) as relay:
        script = functools.partial(_cancels, relay=relay)
        workload = Workload("cancels", script, pool=f"port={relay.port}")
        make = keeper_factory.maker(workload)
        report = Sweep(workload, make, sweep_postgres, watcher, tracer_program).over(plan)
    print(report)
    assert not report.differences, report
    assert report.points >= 20


def _cancels_of_peers(stage: Stage, relay: Relay, port: int) -> None:
    """Requests for a peer's client and from a peer, for nobody, and one that has gone too far.

    The peer listens on `port`, and `relay` is on the way to it.
    """
    (a,) = stage.talkers
    theirs = Talker("theirs", port)
    stage.talkers.append(theirs)
    theirs.log_in(USER, stage.database)
    for happening in (False, True):
        theirs.send(_SLEEP)
        stage.await_sleep()
        if happening:
            with stage.while_nobody_serves(lambda: _send_cancel(stage, theirs.key)):
                a.ask(query(act("a, and theirs")))
        else:
            _send_cancel(stage, theirs.key)
        theirs.ready()
        theirs.ask(query(act("theirs")))
    # As a peer would hand it on to us: one step less to go.
    a.send(_SLEEP)
    stage.await_sleep()
    _send_cancel(stage, a.key[:-1] + bytes([a.key[-1] - 1]), wait=True)
    a.ready()
    a.ask(query(act("a")))
    # Of no peer that is known, and with no step left.
    _send_cancel(stage, a.key[:1] + b"\x09\0" + a.key[3:], wait=True)
    _send_cancel(stage, theirs.key[:-1] + bytes([theirs.key[-1] & ~3]), wait=True)
    a.ask(query("SELECT pg_sleep(0.01)"))
    theirs.ask(query("SELECT pg_sleep(0.01)"))
    a.transcript += b"%d cancel requests" % relay.take_cancels()


def _send_cancel(stage: Stage, key: bytes, *, wait: bool = False) -> None:
    """Ask the pooler that is killed to cancel; `wait` until it has closed that connection."""
    asker = Talker("asker", stage.port)
    asker.key = key
    (asker.cancel if wait else asker.send_cancel)()
    asker.abandon()


@contextlib.contextmanager
def _peer(run_dir: RunDir, postgres: Postgres, binary: Path, name: str) -> Iterator[Bouncer]:
    """A pgbouncer that goes on all the time."""
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    bouncer = Bouncer(
        run_dir,
        postgres,
        binary,
        name=name,
        # Each run is a database, and a pool, of its own: no server rests in one.
        settings={"peer_id": 2, "server_lifetime": 0},
        databases={"*": target},
        users={USER: ""},
    )
    try:
        with bouncer:
            yield bouncer
    finally:
        bouncer.print_logs()


def _name_of(request: pytest.FixtureRequest) -> str:
    return "peer-" + request.node.callspec.id.replace(" ", "-")


@_EACH
@pytest.mark.timeout(1800)
def test_a_cancel_request_passes_to_the_peer_once(
    plan: Plan,
    request: pytest.FixtureRequest,
    run_dir: RunDir,
    keeper_factory: KeeperFactory,
    sweep_postgres: Postgres,
    vanilla_binary: Path,
    watcher: Connection,
    tracer_program: Path,
) -> None:
    with (
        _peer(run_dir, sweep_postgres, vanilla_binary, _name_of(request)) as peer,
        Relay(peer) as relay,
    ):
        workload = Workload(
            "cancels-of-peers",
            functools.partial(_cancels_of_peers, relay=relay, port=peer.port),
            settings={"peer_id": 1},
            peers={"2": f"host=127.0.0.1 port={relay.port}"},
            opening=cast("a"),
            absences=True,
        )
        make = keeper_factory.maker(workload)
        report = Sweep(workload, make, sweep_postgres, watcher, tracer_program).over(plan)
    print(report)
    assert not report.differences, report
    assert report.points >= 10
