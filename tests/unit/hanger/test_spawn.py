"""Starting a process that can outlive us, and how it ended."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pgkeeper.bouncer.pidfd import Pidfd, ProcessInvisibleError, peer_pidfd
from pgkeeper.bouncer.spawn import (
    CannotStartError,
    Exit,
    Launch,
    NoKeeperSupportError,
    check_keeper_support,
    start,
)


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def launch(tmp_path: Path, text: str) -> Launch:
    return Launch(program(tmp_path / "p", text), tmp_path / "x.ini", Path("/run/keeper.sock"))


def wait(pidfd: Pidfd) -> None:
    assert select.select([pidfd], [], [], 10)[0]


def test_what_it_is_given(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = f'(echo "$1"; env; ulimit -c; cat /proc/self/coredump_filter; ls /proc/self/fd) > {out}'
    environ = {"NOTIFY_SOCKET": "/run/systemd", "LISTEN_FDS": "1", "PATH": os.environ["PATH"]}
    leak = os.open("/dev/null", os.O_RDONLY)
    child = start(launch(tmp_path, "sleep 0.1; " + text), environ=environ)
    try:
        wait(child.pidfd)
        assert child.wait() == Exit(code=0)
    finally:
        child.pidfd.close()
        os.close(leak)
    lines = out.read_text().splitlines()
    assert lines[0] == str(tmp_path / "x.ini")
    assert "PGBOUNCER_KEEPER_SOCKET=/run/keeper.sock" in lines
    assert not any(line.startswith(("NOTIFY_SOCKET", "LISTEN_")) for line in lines)
    assert lines[lines.index("00000000") - 1] == "0"  # ulimit -c, and then the filter
    # its own three, and what ls and the redirection have
    assert set(lines[lines.index("00000000") + 1 :]) <= {"0", "1", "2", "3"}


def test_it_has_a_session_of_its_own(tmp_path: Path) -> None:
    child = start(launch(tmp_path, "exec sleep 60"))
    try:
        assert os.getsid(child.pid) == child.pid
        assert not child.pidfd.ended
        assert child.pidfd.signal(signal.SIGKILL)
        wait(child.pidfd)
        assert child.pidfd.ended
        assert child.wait() == Exit(signal=signal.SIGKILL)
        assert not child.pidfd.signal(signal.SIGKILL)
    finally:
        child.pidfd.close()


def test_what_cannot_be_started_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CannotStartError) as error:
        start(Launch(tmp_path / "none", tmp_path / "x.ini", Path("s")))
    assert error.value.message == f"cannot start {tmp_path}/none: No such file or directory"


@pytest.mark.parametrize(
    ("returncode", "text", "by_itself"),
    [
        (0, "exit status 0", False),
        (1, "exit status 1", True),
        (-signal.SIGKILL, "killed by SIGKILL", False),
        (-signal.SIGTERM, "killed by SIGTERM", False),
        (-signal.SIGSEGV, "killed by SIGSEGV", True),
        (-signal.SIGABRT, "killed by SIGABRT", True),
        (-64, "killed by SIGRTMAX", True),
        (-50, "killed by signal 50", True),
    ],
)
def test_how_it_ended(returncode: int, text: str, by_itself: bool) -> None:
    end = Exit.of(returncode)
    assert (str(end), end.by_itself) == (text, by_itself)


def test_nobody_tells_how_a_stranger_ended() -> None:
    assert str(Exit()) == "unknown"
    assert not Exit().by_itself


def test_keeper_support(tmp_path: Path) -> None:
    patched = program(tmp_path / "patched", "echo PgBouncer 1.24.1; echo keeper: format 1")
    asyncio.run(check_keeper_support(patched))
    plain = program(tmp_path / "plain", "echo PgBouncer 1.24.1")
    with pytest.raises(NoKeeperSupportError) as error:
        asyncio.run(check_keeper_support(plain))
    assert error.value.message == (f"{plain} has no keeper support: build it with `pgkeeper build`")
    with pytest.raises(CannotStartError):
        asyncio.run(check_keeper_support(tmp_path / "none"))


def test_a_program_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeeper.bouncer.spawn._VERSION_TIMEOUT", 0.2)
    silent = program(tmp_path / "silent", "exec sleep 60")
    with pytest.raises(CannotStartError, match="does not answer to --version"):
        asyncio.run(check_keeper_support(silent))


def test_the_peer_of_a_connection(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        text = (
            "import socket, sys, time\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            f"s.connect({str(path)!r})\n"
            "time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", text]) as process:
            connection, _ = listener.accept()
            with connection, peer_pidfd(connection, process.pid) as pidfd:
                assert not os.get_inheritable(pidfd.fileno())
                assert not pidfd.ended
                process.kill()
                wait(pidfd)
                assert pidfd.ended


def test_a_peer_that_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without SO_PEERPIDFD, and a peer in another PID namespace."""
    monkeypatch.setattr("pgkeeper.bouncer.pidfd._SO_PEERPIDFD", 9999)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with pytest.raises(ProcessInvisibleError, match="share a PID namespace"):
            peer_pidfd(ours, 0)
        with peer_pidfd(ours, os.getpid()) as pidfd:
            assert not pidfd.ended
