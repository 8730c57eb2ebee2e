"""The metrics of a running hanger: they say what happened, and go on over a takeover."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgkeeper.states import ServiceState
from testbed import wait_until
from testbed.process import descriptors, send
from testbed.waiting import free_port
from tests.promtool import promtool

if TYPE_CHECKING:
    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scraper:
    """What Prometheus does."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def samples(self) -> Samples:
        status, text = self.get("/metrics")
        assert status == 200, text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture
def scraper() -> Scraper:
    return Scraper(free_port())


@pytest.fixture
def keeper(make_keeper: MakeKeeper, scraper: Scraper) -> Keeper:
    return make_keeper(standby=True, options=["--metrics", str(scraper.port)])


def test_what_a_kill_and_a_handoff_count(keeper: Keeper, scraper: Scraper) -> None:
    with (
        contextlib.closing(keeper.connect(dbname="session")) as one,
        contextlib.closing(keeper.connect(dbname="transaction")),
    ):
        one.execute("SELECT 1")
        before = scraper.samples()
        assert value(before, "pgkeeper_up") == 1
        assert value(before, "pgkeeper_standby_ready") == 1
        assert value(before, "pgkeeper_standby_wanted") == 1
        assert value(before, "pgkeeper_takeovers_total", cause="killed") == 0
        assert value(before, "pgkeeper_pause_seconds_count") == 0
        clients = "pgkeeper_held_client_connections"
        assert value(before, clients, database="session", user="postgres") == 1
        assert value(before, clients, database="transaction", user="postgres") == 1
        servers = "pgkeeper_held_server_connections"
        assert value(before, servers, database="session", user="postgres") == 1
        assert not any(value for (name, _), value in before.items() if "unheld" in name)

        keeper.kill_bouncer()
        after = _fresh(scraper, "pgkeeper_incarnation", 2)
        assert value(after, "pgkeeper_takeovers_total", cause="killed") == 1
        assert value(after, "pgkeeper_pgbouncer_deaths_total", cause="killed") == 1
        assert value(after, "pgkeeper_pause_seconds_count") == 1
        assert 0 < value(after, "pgkeeper_pause_seconds_sum") < 5
        assert value(after, clients, database="session", user="postgres") == 1
        assert value(after, clients, database="transaction", user="postgres") == 1

        keeper.kill_bouncer(signal.SIGSEGV)
        assert keeper.run("handoff").returncode == 0
        last = _fresh(scraper, "pgkeeper_incarnation", 4)
        for cause in ("killed", "crash", "handoff"):
            assert value(last, "pgkeeper_takeovers_total", cause=cause) == 1, cause
        assert value(last, "pgkeeper_pause_seconds_count") == 3
        assert not any(value for (name, _), value in last.items() if "lost" in name)
        one.execute("SELECT 1")


def test_how_full_the_ledger_is_is_what_the_console_says(keeper: Keeper, scraper: Scraper) -> None:
    samples = scraper.samples()
    (shown,) = keeper.admin("SHOW KEEPER")
    assert value(samples, "pgkeeper_ledger_slots") == shown["slots"]
    assert value(samples, "pgkeeper_ledger_heap_bytes") == shown["heap_bytes"]
    assert 0 < value(samples, "pgkeeper_ledger_slots_used") <= shown["slots_used"]
    assert 0 < value(samples, "pgkeeper_ledger_heap_used_bytes") <= shown["heap_bytes"]
    assert value(samples, "pgkeeper_ledger_format") == shown["format"]


def test_health_while_nobody_serves(keeper: Keeper, scraper: Scraper) -> None:
    assert scraper.get("/healthz") == (200, "active\n")
    good = keeper.ini_path.read_text()
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        standby, active = keeper.status().pgbouncer.standby_pid, keeper.bouncer_pid
        assert standby is not None
        keeper.ini_path.write_text(good.replace("[pgbouncer]", "[pgbouncer]\npool_mode = none"))
        for pid in (standby, active):
            send(pid, signal.SIGKILL)
        wait_until(lambda: scraper.get("/healthz")[0] == 503, what="unhealthy")
        wait_until(lambda: "1 clients are held" in scraper.get("/healthz")[1], what="the reason")
        samples = _fresh(scraper, "pgkeeper_up", 0)
        assert value(samples, "pgkeeper_vacancy_seconds") > 0
        assert value(samples, "pgkeeper_hold_timeout_seconds") == 60
        keeper.ini_path.write_text(good)
        wait_until(lambda: scraper.get("/healthz")[0] == 200, what="healthy again")
        connection.execute("SELECT 1")
        samples = _fresh(scraper, "pgkeeper_up", 1)
        assert value(samples, "pgkeeper_pgbouncer_deaths_total", cause="start") >= 1


def test_counters_and_the_port_go_on_over_a_takeover(keeper: Keeper, scraper: Scraper) -> None:
    keeper.kill_bouncer()
    # It waits in the listening socket's queue, which goes over.
    keeper.take_over()
    keeper.wait_active()
    samples = scraper.samples()
    assert value(samples, "pgkeeper_takeovers_total", cause="killed") == 1
    assert value(samples, "pgkeeper_pause_seconds_count") == 1
    assert value(samples, "pgkeeper_pause_seconds_sum") > 0
    keeper.take_over("--metrics", "off")
    with pytest.raises(ConnectionRefusedError):
        scraper.get("/healthz")
    keeper.take_over("--metrics", str(scraper.port))
    keeper.wait_active()
    assert value(scraper.samples(), "pgkeeper_takeovers_total", cause="killed") == 1


def test_a_port_in_use_is_one_clear_line(keeper: Keeper, scraper: Scraper) -> None:
    """At start, and at a takeover: then the old one goes on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        new = keeper.begin_takeover("--metrics", str(port))
        assert new.wait(20) == 1
        line = f"cannot serve metrics on 127.0.0.1:{port}: Address already in use (--metrics)"
        assert line in keeper.output.read()
    assert scraper.get("/healthz")[0] == 200


def test_slow_and_bad_scrapers_harm_nobody(keeper: Keeper, scraper: Scraper) -> None:
    held = len(descriptors(keeper.hanger.pid))
    address = ("127.0.0.1", scraper.port)
    with contextlib.ExitStack() as stack:
        for request in (b"", b"\x00" * 20_000, b"GET /metrics", b"GET /metrics HTTP/1.1\r\n\r\n"):
            connection = stack.enter_context(socket.create_connection(address))
            with contextlib.suppress(ConnectionError):
                connection.sendall(request)
        assert value(scraper.samples(), "pgkeeper_up") == 1
        assert keeper.status().pgbouncer.state is ServiceState.ACTIVE
        keeper.kill_bouncer()
    wait_until(lambda: len(descriptors(keeper.hanger.pid)) <= held, what="all are closed")


def test_promtool_has_nothing_to_say(keeper: Keeper, scraper: Scraper) -> None:
    _, text = scraper.get("/metrics")
    done = promtool("check", "metrics", given=text.encode())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def _fresh(scraper: Scraper, name: str, expected: float) -> Samples:
    """The samples once a gauge has this value: an answer is shared for a second."""
    seen: list[Samples] = []

    def there() -> bool:
        seen[:] = [scraper.samples()]
        return value(seen[0], name) == expected

    wait_until(there, what=f"{name} = {expected:g}", poll_s=0.1)
    return seen[0]
