"""A malformed login that crashes pgbouncer, sent again and again (CVE-2026-6664, as it was).

Who sends it loses his own connections, and soon those before they begin; all others see pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, wait_until
from testbed.errors import ConnectionLostError, ServerError
from testbed.ledgers import check_ledger
from testbed.load import EVERY_KIND, Progress, check_books, make_tables, work
from testbed.load_logins import LOGIN_USER, LOGINS, prepare_logins
from testbed.rawclient import frontend, text
from tests.system.bystanders import bystanders
from tests.system.poison import VULNERABLE

if TYPE_CHECKING:
    from testbed import Keeper, Postgres, RunDir
    from tests.fix_keeper import MakeKeeper
    from tests.sweep.controls.mutants import Mutants

ATTACKER = "127.0.0.2"
ATTACK_S = 8.0
HBA = f"host all {LOGIN_USER} all scram-sha-256\nhost all all 127.0.0.0/8 trust\n"
# SASLInitialResponse: the mechanism, and a length that its sum with any position overflows.
POISON = frontend("p", text("SCRAM-SHA-256"), struct.pack("!I", 0xFFFFFFFF), b"n,,n=,r=abc")


@pytest.fixture
def settings(run_dir: RunDir) -> dict[str, str | int | None]:
    hba = run_dir.path / "login-crashes-hba.conf"
    hba.write_text(HBA)
    hba.chmod(0o644)
    return {"max_prepared_statements": 50, "auth_type": "hba", "auth_hba_file": str(hba)}


@pytest.fixture
def keeper(
    make_keeper: MakeKeeper,
    postgres: Postgres,
    mutants: Mutants,
    settings: dict[str, str | int | None],
) -> Keeper:
    users = {LOGIN_USER: prepare_logins(postgres)}
    return make_keeper(binary=mutants.binary(VULNERABLE), settings=settings, users=users)


def connect(keeper: Keeper, timeout: float = 10.0) -> RawClient:
    return RawClient(keeper.host, keeper.port, source=ATTACKER, timeout=timeout)


def attack(keeper: Keeper, timeout: float = 10.0) -> str:
    """Send the malformed login; the SQLSTATE that it ends with, or "" for no word at all."""
    with connect(keeper, timeout) as client:
        try:
            client.start_up(user=LOGIN_USER, database="transaction")
            client.read()
            client.send(POISON)
            client.read()
        except ServerError as error:
            return error.sqlstate
        except ConnectionLostError:
            pass
    return ""


class Attacker:
    """Attacks from a thread for as long as the `with` block lasts."""

    def __init__(self, keeper: Keeper) -> None:
        self.outcomes: list[str] = []
        self._keeper = keeper
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.is_set():
            self.outcomes.append(attack(self._keeper))
            self._done.wait(0.02)

    def __enter__(self) -> Attacker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.mark.timeout(180)
def test_an_attacker_who_repeats_it_loses_his_own_connections_only(
    keeper: Keeper, postgres: Postgres
) -> None:
    make_tables(postgres)
    before = keeper.status()

    async def disturb(progress: Progress) -> None:
        end = time.monotonic() + ATTACK_S
        while time.monotonic() < end:
            await progress.wait(20)

    with bystanders(keeper):
        with Attacker(keeper) as attacker:
            # Others come and go as ever, from another address.
            workers = asyncio.run(work(keeper, (*EVERY_KIND, *LOGINS), disturb))
        check_books(postgres, workers)

    after = keeper.status()
    deaths = after.pgbouncer.incarnation - before.pgbouncer.incarnation
    assert set(attacker.outcomes) == {"57P03"}
    # Two at once, then one after 2 seconds and one after 4 more.
    assert 2 <= deaths <= 4, f"{deaths} deaths in {ATTACK_S} s"
    assert len(attacker.outcomes) > 10 * deaths
    assert after.crashes.quarantine.logins_refused >= len(attacker.outcomes) - deaths
    assert after.crashes.quarantine.addresses == 1
    assert set(after.crashes.quarantine.ended) == {"login"}
    assert (after.adoptions.sessions_lost, after.sessions.unheld) == (0, {})
    check_ledger(keeper)
    print(f"{len(attacker.outcomes)} attacks, {deaths} deaths")


def test_with_the_patch_against_it_the_same_bytes_crash_nothing(
    make_keeper: MakeKeeper, postgres: Postgres, settings: dict[str, str | int | None]
) -> None:
    """The control: the build that is shipped waits for the rest of the message, as upstream's."""
    keeper = make_keeper(settings=settings, users={LOGIN_USER: prepare_logins(postgres)})
    for _ in range(3):
        with pytest.raises(TimeoutError):
            attack(keeper, timeout=0.5)
    status = keeper.status()
    assert status.pgbouncer.incarnation == 1
    assert status.crashes.quarantine.addresses == 0


def test_sessions_from_the_attackers_address_are_held_and_may_cancel(keeper: Keeper) -> None:
    with connect(keeper) as session:
        session.login()
        assert attack(keeper) == "57P03"
        # It may not log in, and is told why even if it wants to encrypt first.
        with connect(keeper) as client:
            client.send(struct.pack("!ii", 8, 80877103))
            assert client.read_bytes(1) == b"N"
            client.start_up(user="postgres", database="transaction")
            with pytest.raises(ServerError, match=r"57P03.*died of logins from this address"):
                client.read()
        session.send(frontend("Q", text("SELECT pg_sleep(30)")))
        canceller = threading.Timer(0.2, session.cancel)
        canceller.start()
        messages = list(session.until_ready())
        canceller.join()
        assert [one.error_fields()["C"] for one in messages if one.kind == "E"] == ["57014"]
        assert session.query("SELECT 1") == [("1",)]


def test_many_who_attack_at_once_from_one_address_cost_no_death_each(keeper: Keeper) -> None:
    """Those who wait in the same login when the address is closed are sent away with it."""
    before = keeper.status().pgbouncer.incarnation
    with contextlib.ExitStack() as stack:
        attackers = [stack.enter_context(connect(keeper)) for _ in range(30)]
        for client in attackers:
            client.start_up(user=LOGIN_USER, database="transaction")
            client.read()
        for client in attackers:
            client.send(POISON)
        for client in attackers:
            with contextlib.suppress(ServerError, ConnectionLostError):
                client.read()
        assert keeper.sql("SELECT 1") == [(1,)]
    assert keeper.status().pgbouncer.incarnation - before == 2


def test_a_new_hanger_keeps_the_address_out_too(keeper: Keeper) -> None:
    """A takeover brings along who has crashed it, and where each session comes from."""
    with connect(keeper) as session:
        session.login()
        # Until the doors stay closed for longer than a new hanger takes to start: eight seconds.
        for _ in range(3):
            wait_until(lambda: logs_in(keeper), what="the address may log in", seconds=10)
            assert attack(keeper) == "57P03"
        before = keeper.status().crashes.quarantine
        keeper.take_over()
        crashes = keeper.status().crashes.quarantine
        assert crashes == before
        assert crashes.addresses == 1
        assert attack(keeper) == "57P03"
        assert keeper.status().crashes.quarantine.logins_refused > crashes.logins_refused
        wait_until(lambda: logs_in(keeper), what="the address may log in", seconds=20)
        # The old one's count goes on: the first crash closes the doors at once.
        incarnation = keeper.status().pgbouncer.incarnation
        assert attack(keeper) == "57P03"
        assert keeper.wait_active().pgbouncer.incarnation == incarnation + 1
        assert session.query("SELECT 1") == [("1",)]


def test_after_a_while_the_address_may_log_in_again(keeper: Keeper) -> None:
    assert attack(keeper) == "57P03"
    began = time.monotonic()
    wait_until(lambda: logs_in(keeper), what="the address may log in", seconds=5)
    assert time.monotonic() - began > 1


def logs_in(keeper: Keeper) -> bool:
    """Whether a sound login from the attacker's address works."""
    with connect(keeper) as client:
        try:
            return client.login().query("SELECT 1") == [("1",)]
        except ServerError:
            return False
