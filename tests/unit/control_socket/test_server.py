"""The admin socket from outside: peers that behave and peers that do not."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from pgkeeper import log
from pgkeeper.control import protocol as p
from pgkeeper.control.handlers import Handlers
from pgkeeper.control.report import Session
from pgkeeper.control.server import AdminServer, AdminSocketError
from pgkeeper.errors import PgkeeperError
from tests.fix_admin import SESSIONS, STATUS, FakeKeeper, RunningAdmin, run_admin

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOBODY = 65534
STATUS_LINE = p.encode(p.StatusRequest())


def events(logged: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged.getvalue().splitlines()]


def connect(admin: RunningAdmin) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(admin.path))
    return connection


def ask(admin: RunningAdmin, raw: bytes) -> list[p.Reply]:
    """All replies to these bytes, until the server closes."""
    with connect(admin) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as lines:
            return [p.decode_reply(line) for line in lines]


def test_status(admin: RunningAdmin) -> None:
    admin.keeper.warning_lines = ["careful"]
    assert ask(admin, STATUS_LINE) == [p.StatusReply(STATUS, ["careful"])]


def test_sessions_come_in_batches(admin: RunningAdmin) -> None:
    many = [
        Session(n, "client", "joe", "shop", "idle", True, None, "idle", None) for n in range(250)
    ]
    admin.keeper.session_list = iter(many)
    *batches, end = ask(admin, p.encode(p.SessionsRequest()))
    assert end == p.SessionsEnd(250)
    assert [len(batch.sessions) for batch in batches] == [50] * 5  # type: ignore[union-attr]


def test_no_sessions(admin: RunningAdmin) -> None:
    admin.keeper.session_list = ()
    assert ask(admin, p.encode(p.SessionsRequest())) == [p.SessionsEnd(0)]


def test_handoff_streams_its_progress(admin: RunningAdmin) -> None:
    admin.keeper.go_on.clear()
    with connect(admin) as connection, connection.makefile("rb") as lines:
        connection.sendall(p.encode(p.HandoffRequest(pgbouncer="/new", ini=None)))
        first, second = (p.decode_reply(lines.readline()) for _ in range(2))
        assert (first, second) == (
            p.Progress("start", "starting the new pgbouncer"),
            p.Progress("activate", "activating it"),
        )
        admin.keeper.go_on.set()  # only now: the progress did not wait for the end
        last = p.decode_reply(lines.readline())
        assert isinstance(last, p.HandoffReply)
        assert lines.readline() == b""
    assert [str(path) for path, _ in admin.keeper.handoffs] == ["/new"]


def test_one_change_at_a_time(admin: RunningAdmin) -> None:
    admin.keeper.go_on.clear()
    with connect(admin) as connection, connection.makefile("rb") as lines:
        connection.sendall(p.encode(p.HandoffRequest()))
        lines.readline()
        for request in (p.HandoffRequest(), p.ReleaseRequest()):
            (busy,) = ask(admin, p.encode(request))
            assert isinstance(busy, p.Failure)
            assert busy.code is p.FailureCode.BUSY
        # who only looks is not in the way
        assert ask(admin, STATUS_LINE) == [p.StatusReply(STATUS)]
        admin.keeper.go_on.set()
        assert isinstance(p.decode_reply(lines.readlines()[-1]), p.HandoffReply)
    assert admin.keeper.releases == 0
    (reply,) = ask(admin, p.encode(p.ReleaseRequest()))
    assert isinstance(reply, p.ReleaseReply)


def test_a_handoff_goes_on_without_its_client(admin: RunningAdmin) -> None:
    admin.keeper.go_on.clear()
    with connect(admin) as connection:
        connection.sendall(p.encode(p.HandoffRequest()))
        assert admin.keeper.waiting.wait(30)
    admin.keeper.go_on.set()
    assert ask(admin, STATUS_LINE) == [p.StatusReply(STATUS)]
    *_, last = ask(admin, p.encode(p.HandoffRequest()))
    assert isinstance(last, p.HandoffReply)
    assert len(admin.keeper.handoffs) == 2


@pytest.mark.parametrize("name", ["relative", "", "a\0b", "/x\0", "/\ud800"])
def test_file_names_must_be_absolute(admin: RunningAdmin, name: str) -> None:
    (reply,) = ask(admin, p.encode(p.HandoffRequest(ini=name)))
    assert isinstance(reply, p.Failure)
    assert reply.code is p.FailureCode.BAD_REQUEST
    assert admin.keeper.handoffs == []


def test_errors_of_the_keeper_are_told(admin: RunningAdmin) -> None:
    admin.keeper.error = PgkeeperError("no luck;\n back on the old one")
    *_, last = ask(admin, p.encode(p.HandoffRequest()))
    assert last == p.Failure(p.FailureCode.FAILED, "no luck;; back on the old one")


def test_defects_are_logged_and_not_told(logged: io.StringIO, admin: RunningAdmin) -> None:
    admin.keeper.error = RuntimeError("hunter2")
    (reply,) = ask(admin, STATUS_LINE)
    text = "internal error (RuntimeError); the hanger's log says more"
    assert reply == p.Failure(p.FailureCode.INTERNAL, text)
    (event,) = (event for event in events(logged) if event["event"] == log.Event.INTERNAL_ERROR)
    assert "RuntimeError" in event["exception"]
    admin.keeper.error = None
    assert ask(admin, STATUS_LINE) == [p.StatusReply(STATUS)]


@pytest.mark.parametrize(
    ("raw", "code", "message"),
    [
        (b"\n", "bad-request", "not a line of JSON"),
        (b"GET / HTTP/1.1\r\n\r\n", "bad-request", "not a line of JSON"),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", "bad-request", "connection ended within the request"),
        (b'{"version": 9, "type": "status"}\n', "version", "protocol version 9, but this side"),
        (b'{"version": 1, "type": "stop"}\n', "bad-request", "unknown type of message"),
        (b"x" * p.REQUEST_LIMIT, "bad-request", "connection ended within the request"),
        (b"x" * (p.REQUEST_LIMIT + 1), "bad-request", "longer than 65536 bytes"),
    ],
)
def test_garbage_gets_an_error_and_the_end(
    logged: io.StringIO, admin: RunningAdmin, raw: bytes, code: str, message: str
) -> None:
    (reply,) = ask(admin, raw)
    assert isinstance(reply, p.Failure)
    assert reply.code.value == code
    assert message in reply.message
    assert ask(admin, STATUS_LINE) == [p.StatusReply(STATUS)]
    assert log.Event.ADMIN_BAD_REQUEST in [event["event"] for event in events(logged)]


def test_garbage_without_end_is_not_read_for_ever(admin: RunningAdmin) -> None:
    with connect(admin) as connection:
        with pytest.raises(ConnectionError):
            connection.sendall(b"x" * (64 << 20))
        assert isinstance(p.decode_reply(connection.recv(1000)), p.Failure)


def test_whoever_only_looks_is_no_error(logged: io.StringIO, admin: RunningAdmin) -> None:
    assert ask(admin, b"") == []
    assert events(logged) == []


def test_whoever_says_nothing_is_dropped(open_dir: Path, fake_keeper: FakeKeeper) -> None:
    running = run_admin(open_dir / "k", fake_keeper, timeout=0.05)
    with running as admin, connect(admin) as connection, connection.makefile("rb") as lines:
        connection.sendall(STATUS_LINE[:-1])
        reply = p.decode_reply(lines.readline())
        assert reply == p.Failure(p.FailureCode.BAD_REQUEST, "no request within 0.05 s")
        assert lines.readline() == b""


def test_whoever_does_not_read_is_dropped(open_dir: Path, fake_keeper: FakeKeeper) -> None:
    taken = threading.Event()

    def without_end() -> Iterator[Session]:
        try:
            while True:
                yield SESSIONS[0]
        finally:
            taken.set()

    fake_keeper.session_list = without_end()
    running = run_admin(open_dir / "k", fake_keeper, timeout=0.05)
    with running as admin, connect(admin) as connection:
        connection.sendall(p.encode(p.SessionsRequest()))
        assert connection.recv(1000)
        fake_keeper.session_list = ()  # the generator belongs to the request alone now
        # Not reading on: the others do not notice, and the server gives up.
        assert ask(admin, STATUS_LINE) == [p.StatusReply(STATUS)]
        assert taken.wait(30)


def test_too_many_connections(admin: RunningAdmin) -> None:
    waiting = [connect(admin) for _ in range(32)]
    (reply,) = ask(admin, STATUS_LINE)
    assert reply == p.Failure(p.FailureCode.BUSY, "too many connections")
    for connection in waiting:
        connection.sendall(STATUS_LINE)
        with connection.makefile("rb") as lines:
            assert isinstance(p.decode_reply(lines.readline()), p.StatusReply)
            lines.read()
        connection.close()
    assert isinstance(ask(admin, STATUS_LINE)[0], p.StatusReply)


def test_no_descriptor_is_left_for_a_connection(
    logged: io.StringIO, admin: RunningAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgkeeper.callers._PAUSE", 0.01)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            connection.connect(str(admin.path))
            wait_until(lambda: logged.getvalue().count(log.Event.ADMIN_PAUSED) >= 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        connection.sendall(STATUS_LINE)
        assert isinstance(p.decode_reply(connection.recv(10000)), p.StatusReply)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def test_replies_under_way_leave_before_the_end(admin: RunningAdmin) -> None:
    admin.keeper.go_on.clear()
    with connect(admin) as connection, connection.makefile("rb") as lines:
        connection.sendall(p.encode(p.HandoffRequest()))
        assert admin.keeper.waiting.wait(30)
        closing = threading.Thread(target=admin.close, args=(30,))
        closing.start()
        admin.keeper.go_on.set()
        assert isinstance(p.decode_reply(lines.readlines()[-1]), p.HandoffReply)
        closing.join(30)
    assert not closing.is_alive()
    assert not admin.path.exists()


def test_the_end_does_not_wait_for_ever(admin: RunningAdmin) -> None:
    with connect(admin) as connection:
        connection.sendall(b"{")
        admin.close(grace=0.01)
        assert connection.recv(1000) == b""


# --- the socket file and who may use it ---


def mode_and_owner(path: Path) -> tuple[int, int]:
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid


def test_the_file_is_ours_alone(admin: RunningAdmin) -> None:
    assert mode_and_owner(admin.path) == (0o600, os.geteuid())


def test_the_mode_is_narrow_whatever_the_umask(open_dir: Path, fake_keeper: FakeKeeper) -> None:
    umask = os.umask(0)
    try:
        with run_admin(open_dir / "k", fake_keeper) as admin:
            assert mode_and_owner(admin.path)[0] == 0o600
            assert os.umask(0) == 0  # and the umask is back
    finally:
        os.umask(umask)


def test_the_file_goes_with_the_server(open_dir: Path, fake_keeper: FakeKeeper) -> None:
    with run_admin(open_dir / "k", fake_keeper) as admin:
        assert admin.path.is_socket()
    assert not admin.path.exists()


def test_a_file_put_there_by_another_stays(open_dir: Path, fake_keeper: FakeKeeper) -> None:
    with run_admin(open_dir / "k", fake_keeper) as admin:
        admin.path.unlink()
        admin.path.write_text("not ours")
    assert admin.path.read_text() == "not ours"


def test_a_dead_hanger_leaves_a_file_that_is_replaced(
    open_dir: Path, fake_keeper: FakeKeeper
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(open_dir / "k.admin"))
        dead.listen()
    with run_admin(open_dir / "k", fake_keeper) as admin:
        assert ask(admin, STATUS_LINE) == [p.StatusReply(STATUS)]


def start_error(path: Path) -> AdminSocketError:
    with pytest.raises(AdminSocketError) as caught:
        asyncio.run(_start(path))
    return caught.value


async def _start(path: Path) -> None:
    await AdminServer(path, Handlers(FakeKeeper()), ()).start()


def test_a_living_hanger_is_left_alone(admin: RunningAdmin) -> None:
    assert start_error(admin.path).reason == "another hanger listens there"
    assert ask(admin, STATUS_LINE) == [p.StatusReply(STATUS)]


def test_a_name_too_long_for_a_socket(open_dir: Path) -> None:
    error = start_error(open_dir / ("x" * 120))
    assert "longer than the 107 bytes" in error.message
    assert list(open_dir.iterdir()) == []


def test_no_such_folder(open_dir: Path) -> None:
    error = start_error(open_dir / "none" / "k")
    assert error.message == f"cannot listen on {open_dir}/none/k: No such file or directory"


def test_some_other_file_is_not_removed(open_dir: Path) -> None:
    path = open_dir / "k"
    path.write_text("precious")
    assert start_error(path).reason == "Address already in use"
    assert path.read_text() == "precious"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

PEER = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.settimeout(30)
try:
    connection.connect(sys.argv[1])
    connection.sendall(sys.argv[2].encode())
    sys.stdout.write("answer " + connection.recv(100000).decode())
except PermissionError:
    sys.stdout.write("denied")
except ConnectionError:
    sys.stdout.write("answer ")
"""


def ask_as_nobody(admin: RunningAdmin) -> str:
    """What user nobody gets: "denied" by the file's mode, or "answer " and the reply."""

    # Not this interpreter if there is another: it may lie in a folder that only root may enter.
    return subprocess.run(
        [_PYTHON, "-I", "-c", PEER, str(admin.path), STATUS_LINE.decode()],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        timeout=60,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


_PYTHON = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable


@needs_root
def test_a_foreign_user_cannot_open_the_file(admin: RunningAdmin) -> None:
    assert ask_as_nobody(admin) == "denied"


@needs_root
def test_a_foreign_user_who_can_open_the_file_is_refused(
    logged: io.StringIO, admin: RunningAdmin
) -> None:
    admin.path.chmod(0o666)
    assert ask_as_nobody(admin) == "answer "
    (event,) = events(logged)
    assert (event["event"], event["uid"]) == (log.Event.ADMIN_REFUSED, NOBODY)
    assert event["pid"] > 0


@needs_root
def test_one_allowed_user_owns_the_file(open_dir: Path, fake_keeper: FakeKeeper) -> None:
    with run_admin(open_dir / "k", fake_keeper, {NOBODY, 0}) as admin:
        assert mode_and_owner(admin.path) == (0o600, NOBODY)
        assert ask_as_nobody(admin).startswith('answer {"version": 1, "type": "status"')
        assert ask(admin, STATUS_LINE) == [p.StatusReply(STATUS)]


@needs_root
def test_several_allowed_users_need_an_open_file(open_dir: Path, fake_keeper: FakeKeeper) -> None:
    with run_admin(open_dir / "k", fake_keeper, {NOBODY, 4711}) as admin:
        assert mode_and_owner(admin.path) == (0o666, 0)
        assert ask_as_nobody(admin).startswith('answer {"version": 1, "type": "status"')
    with run_admin(open_dir / "k", fake_keeper, {4711, 4712}) as admin:
        assert ask_as_nobody(admin) == "answer "
