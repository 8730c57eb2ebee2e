"""Time in which nobody serves does not count against those who wait, and all other time counts."""

from __future__ import annotations

import signal
import time
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
    from tests.fix_keeper import MakeKeeper

# Seconds: PgBouncer looks every third of one.
_TIMEOUT = "1"
_OUTAGE = "2"


@pytest.fixture
def keeper(
    run_dir: RunDir, postgres: Postgres, patched_binary: Path, request: pytest.FixtureRequest
) -> Iterator[Keeper]:
    """One whose successors take their time to start, with timeouts that are shorter."""
    name = f"outage-{request.node.name[5:25]}"
    wrapped = Wrapped(run_dir, patched_binary, f"{name}-wrapped")
    settings = {"query_wait_timeout": _TIMEOUT, "client_login_timeout": _TIMEOUT}
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    databases = {"one": f"{target} pool_size=1 pool_mode=transaction", "new": target}
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
        packet = frontend("", b"\0\3\0\0", text("user"), text("postgres"), text("database"))
        keeper.admin("PAUSE new")
        half.send(packet[:20])
        early.start_up(user="postgres", database="new")
        wait_until(lambda: states(keeper) == ["login", "waiting"], what="both log in")
        outage(keeper)
        keeper.admin("RESUME new")
        early.finish_login()
        assert early.query("SELECT 1") == [("1",)]
        assert half.read_any().error_fields()["M"] == "client_login_timeout"


def test_without_an_outage_it_is_too_late(keeper: Keeper) -> None:
    """The control: the same wait in which somebody serves ends the session."""
    with login(keeper, "one") as busy, login(keeper, "one") as waiting:
        busy.query("BEGIN")
        waiting.send(frontend("Q", text("SELECT 'patience'")))
        assert waiting.read_any().error_fields()["M"] == "query_wait_timeout"


def test_short_lives_put_no_timeout_off(make_keeper: MakeKeeper) -> None:
    """A third of a second is what a process's own first look at its sessions would take."""
    keeper = make_keeper(settings={"idle_transaction_timeout": _TIMEOUT})
    with login(keeper, "transaction") as idle:
        idle.query("BEGIN")
        for _ in range(50):
            time.sleep(0.15)  # the length of a life
            keeper.kill_bouncer()
            if not keeper.status().sessions.clients_held:
                break
        else:
            pytest.fail("it is still there after 50 lives")
        assert idle.read_any().error_fields()["M"] == "idle transaction timeout"


def outage(keeper: Keeper) -> None:
    """A kill, and a successor that comes late."""
    before = keeper.status().pgbouncer
    assert before.pid is not None
    send(before.pid, signal.SIGKILL)
    status = keeper.wait_active(after=before.incarnation)
    assert status.adoptions.last_ms is not None
    assert status.adoptions.last_ms > float(_OUTAGE) * 1000
    assert status.adoptions.sessions_lost == 0


def login(keeper: Keeper, database: str) -> RawClient:
    """A client that is logged in."""
    return RawClient(keeper.host, keeper.port).login(database=database)


def states(keeper: Keeper) -> list[str]:
    """The clients' states, sorted."""
    return sorted(s.state for s in keeper.sessions() if s.kind == "client")
