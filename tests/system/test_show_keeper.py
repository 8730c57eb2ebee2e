"""SHOW KEEPER on pgbouncer's console: what it says is what the hanger and the ledger say."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgkeeper.ledger.check import usage
from protocol.ledger import FORMAT_VERSION, UNIT
from testbed import RawClient, wait_until
from testbed.bouncer import Bouncer
from testbed.ledgers import ledger_of, stopped
from testbed.pooler import ADMIN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from testbed import Keeper, Postgres, RunDir
    from testbed.pooler import Pooler

#: Scripts rely on their names and order.
COLUMNS = (
    *("hanger", "incarnation", "format"),
    *("clients", "clients_held", "servers", "servers_held", "in_flight", "closing"),
    *("slots", "slots_used", "iobufs", "iobufs_used", "heap_bytes", "heap_bytes_used"),
    "commits",
    *("adopted_clients", "adopted_servers", "adoption_lost", "adoption_us", "outage_us"),
)

#: Upstream's, apart from those whose columns depend on nothing but pgbouncer's version.
SHOWS = (
    *("CLIENTS", "CONFIG", "DATABASES", "FDS", "LISTS", "PEERS", "PEER_POOLS", "POOLS"),
    *("SERVERS", "SOCKETS", "ACTIVE_SOCKETS", "STATS", "STATS_TOTALS", "STATS_AVERAGES"),
    *("USERS", "VERSION", "TOTALS", "MEM", "DNS_HOSTS", "DNS_ZONES", "STATE"),
)

_numbers = itertools.count(1)


def shown(pooler: Pooler) -> dict[str, Any]:
    rows = pooler.admin("SHOW KEEPER")
    assert len(rows) == 1
    return rows[0]


@pytest.fixture
def alone(run_dir: RunDir, postgres: Postgres, patched_binary: Path) -> Iterator[Bouncer]:
    """The patched pgbouncer without keeper_socket in its ini."""
    name = f"alone-{next(_numbers)}"
    with Bouncer(run_dir, postgres, patched_binary, name=name) as bouncer:
        yield bouncer


def test_its_columns_and_that_it_is_off_without_a_hanger(alone: Bouncer) -> None:
    row = shown(alone)
    assert tuple(row) == COLUMNS
    assert row.pop("hanger") == "off"
    assert {name: value for name, value in row.items() if value} == {"clients": 1}


def test_what_it_says_of_sessions_is_what_the_hanger_holds(keeper: Keeper) -> None:
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        connection.execute("BEGIN")
        wait_until(lambda: keeper.status().sessions.clients_held == 1, what="no console left")
        row = shown(keeper)
        assert row["hanger"] == "connected"
        assert row["format"] == FORMAT_VERSION
        assert row["incarnation"] == 1
        assert (row["clients"], row["clients_held"]) == (2, 2)  # the console's is one
        assert (row["servers"], row["servers_held"]) == (1, 1)
        assert row["in_flight"] == row["adopted_clients"] == 0
        keeper.kill_bouncer()
        after = shown(keeper)
    assert (after["incarnation"], after["adopted_clients"], after["adopted_servers"]) == (2, 1, 1)
    assert after["adoption_us"] > 0
    assert after["outage_us"] > 0
    assert after["adoption_lost"] == 0


def test_how_full_the_ledger_is(keeper: Keeper) -> None:
    """The console, the header of the ledger, and who counts all that the slots need agree."""
    with contextlib.ExitStack() as stack:
        console = stack.enter_context(_console(keeper))
        for _ in range(3):
            client = stack.enter_context(RawClient(keeper.host, keeper.port).login())
            client.query("SELECT 1")

        cursor = console.execute("SHOW KEEPER")
        (values,) = cursor.fetchall()
        row = dict(zip(COLUMNS, values, strict=True))
        shown = (row["slots_used"], row["heap_bytes_used"] // UNIT)
        # The command is read from one; those of the queries are free from the next commit on.
        assert 1 <= row["iobufs_used"] <= 5

        def agree() -> bool:
            # The answer's place counts until the commit after it.
            with stopped(keeper.bouncer_pid), ledger_of(keeper) as view:
                used, header = usage(view), view.header
            counted = (sum(used.slots.values()), used.iobufs, used.units)
            told = (header.used_slots, header.used_iobufs, header.used_units)
            return shown == (told[0], told[2]) and told == counted

        wait_until(agree, what="console, header and slots agree", poll_s=0.1)


def test_that_the_hanger_is_gone_and_back(keeper: Keeper) -> None:
    keeper.kill_hanger()
    wait_until(lambda: shown(keeper)["hanger"] == "no hanger", what="it is missed")
    keeper.start_hanger()
    wait_until(lambda: shown(keeper)["hanger"] == "connected", what="the next one")


def test_what_upstream_shows_has_upstreams_columns(
    keeper: Keeper, alone: Bouncer, vanilla_bouncer: Bouncer
) -> None:
    expected = _described(vanilla_bouncer)
    assert _described(keeper) == expected
    assert _described(alone) == expected


def test_help_names_it(keeper: Keeper) -> None:
    notices: list[str] = []
    with _console(keeper) as console:
        console.add_notice_handler(lambda notice: notices.append(notice.message_detail or ""))
        console.execute("SHOW HELP")
    assert "SHOW KEEPER" in notices[0]


def _described(pooler: Pooler) -> Mapping[str, object]:
    with _console(pooler) as console:
        return {
            name: [(c.name, c.type_code) for c in console.execute(f"SHOW {name}").description or ()]
            for name in SHOWS
        }


@contextlib.contextmanager
def _console(pooler: Pooler) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    conninfo = pooler.conninfo(dbname="pgbouncer", user=ADMIN)
    connection = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
    with contextlib.closing(connection):
        yield connection
