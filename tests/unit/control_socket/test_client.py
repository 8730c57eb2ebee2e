"""The command line's end of the admin socket, with hangers good and bad."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeeper.control import protocol as p
from pgkeeper.control.client import ControlClient, NoHangerError, RequestFailedError
from pgkeeper.control.report import TopQuery
from pgkeeper.errors import PgkeeperError
from tests.fix_admin import SESSIONS, STATUS, RunningAdmin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def test_status(admin: RunningAdmin) -> None:
    admin.keeper.warning_lines = ["careful"]
    assert ControlClient(admin.socket).status() == p.StatusReply(STATUS, ["careful"])


def test_sessions(admin: RunningAdmin) -> None:
    admin.keeper.session_list = SESSIONS * 100
    assert ControlClient(admin.socket).sessions() == list(SESSIONS * 100)


def test_top_and_kill(admin: RunningAdmin) -> None:
    client = ControlClient(admin.socket)
    query = TopQuery(order="age", offset=1, limit=1)
    reply = client.top(query)
    assert reply.status == STATUS
    assert [row.session for row in reply.top.rows] == [SESSIONS[1]]
    assert admin.keeper.queries == [query]
    client.kill("c7")
    assert admin.keeper.kills == ["c7"]


def test_handoff(admin: RunningAdmin) -> None:
    seen: list[str] = []
    report = ControlClient(admin.socket).handoff(
        Path("/new/pgbouncer"), Path("/new.ini"), lambda progress: seen.append(progress.step)
    )
    assert (report.pid, report.lost) == (4720, {"in-flight": 1})
    assert seen == ["start", "activate"]
    assert admin.keeper.handoffs == [(Path("/new/pgbouncer"), Path("/new.ini"))]


def test_handoff_to_the_same(admin: RunningAdmin) -> None:
    ControlClient(admin.socket).handoff()
    assert admin.keeper.handoffs == [(None, None)]


def test_release(admin: RunningAdmin) -> None:
    assert ControlClient(admin.socket).release().clients == 12
    assert admin.keeper.releases == 1


def test_a_refusal_carries_its_code(admin: RunningAdmin) -> None:
    admin.keeper.error = PgkeeperError("back on the old one")
    with pytest.raises(RequestFailedError) as caught:
        ControlClient(admin.socket).handoff()
    assert (caught.value.code, caught.value.message) == (
        p.FailureCode.FAILED,
        "back on the old one",
    )
    assert caught.value.exit_code == 1


def no_hanger(path: Path) -> str:
    with pytest.raises(NoHangerError) as caught:
        ControlClient(path).status()
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith("no hanger answers: ")
    return caught.value.reason


def test_no_such_file(open_dir: Path) -> None:
    assert no_hanger(open_dir / "k") == f"{open_dir}/k.admin does not exist"


def test_nobody_listens(open_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(open_dir / "k.admin"))
    assert no_hanger(open_dir / "k") == f"nobody listens on {open_dir}/k.admin"


def test_not_a_socket(open_dir: Path) -> None:
    (open_dir / "k.admin").write_text("x")
    assert no_hanger(open_dir / "k") == f"nobody listens on {open_dir}/k.admin"


@pytest.mark.parametrize("name", ["x" * 200, "a\0b"])
def test_not_a_socket_address(open_dir: Path, name: str) -> None:
    assert f"{open_dir}/" in no_hanger(open_dir / name)


@contextlib.contextmanager
def bad_hanger(path: Path, behave: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something that listens where the hanger should, for one connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(p.admin_path(path)))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(30)
        assert not thread.is_alive()


def answers(raw: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(raw)

    return behave


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "closed the connection"),
        (p.encode(p.StatusReply(STATUS))[:-1], "closed the connection"),
        (b"220 mail ESMTP\r\n", "not a line of JSON"),
        (b"x" * (5 << 20), "a line of more than 4194304 bytes"),
        (b'{"version": 2, "type": "status"}\n', "version 2, but this side speaks version 1"),
        (p.encode(p.Failure(p.FailureCode.VERSION, "version 1, but I speak 2")), "but I speak 2"),
        (p.encode(p.SessionsEnd(0)), "do not belong to the request"),
        (p.encode(p.Progress("a", "b")), "closed the connection"),
    ],
)
def test_answers_of_something_else(open_dir: Path, raw: bytes, reason: str) -> None:
    with bad_hanger(open_dir / "k", answers(raw)):
        assert reason in no_hanger(open_dir / "k")


@pytest.mark.parametrize(
    "raw",
    [
        p.encode(p.SessionsBatch(list(SESSIONS))) + p.encode(p.SessionsEnd(2)),
        p.encode(p.SessionsBatch(list(SESSIONS))) + p.encode(p.Progress("a", "b")),
        p.encode(p.SessionsBatch(list(SESSIONS))),
    ],
)
def test_a_list_that_is_not_whole_is_not_shown(open_dir: Path, raw: bytes) -> None:
    with bad_hanger(open_dir / "k", answers(raw)), pytest.raises(NoHangerError):
        ControlClient(open_dir / "k").sessions()


def test_a_user_who_is_not_allowed_learns_why(open_dir: Path) -> None:
    with bad_hanger(open_dir / "k", lambda connection: connection.close()):
        assert "--allow-user" in no_hanger(open_dir / "k")


def test_a_stopped_hanger_is_not_waited_for(open_dir: Path) -> None:
    done = threading.Event()
    with bad_hanger(open_dir / "k", lambda _: done.wait(30)):
        with pytest.raises(NoHangerError, match=r"silent for 0\.05 s; is the hanger stopped\?"):
            ControlClient(open_dir / "k", timeout=0.05).status()
        done.set()


def test_an_answer_that_trickles_in_is_not_waited_for(open_dir: Path) -> None:
    done = threading.Event()

    def trickle(connection: socket.socket) -> None:
        while not done.wait(0.005):
            connection.sendall(b" ")

    with bad_hanger(open_dir / "k", trickle):
        with pytest.raises(NoHangerError, match="silent"):
            ControlClient(open_dir / "k", timeout=0.05).status()
        done.set()
