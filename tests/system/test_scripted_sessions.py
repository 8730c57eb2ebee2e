"""Sessions go on over every fault of a pgbouncer of a few lines, which does what the test wants."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pgkeeper.hanger.formats import OURS
from pgkeeper.states import ServiceState
from protocol.ledger import FORMAT_VERSION
from testbed.ledgers import stopped
from tests.system.scripted import ScriptedHanger, alive, wait_until

# sessions go on


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_a_session_survives_kill(hanger: ScriptedHanger, unix: bool) -> None:
    hanger.start()
    client = hanger.client(unix=unix)
    before = client.who()
    os.kill(before.pid, signal.SIGKILL)
    after = client.who()
    assert after.pid != before.pid
    assert (after.incarnation, after.token) == (before.incarnation + 1, before.token)
    status = hanger.status()
    assert status.pgbouncer.pid == after.pid
    assert status.adoptions.count == 1
    assert status.adoptions.last_ms is not None
    assert status.adoptions.last_ms > 0


def test_bytes_sent_while_nobody_serves_wait(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    os.kill(client.who().pid, signal.SIGKILL)
    for number in range(100):
        client.say(f"line {number}")
    assert [client.hear() for _ in range(100)] == [f"echo line {number}" for number in range(100)]


def test_a_client_that_comes_while_nobody_serves_waits(hanger: ScriptedHanger) -> None:
    hanger.script(exit=1)
    hanger.start(wait=False)
    hanger.wait_logged("bouncer-ended")
    client = hanger.client()
    client.say("early")
    hanger.script()
    assert client.hear() == "echo early"


def test_more_sockets_than_one_message_takes(hanger: ScriptedHanger) -> None:
    hanger.write_ini(max_client_conn=400)
    hanger.start()
    clients = [hanger.client() for _ in range(130)]
    first = clients[0].who()
    assert clients[0].ask("servers 150") == "150"
    tokens = [client.who().token for client in clients]
    os.kill(first.pid, signal.SIGKILL)
    assert [client.who().token for client in clients] == tokens
    status = hanger.status()
    assert (status.sessions.clients_held, status.sessions.servers_held) == (130, 150)
    assert clients[0].ask("release") == "released"
    wait_until(lambda: hanger.status().sessions.servers_held == 0, "servers released")


def test_what_a_pgbouncer_said_last_counts(hanger: ScriptedHanger) -> None:
    """More messages than are read in one go wait when the news of its death arrives."""
    hanger.start()
    client = hanger.client()
    pid = client.who().pid
    assert hanger.process is not None
    hanger.process.send_signal(signal.SIGSTOP)
    client.say("last 100")
    wait_until(lambda: not alive(pid), "died")
    hanger.process.send_signal(signal.SIGCONT)
    assert hanger.wait_active(2).sessions.servers_held == 100


def test_a_storm_of_clients_and_kills(hanger: ScriptedHanger) -> None:
    hanger.write_ini(max_client_conn=400)
    hanger.start("--standby")
    failed: list[str] = []

    def talk(number: int) -> None:
        try:
            for turn in range(5):
                client = hanger.client()
                for line in range(20):
                    client.insist(f"{number} {turn} {line}")
                client.close()
        except Exception as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    kills = 0
    while any(thread.is_alive() for thread in threads):
        bouncer = hanger.wait_active().pgbouncer
        assert bouncer.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(bouncer.pid, signal.SIGKILL)
            kills += 1
            hanger.wait_active(bouncer.incarnation + 1)
    for thread in threads:
        thread.join()
    assert not failed
    assert kills > 0
    wait_until(lambda: hanger.status().sessions.clients_held == 0, "all clients released")


def test_releases_and_unheld_sessions_are_counted(hanger: ScriptedHanger) -> None:
    hanger.start()
    first = hanger.client()
    assert first.who().token == 1
    second = hanger.client()
    assert second.who().token == 2
    assert hanger.status().sessions.clients_held == 2
    assert first.ask("unheld") == "unheld"
    wait_until(lambda: hanger.status().sessions.unheld == {"tls": 1}, "unheld")
    assert hanger.status().sessions.clients_held == 1
    rows = {row.token: row for row in hanger.control.sessions()}
    assert {token: (row.held, row.reason) for token, row in rows.items()} == {
        1: (False, "tls"),
        2: (True, None),
    }
    first.close()
    wait_until(lambda: hanger.status().sessions.unheld == {}, "released")
    second.close()
    wait_until(lambda: hanger.status().sessions.clients_held == 0, "released")


def test_unheld_sessions_die_with_their_pgbouncer(hanger: ScriptedHanger) -> None:
    hanger.start()
    client, other = hanger.client(), hanger.client()
    assert client.ask("unheld") == "unheld"
    who = other.who()
    wait_until(lambda: hanger.status().sessions.unheld, "unheld")
    os.kill(who.pid, signal.SIGKILL)
    assert client.rest() == b""
    other.who()
    assert hanger.status().sessions.unheld == {}


def test_lost_sessions_are_counted(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    pid = client.who().pid
    hanger.script(lost=3)
    os.kill(pid, signal.SIGKILL)
    client.who()
    assert hanger.status().adoptions.sessions_lost == 3
    assert "in-flight=3" in hanger.logged()


def test_sigterm_to_pgbouncer_keeps_the_sessions(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    os.kill(client.who().pid, signal.SIGTERM)
    assert client.who().incarnation == 2


def test_no_descriptor_is_left_behind(hanger: ScriptedHanger) -> None:
    hanger.write_ini(max_client_conn=300)
    hanger.start()
    pid = hanger.status().pgbouncer.pid
    idle = hanger.idle_descriptors()
    for _ in range(3):
        clients = [hanger.client() for _ in range(70)]
        clients[0].ask("servers 70")
        for client in clients:
            client.who()
        os.kill(clients[0].who().pid, signal.SIGKILL)
        clients[0].who()
        clients[0].ask("release")
        for client in clients:
            client.close()
        wait_until(lambda: hanger.status().sessions.clients_held == 0, "clients released")
        assert hanger.idle_descriptors() == idle
    assert hanger.status().pgbouncer.pid != pid


@pytest.mark.parametrize(
    ("hang_timeout", "most"), [("0", 0), ("60", 4)], ids=["no-watchdog", "watchdog"]
)
def test_an_idle_hanger_looks_at_the_heartbeat_and_does_nothing_else(
    hanger: ScriptedHanger, hang_timeout: str, most: int
) -> None:
    hanger.start("--standby", "--hang-timeout", hang_timeout)
    assert hanger.process is not None
    wait_until(lambda: hanger.status().pgbouncer.standby_pid, "standby")
    hanger.client().who()

    def switches() -> int:
        assert hanger.process is not None
        with Path(f"/proc/{hanger.process.pid}/status").open() as status:
            return sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)

    def in_seconds(count: int) -> int:
        before = switches()
        time.sleep(count)  # there is no condition to wait for: nothing is to happen
        return switches() - before

    # First it does what it has put off, for example gives the standby its sockets in advance.
    wait_until(lambda: in_seconds(1) <= most, "rest")
    assert in_seconds(3) <= 3 * most


# pgbouncer's own faults


@pytest.mark.parametrize("command", ["garbage", "again", "crowd"])
def test_a_pgbouncer_that_breaks_the_protocol_is_replaced(
    hanger: ScriptedHanger, command: str
) -> None:
    hanger.start()
    client, other = hanger.client(), hanger.client()
    before = client.who()
    other.say(command)
    wait_until(lambda: not alive(before.pid), "killed")
    assert client.who().incarnation == 2
    assert "protocol-error" in hanger.logged()


def test_a_crash_is_survived(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    before = client.who()
    client.say("crash")
    wait_until(lambda: not alive(before.pid), "crashed")
    assert "SIGSEGV" in (hanger.wait_active(2), hanger.logged())[1]
    assert client.who().incarnation == 2


def test_what_one_said_that_has_died_meanwhile(hanger: ScriptedHanger) -> None:
    """Its end is known before its HELLO is read: that makes no pgbouncer of it, nobody's child."""
    hanger.start()
    assert hanger.process is not None
    client = hanger.client()
    before = client.who()
    said = hanger.directory / "said"
    hanger.directory.chmod(0o777)
    hanger.script(says_hello=str(said))
    os.kill(before.pid, signal.SIGKILL)
    hanger.wait_logged("bouncer-started", times=2)
    with stopped(hanger.process.pid):
        wait_until(said.exists, "a HELLO")
        (pid,) = hanger.bouncer_pids()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), "dead")
    assert client.who().incarnation == 2
    assert hanger.logged().count("bouncer-ended") == 2
    assert "unknown" not in hanger.logged()


def test_crash_loop_and_the_way_out(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    pid = client.who().pid
    hanger.script(dies_adopting=True)
    os.kill(pid, signal.SIGKILL)
    hanger.wait_state(ServiceState.CRASH_LOOP)
    assert hanger.logged().count("bouncer-started") >= 6
    client.say("still here")
    hanger.script()
    assert client.hear() == "echo still here"
    assert hanger.wait_active().pgbouncer.state is ServiceState.ACTIVE


def test_a_standby_that_cannot_start_disturbs_nobody(hanger: ScriptedHanger) -> None:
    hanger.start("--standby")
    client = hanger.client()
    standby = wait_until(lambda: hanger.status().pgbouncer.standby_pid, "standby")
    hanger.bouncer.rename(f"{hanger.bouncer}.away")
    os.kill(standby, signal.SIGKILL)
    hanger.wait_logged("bouncer-start-failed", times=3)
    assert client.who().incarnation == 1
    Path(f"{hanger.bouncer}.away").rename(hanger.bouncer)
    wait_until(lambda: hanger.status().pgbouncer.standby_pid, "another standby")
    assert hanger.status().pgbouncer.state is ServiceState.ACTIVE


def test_a_start_that_fails_again_and_again_backs_off(hanger: ScriptedHanger) -> None:
    hanger.script(exit=3)
    started = time.monotonic()
    hanger.start(wait=False)
    hanger.wait_state(ServiceState.CRASH_LOOP)
    # at once, then 0.1, 0.2, 0.4 s
    assert time.monotonic() - started > 0.7
    assert hanger.status().pgbouncer.incarnation == 0
    assert "exit status 3" in hanger.logged()


def test_a_binary_that_is_gone_for_a_while(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    pid = client.who().pid
    hanger.bouncer.rename(f"{hanger.bouncer}.away")
    os.kill(pid, signal.SIGKILL)
    hanger.wait_logged("bouncer-start-failed", times=3)
    client.say("wait")
    Path(f"{hanger.bouncer}.away").rename(hanger.bouncer)
    assert client.hear() == "echo wait"


def test_an_unpatched_pgbouncer_is_named(hanger: ScriptedHanger) -> None:
    plain = hanger.directory / "plain"
    plain.write_text("#!/bin/sh\necho PgBouncer 1.24.1\n")
    plain.chmod(0o755)
    hanger.start("--pgbouncer", str(plain), wait=False)
    assert hanger.wait() == 1
    assert hanger.logged().splitlines()[-1] == (
        f"pgkeeper: {plain} has no keeper support: build it with `pgkeeper build`"
    )


def test_another_format_is_refused_and_the_ledger_stays(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    pid = client.who().pid
    hanger.script(format=1)
    os.kill(pid, signal.SIGKILL)
    hanger.wait_logged("hello-refused")
    assert f"pgbouncer knows ledger format {FORMAT_VERSION + 1} " in hanger.logged()
    assert f"this pgkeeper {OURS}" in hanger.logged()
    client.say("patience")
    hanger.script()
    assert client.hear() == "echo patience"
