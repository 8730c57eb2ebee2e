"""Time in which nobody serves does not count against those who wait."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, wait_until
from testbed.process import send
from testbed.rawclient import frontend, text
from tests.system.wrapping import Wrapped, kept

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import Keeper, Postgres, RunDir

# Seconds.
_TIMEOUT = "3"
_OUTAGE = "4"


@pytest.fixture
def keeper(
    run_dir: RunDir, postgres: Postgres, patched_binary: Path, request: pytest.FixtureRequest
) -> Iterator[Keeper]:
    """One whose successors take their time to start, with timeouts that are shorter."""
    name = f"outage-{request.node.name[5:25]}"
    wrapped = Wrapped(run_dir, patched_binary, f"{name}-wrapped")
    settings = {
        "query_wait_timeout": _TIMEOUT,
        "client_login_timeout": _TIMEOUT,
        "server_idle_timeout": "0.001",
    }
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    databases = {
        "one": f"{target} pool_size=1 pool_mode=transaction",
        "new": target,
        "other": f"{target} pool_mode=transaction",
    }
    with kept(
        run_dir, postgres, wrapped.path, name, settings=settings, databases=databases
    ) as keeper:
        wrapped.misbehave(f"sleep {_OUTAGE}")
        yield keeper


def test_who_waits_for_a_server_goes_on_waiting(keeper: Keeper) -> None:
    with login(keeper, "one") as busy, login(keeper, "one") as waiting:
        busy.query("BEGIN")
        waiting.send(frontend("Q", text("SELECT 'patience'")))
        wait_until(lambda: states(keeper).count("waiting") == 1, what="it waits")
        outage(keeper)
        busy.query("COMMIT")
        assert [message.kind for message in waiting.until_ready()] == ["T", "D", "C", "Z"]


def test_who_logs_in_goes_on_logging_in(keeper: Keeper) -> None:
    """One has sent half of its start-up packet, one waits for the pool's first server."""
    with (
        RawClient(keeper.host, keeper.port) as half,
        RawClient(keeper.host, keeper.port) as early,
    ):
        packet = frontend("", b"\0\3\0\0", text("user"), text("postgres"), b"\0")
        keeper.admin("PAUSE new")
        half.send(packet[:10])
        early.start_up(user="postgres", database="new")
        wait_until(lambda: states(keeper) == ["login", "waiting"], what="both log in")
        outage(keeper)
        keeper.admin("RESUME new")
        early.finish_login()
        assert early.query("SELECT 1") == [("1",)]
        half.send(packet[10:])
        assert half.read_any().error_fields().get("M") != "client_login_timeout"


def test_without_an_outage_it_is_too_late(keeper: Keeper) -> None:
    """The control: the same wait in which somebody serves ends the session."""
    with login(keeper, "one") as busy, login(keeper, "one") as waiting:
        busy.query("BEGIN")
        waiting.send(frontend("Q", text("SELECT 'patience'")))
        assert waiting.read_any().error_fields()["M"] == "query_wait_timeout"


def outage(keeper: Keeper) -> None:
    """A kill, and a successor that comes late; it has looked for what is overdue on return."""
    with login(keeper, "other") as other:
        other.query("BEGIN")
        before = keeper.status()
        assert before.pgbouncer.pid is not None
        send(before.pgbouncer.pid, signal.SIGKILL)
        status = keeper.wait_active(after=before.pgbouncer.incarnation)
        assert status.adoptions.last_ms is not None
        assert status.adoptions.last_ms > float(_OUTAGE) * 1000
        assert status.adoptions.sessions_lost == 0
        # A server at rest is overdue too.
        other.query("COMMIT")
        wait_until(
            lambda: keeper.status().sessions.servers_held < before.sessions.servers_held,
            what="the server at rest is closed",
        )


def login(keeper: Keeper, database: str) -> RawClient:
    """A client that is logged in."""
    return RawClient(keeper.host, keeper.port).login(database=database)


def states(keeper: Keeper) -> list[str]:
    """The clients' states, sorted."""
    return sorted(one.state for one in keeper.sessions() if one.kind == "client")
