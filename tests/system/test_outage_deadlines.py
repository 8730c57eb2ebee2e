"""Time in which nobody serves does not count against those who wait, and all other time counts."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, wait_until
from testbed.process import send
from testbed.rawclient import frontend, text
from tests.system.wrapping import Wrapped, kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


def begin(client: RawClient) -> None:
    client.query("BEGIN")


def sleep(client: RawClient) -> None:
    client.send(frontend("Q", text("SELECT pg_sleep(20)")))


def rest(client: RawClient) -> None:
    client.query("SELECT 1")


def wait(client: RawClient) -> None:
    """For a server, as the pool's only one is another client's."""
    client.send(frontend("Q", text("SELECT 1")))


@pytest.mark.parametrize(
    ("setting", "what", "message"),
    [
        ("idle_transaction_timeout", begin, "idle transaction timeout"),
        ("query_timeout", sleep, "query timeout"),
        ("client_idle_timeout", rest, "client_idle_timeout"),
        ("query_wait_timeout", wait, "query_wait_timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith("timeout") else "",
)
def test_short_lives_put_no_timeout_off(
    make_keeper: MakeKeeper,
    postgres: Postgres,
    setting: str,
    what: Callable[[RawClient], None],
    message: str,
) -> None:
    """A third of a second is what a process's own first look at its sessions would take."""
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    keeper = make_keeper(
        settings={setting: _TIMEOUT},
        databases={"one": f"{target} pool_size=1 pool_mode=transaction"},
    )
    with contextlib.ExitStack() as stack:
        if what is wait:
            stack.enter_context(login(keeper, "one")).query("BEGIN")
        client = stack.enter_context(login(keeper, "one"))
        others = keeper.status().sessions.clients_held - 1
        what(client)
        began = time.monotonic()
        live_until(keeper, lambda: keeper.status().sessions.clients_held == others)
        assert time.monotonic() - began > float(_TIMEOUT) / 2
        assert end_of(client) == message


@pytest.mark.parametrize("setting", ["server_idle_timeout", "server_lifetime"])
def test_short_lives_keep_no_server(make_keeper: MakeKeeper, setting: str) -> None:
    """It goes in time, and the one that comes after it is another."""
    keeper = make_keeper(settings={setting: _TIMEOUT})
    with login(keeper, "transaction") as client:
        first = client.query("SELECT pg_backend_pid()")
        live_until(keeper, lambda: keeper.status().sessions.servers_held == 0)
        assert client.query("SELECT pg_backend_pid()") != first


def live_until(keeper: Keeper, condition: Callable[[], bool]) -> None:
    """Kill again and again, soon after each adoption, until the condition holds."""
    for _ in range(50):
        time.sleep(0.15)  # the length of a life
        keeper.kill_bouncer()
        if condition():
            return
    pytest.fail("not after 50 lives")


def end_of(client: RawClient) -> str:
    """The error that ends a session; a result may have begun before it."""
    message = client.read_any()
    while message.kind != "E":
        message = client.read_any()
    return message.error_fields()["M"]


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
