"""The hanger ends, and what is in its way at its start; with a pgbouncer of a few lines."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess

import pytest

from pgkeeper.states import ServiceState
from tests.system.scripted import ScriptedHanger, alive, wait_until

FATAL = b"E\0\0\0"


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
    hanger.start("--hold-timeout", "3")
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
