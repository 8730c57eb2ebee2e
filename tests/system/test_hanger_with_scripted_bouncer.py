"""The hanger as a process, against a pgbouncer of a few lines that does what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import resource
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer.spawn import Launch
from pgkeeper.config import BouncerIni
from pgkeeper.control.client import RequestFailedError
from pgkeeper.handoff.execute import HandoffFailedError
from pgkeeper.hanger.service import Service
from pgkeeper.hanger.settings import Patience, Settings
from pgkeeper.states import ServiceState
from protocol.ledger import FORMAT_VERSION
from tests.system.scripted import ScriptedHanger, alive, wait_until
from tests.unit.hanger.until import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

FATAL = b"E\0\0\0"


@pytest.fixture
def hanger() -> Iterator[ScriptedHanger]:
    # Not tmp_path: socket names are short, and other users must get there.
    with tempfile.TemporaryDirectory(prefix="hanger-") as directory:
        made = ScriptedHanger(Path(directory))
        try:
            yield made
        finally:
            print(made.logged())
            made.close()


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

    wait_until(lambda: switches() == (time.sleep(0.1), switches())[1], "rest")
    before = switches()
    time.sleep(1.0)  # there is no condition to wait for: nothing is to happen
    assert switches() - before <= most


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
    assert f"this pgkeeper ledger format {FORMAT_VERSION} " in hanger.logged()
    client.say("patience")
    hanger.script()
    assert client.hear() == "echo patience"


# the hanger's end


def test_a_new_hanger_takes_over_what_the_old_one_held(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    before = client.who()
    unix = hanger.client(unix=True)
    assert unix.who().token == 2
    assert client.ask("servers 100") == "100"
    hanger.end(signal.SIGKILL)
    assert client.ask("nobody") == "echo nobody"
    # pgbouncer accepts by itself
    alone = hanger.client()
    assert alone.who().token == 3
    hanger.start()
    status = hanger.wait_active()
    assert (status.pgbouncer.pid, status.pgbouncer.incarnation) == (before.pid, 1)
    assert (status.sessions.clients_held, status.sessions.servers_held) == (3, 100)
    assert status.adoptions.count == 0
    # and the new hanger again
    again = hanger.client()
    assert again.who().token == 4
    again_unix = hanger.client(unix=True)
    assert again_unix.who().token == 5
    os.kill(before.pid, signal.SIGKILL)
    assert client.who().incarnation == 2
    assert [it.who().token for it in (alone, again, unix, again_unix)] == [3, 4, 2, 5]


def test_a_pgbouncer_that_dies_on_its_way_back(hanger: ScriptedHanger) -> None:
    hanger.script(dies_returning=True)
    hanger.start()
    client = hanger.client()
    pid = client.who().pid
    hanger.end(signal.SIGKILL)
    hanger.script()
    hanger.start(wait=False)
    wait_until(lambda: not alive(pid), "died")
    # its sessions are gone, but its addresses are free
    assert client.rest() == b""
    hanger.wait_active(2)
    assert hanger.client().ask("new") == "echo new"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_behind(hanger: ScriptedHanger, number: signal.Signals) -> None:
    hanger.start("--standby")
    client = hanger.client()
    client.who()
    wait_until(lambda: hanger.status().pgbouncer.standby_pid, "standby")
    assert hanger.end(number) == 0
    assert client.rest() == b"goodbye\n"
    assert hanger.bouncer_pids() == []
    names = {entry.name for entry in hanger.directory.iterdir()}
    assert names == {"bouncer", "hanger.log", "pgbouncer.ini"}


def test_a_pgbouncer_that_does_not_say_goodbye_is_killed(hanger: ScriptedHanger) -> None:
    hanger.script(never_leaves=True)
    hanger.start()
    client = hanger.client()
    pid = client.who().pid
    assert hanger.process is not None
    hanger.process.terminate()
    hanger.wait_logged("hanger-stopping")
    assert hanger.end(signal.SIGTERM) == 0  # twice: at once
    assert not alive(pid)
    # the ledger of the scripted one is empty, so the client counts as new and may be told
    assert client.rest().startswith(FATAL)


def test_release_ends_the_service(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    pid = client.who().pid
    client.ask("servers 2")
    released = hanger.control.release()
    assert (released.clients, released.servers) == (1, 2)
    assert client.rest() == b"goodbye\n"
    assert hanger.wait() == 0
    assert not alive(pid)


def test_release_while_nobody_serves(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    pid = client.who().pid
    hanger.script(exit=1)
    os.kill(pid, signal.SIGKILL)
    hanger.wait_state(ServiceState.CRASH_LOOP)
    hanger.control.release()
    rest = client.rest()
    assert rest.startswith(FATAL)
    assert b"C57P01\0" in rest
    assert hanger.wait() == 0


def test_shutdown_at_the_console_ends_the_service(hanger: ScriptedHanger) -> None:
    hanger.start()
    client, other = hanger.client(), hanger.client()
    other.who()
    client.say("farewell")
    assert client.rest() == b"goodbye\n"
    assert other.rest() == b"goodbye\n"
    assert hanger.wait() == 0


def test_an_unsupervised_pgbouncer_outlives_a_hanger_that_is_told_to_end(
    hanger: ScriptedHanger,
) -> None:
    hanger.start("--no-supervise", wait=False)
    hanger.wait_state(ServiceState.DOWN)
    environment = {**os.environ, "PGBOUNCER_KEEPER_SOCKET": str(hanger.socket)}
    with subprocess.Popen([hanger.bouncer, hanger.ini], env=environment) as bouncer:
        try:
            hanger.wait_active()
            client = hanger.client()
            assert client.who().pid == bouncer.pid
            assert hanger.end(signal.SIGTERM) == 0
            assert client.ask("alone") == "echo alone"
            assert hanger.client(unix=True).ask("new") == "echo new"
            hanger.start("--no-supervise")
            assert hanger.status().sessions.clients_held == 2
        finally:
            bouncer.kill()
    hanger.wait_state(ServiceState.DOWN)


def test_hold_timeout(hanger: ScriptedHanger) -> None:
    hanger.start("--hold-timeout", "0.7")
    client = hanger.client()
    pid = client.who().pid
    client.ask("servers 3")
    idle = hanger.idle_descriptors()
    hanger.script(exit=1)
    os.kill(pid, signal.SIGKILL)
    text = b"pgbouncer has been gone for longer than hold_timeout"
    fields = b"SFATAL\0VFATAL\0C57P03\0M" + text + b"\0\0"
    assert client.rest() == b"E" + (len(fields) + 4).to_bytes(4, "big") + fields
    status = hanger.status()
    assert (status.sessions.clients_held, status.sessions.servers_held) == (0, 0)
    # whoever comes later is held anew, and served by the next ledger
    client = hanger.client()
    client.say("later")
    hanger.script()
    assert client.hear() == "echo later"
    assert "generation=2" in hanger.logged()
    assert hanger.idle_descriptors() < idle


# in the way


def test_a_port_in_use_is_one_line(hanger: ScriptedHanger) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", hanger.port))
        other.listen()
        hanger.start(wait=False)
        assert hanger.wait() == 1
    assert hanger.logged().splitlines()[-1] == (
        f"pgkeeper: cannot listen on 127.0.0.1:{hanger.port}:"
        " another process is listening there (port in use)"
    )
    assert not hanger.socket.exists()


def test_a_stale_socket_file_is_replaced(hanger: ScriptedHanger) -> None:
    for path in (hanger.socket, hanger.directory / f".s.PGSQL.{hanger.port}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
            stale.bind(str(path))
    hanger.start()
    assert hanger.client(unix=True).ask("hi") == "echo hi"


def test_a_living_hanger_is_left_alone(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    first = hanger.process
    hanger.start(wait=False)
    assert hanger.wait() == 1
    assert f"pgkeeper: cannot listen on {hanger.socket}: another hanger" in hanger.logged()
    hanger.process = first
    assert client.ask("hi") == "echo hi"
    assert hanger.status().pgbouncer.state is ServiceState.ACTIVE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_foreigners_are_turned_away(hanger: ScriptedHanger) -> None:
    hanger.start("--allow-user", "bin")  # so that the file is open and only the check is left
    daemon = pwd.getpwnam("daemon").pw_uid
    foreigner = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with foreigner:
        foreigner.settimeout(15)
        os.seteuid(daemon)
        try:
            foreigner.connect(str(hanger.socket))
        finally:
            os.seteuid(0)
        assert foreigner.recv(1) == b""
    hanger.wait_logged(f"uid {daemon} may not connect")
    assert hanger.client().ask("hi") == "echo hi"


@pytest.mark.skipif(os.geteuid() != 0, reason="an unprivileged hanger gives nothing away")
def test_a_closed_socket_is_not_open_to_others(hanger: ScriptedHanger) -> None:
    hanger.start()
    nobody = pwd.getpwnam("nobody").pw_uid
    status = hanger.socket.stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, nobody)


@pytest.mark.skipif(os.geteuid() != 0, reason="about root")
def test_root_needs_a_user(hanger: ScriptedHanger) -> None:
    hanger.write_ini(user="")
    hanger.start(wait=False)
    assert hanger.wait() == 1
    assert "set user in [pgbouncer]" in hanger.logged().splitlines()[-1]


# planned replacement


def test_handoff(hanger: ScriptedHanger) -> None:
    hanger.start("--standby")
    client = hanger.client()
    before = client.who()
    client.ask("servers 5")
    steps: list[str] = []
    new = hanger.make_bouncer("bouncer-2")
    report = hanger.control.handoff(pgbouncer=new, progress=lambda it: steps.append(it.step))
    after = client.who()
    assert (report.pid, report.incarnation) == (after.pid, after.incarnation)
    assert (report.clients, report.servers, report.lost) == (1, 5, {})
    assert steps == [
        "start-new",
        "await-standby",
        "freeze",
        "check-format",
        "fence-old",
        "activate-new",
        "await-ready",
        "keep-new",
    ]
    assert not alive(before.pid)
    # restarts use the new binary, and so does the standby
    standby = wait_until(lambda: hanger.status().pgbouncer.standby_pid, "standby")
    os.kill(after.pid, signal.SIGKILL)
    assert client.who().pid == standby
    assert hanger.logged().count(f"binary={new}") >= 2


def test_handoff_out_of_a_crash_loop(hanger: ScriptedHanger) -> None:
    """Nobody serves: the new one adopts what is held, and is what is started from then on."""
    hanger.start()
    client = hanger.client()
    before = client.who()
    hanger.script(exit=3)
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: hanger.status().pgbouncer.state is ServiceState.CRASH_LOOP, "a crash loop")
    other = hanger.directory / "other"
    other.mkdir()
    hanger.script(other)
    ini = hanger.write_ini(other / "pgbouncer.ini")
    report = hanger.control.handoff(ini=ini)
    assert report.lost == {}
    assert client.who().pid == report.pid
    os.kill(report.pid, signal.SIGKILL)
    assert client.who().pid != report.pid


def test_handoff_that_does_not_help_in_a_crash_loop(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    hanger.script(exit=3)
    os.kill(client.who().pid, signal.SIGKILL)
    wait_until(lambda: hanger.status().pgbouncer.state is ServiceState.CRASH_LOOP, "a crash loop")
    other = hanger.directory / "other"
    other.mkdir()
    hanger.script(other, exit=4)
    with pytest.raises(RequestFailedError, match=r"exit status 4\); nobody serves at the moment"):
        hanger.control.handoff(ini=hanger.write_ini(other / "pgbouncer.ini"))
    hanger.script()
    assert client.who().incarnation == 2


def test_handoff_to_something_that_does_not_start(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    before = client.who()
    plain = hanger.directory / "plain"
    plain.write_text("#!/bin/sh\necho PgBouncer 1.24.1\n")
    plain.chmod(0o755)
    with pytest.raises(RequestFailedError) as failed:
        hanger.control.handoff(pgbouncer=plain)
    assert "has no keeper support" in failed.value.message
    assert failed.value.message.endswith("the old pgbouncer goes on, untouched")
    assert client.who() == before


def test_handoff_to_one_that_ends_is_refused_or_hangs_at_start(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    before = client.who()
    other = hanger.directory / "other"
    other.mkdir()
    ini = hanger.write_ini(other / "pgbouncer.ini")
    for script, reason in (({"exit": 4}, "exit status 4"), ({"format": 1}, "was refused")):
        hanger.script(other, **script)
        with pytest.raises(RequestFailedError, match=reason):
            hanger.control.handoff(ini=ini)
        assert client.who() == before
    wait_until(lambda: len(hanger.bouncer_pids()) == 1, "the new one ended")


def test_handoff_to_one_that_cannot_adopt_goes_back(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    before = client.who()
    other = hanger.directory / "other"
    other.mkdir()
    hanger.script(other, dies_adopting=True)
    with pytest.raises(RequestFailedError) as failed:
        hanger.control.handoff(ini=hanger.write_ini(other / "pgbouncer.ini"))
    assert "back on the old one" in failed.value.message
    after = client.who()
    assert after.incarnation == before.incarnation + 2
    # restarts still use the old ini, whose script does no harm
    os.kill(after.pid, signal.SIGKILL)
    assert client.who().incarnation == after.incarnation + 1


def test_handoff_of_one_that_does_not_freeze(hanger: ScriptedHanger) -> None:
    hanger.script(never_freezes=True)
    hanger.start()
    client = hanger.client()
    before = client.who()
    report = hanger.control.handoff()
    assert client.who().pid == report.pid != before.pid


def test_handoff_of_nothing(hanger: ScriptedHanger) -> None:
    hanger.script(exit=1)
    hanger.start(wait=False)
    hanger.wait_state(ServiceState.CRASH_LOOP)
    with pytest.raises(RequestFailedError, match="nobody serves at the moment"):
        hanger.control.handoff()


def test_sighup_reaches_pgbouncer_and_renews_the_standby(hanger: ScriptedHanger) -> None:
    hanger.start("--standby")
    client = hanger.client()
    standby = wait_until(lambda: hanger.status().pgbouncer.standby_pid, "standby")
    pid = client.who().pid
    assert hanger.process is not None
    hanger.process.send_signal(signal.SIGHUP)
    # the scripted one has no handler for it, so that it dies of it
    wait_until(lambda: not alive(pid) and not alive(standby), "signalled")
    assert client.who().incarnation >= 2


# patience: the hanger in this process, because no option makes it impatient


async def run_impatient(
    hanger: ScriptedHanger, patience: Patience, act: Callable[[Service], Awaitable[None]]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    loop = asyncio.get_running_loop()
    launch = Launch(hanger.bouncer, hanger.ini, hanger.socket)
    settings = Settings(standby=False, patience=patience)
    service = Service(loop, settings, BouncerIni.load(hanger.ini), launch)
    await service.claim()
    try:
        await service.open()
        await act(service)
    finally:
        await service.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)  # the hanger raises its own


@pytest.mark.parametrize(
    ("script", "patience", "reason"),
    [
        ({"silent": True}, Patience(hello=0.3), "it did not introduce itself"),
        ({"hangs": True}, Patience(ready=0.3), "it did not get ready"),
    ],
    ids=["hello", "ready"],
)
def test_a_pgbouncer_that_takes_too_long_is_killed(
    hanger: ScriptedHanger,
    script: dict[str, object],
    patience: Patience,
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hanger.script(**script)

    async def act(service: Service) -> None:
        await until(lambda: service.supervisor.crashes.short_lives == 1)
        service.supervisor.settings = Settings()  # the next one may take its time
        hanger.script()
        await until(lambda: service.status().pgbouncer.state is ServiceState.ACTIVE)

    asyncio.run(run_impatient(hanger, patience, act))
    assert reason in capfd.readouterr().out
    assert hanger.bouncer_pids() == []


def test_a_handoff_to_one_that_hangs_goes_back(hanger: ScriptedHanger) -> None:
    other = hanger.directory / "other"
    other.mkdir()
    hanger.script(other, hangs=True)
    ini = hanger.write_ini(other / "pgbouncer.ini")

    async def act(service: Service) -> None:
        await until(lambda: service.status().pgbouncer.state is ServiceState.ACTIVE)
        with pytest.raises(HandoffFailedError, match="took too long; back on the old one"):
            await service.handoff(None, ini, lambda step, text: None)
        status = service.status()
        assert status.pgbouncer.state is ServiceState.ACTIVE
        assert status.pgbouncer.incarnation == 3

    asyncio.run(run_impatient(hanger, Patience(ready=1.0), act))
    assert hanger.bouncer_pids() == []


def test_a_handoff_that_is_cancelled_leaves_the_old_one(hanger: ScriptedHanger) -> None:
    other = hanger.directory / "other"
    other.mkdir()
    hanger.script(other, silent=True)
    ini = hanger.write_ini(other / "pgbouncer.ini")

    async def act(service: Service) -> None:
        await until(lambda: service.status().pgbouncer.state is ServiceState.ACTIVE)
        before = service.status().pgbouncer
        started = asyncio.Event()
        task = asyncio.create_task(
            service.handoff(
                None, ini, lambda step, text: started.set() if step == "await-standby" else None
            )
        )
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: len(hanger.bouncer_pids()) == 1)
        assert service.status().pgbouncer == before

    asyncio.run(run_impatient(hanger, Patience(), act))
