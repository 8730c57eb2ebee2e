"""Everything that can be wrong around a hanger: one clear line, and nobody else notices."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgkeeper.control.protocol import admin_path
from pgkeeper.hanger import datagram
from pgkeeper.hanger.formats import OURS, Formats
from protocol.control import Hello, Refuse, Role, decode, encode
from protocol.ledger import FORMAT_OLDEST, FORMAT_VERSION, SIGNATURE
from testbed import Keeper, Pooler, wait_until
from testbed.bystander import Bystander
from testbed.process import descriptors, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Postgres, RunDir

NOBODY = 65534
STRANGER = 54321

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def live(keeper: Keeper) -> Iterator[Keeper]:
    """A hanger with sessions that must not notice anything, then or over a kill afterwards."""
    with Bystander(keeper):
        yield keeper


@pytest.fixture
def other(run_dir: RunDir, postgres: Postgres, live: Keeper) -> Pooler:
    """The files of a second service beside `live`, which is not started yet."""
    files = Pooler(run_dir, postgres, name=f"{live.name}-other")
    files.settings["keeper_socket"] = str(files.folder / "keeper.sock")
    files.settings["server_tls_sslmode"] = "disable"
    if run_dir.account is not None:
        files.settings["user"] = run_dir.account.name
    files.write_files()
    return files


def refused_to_start(
    files: Pooler, binary: Path, *options: str | Path, before: str = "", seconds: float = 20.0
) -> str:
    """Run the hanger, which must end with 1; the one line that says why.

    `before` are Python statements that run in its process first.
    """
    # What an unprivileged process could not load from where it cannot look is loaded before.
    program = (
        "import os, resource, sys\n"
        "import pgkeeper.cli.run, pgkeeper.daemon, pgkeeper.bouncer.build, encodings.idna\n"
        f"{before}\n"
        "from pgkeeper.cli import main\n"
        "main()\n"
    )
    words = ["run", "--ini", files.ini_path, "--pgbouncer", files.run_dir.usable(binary), *options]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment(f"{files.run_dir.run_id}/{files.name}"),
        cwd=files.run_dir.path,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    *logged, last = done.stderr.splitlines()
    assert last.startswith("pgkeeper: ")
    assert [line for line in logged if not line[:4].isdigit()] == [], "more than log lines"
    assert files.run_dir.processes(files.name) == []
    assert [entry.name for entry in files.folder.iterdir() if entry.is_socket()] == []
    return last.removeprefix("pgkeeper: ")


AS_NOBODY = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"


# its configuration


def test_no_ini(other: Pooler, patched_binary: Path) -> None:
    other.ini_path.unlink()
    line = refused_to_start(other, patched_binary)
    assert line == f"{other.ini_path}: cannot read it: No such file or directory"


@needs_root
def test_an_ini_that_may_not_be_read(other: Pooler, patched_binary: Path) -> None:
    os.chown(other.ini_path, 0, 0)
    other.ini_path.chmod(0o600)
    line = refused_to_start(other, patched_binary, before=AS_NOBODY)
    assert line == f"{other.ini_path}: cannot read it: Permission denied"


def test_an_ini_that_is_none(other: Pooler, patched_binary: Path) -> None:
    other.ini_path.write_bytes(b"\x7fELF\x02\x01\x01\0\xff\xfe")
    assert str(other.ini_path) in refused_to_start(other, patched_binary)


def test_an_ini_without_keeper_socket(other: Pooler, patched_binary: Path) -> None:
    del other.settings["keeper_socket"]
    other.write_files()
    line = refused_to_start(other, patched_binary)
    assert line == f"{other.ini_path}: keeper_socket is not set, and there is no --socket"


@needs_root
def test_root_without_a_user(other: Pooler, patched_binary: Path) -> None:
    del other.settings["user"]
    other.write_files()
    assert "set user in [pgbouncer]" in refused_to_start(other, patched_binary)


def test_a_socket_name_that_is_too_long(other: Pooler, patched_binary: Path) -> None:
    line = refused_to_start(other, patched_binary, "--socket", f"/{'x' * 107}")
    assert line.endswith("the name is longer than 107 bytes")


@needs_root
def test_too_few_descriptors(other: Pooler, patched_binary: Path) -> None:
    other.settings["max_client_conn"] = 1000
    other.write_files()
    give_way = f"resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); {AS_NOBODY}"
    line = refused_to_start(other, patched_binary, before=give_way)
    assert line == (
        "at most 256 descriptors (RLIMIT_NOFILE) are too few for max_client_conn = 1000:"
        " raise the limit to 2192"
    )


# its pgbouncer


def test_a_pgbouncer_without_the_patch(other: Pooler, vanilla_binary: Path) -> None:
    line = refused_to_start(other, vanilla_binary)
    assert line == (
        f"{other.run_dir.usable(vanilla_binary)} has no keeper support:"
        " build it with `pgkeeper build`"
    )


def test_a_program_that_is_no_pgbouncer(other: Pooler) -> None:
    assert "has no keeper support" in refused_to_start(other, Path("/bin/true"))


# its sockets


def test_the_socket_of_a_living_hanger(live: Keeper, other: Pooler, patched_binary: Path) -> None:
    pid, before = live.hanger.pid, live.socket_path.stat().st_ino
    line = refused_to_start(other, patched_binary, "--socket", live.socket_path)
    assert line.startswith(f"cannot listen on {live.socket_path}: another hanger")
    assert live.socket_path.stat().st_ino == before
    assert live.status().hanger.pid == pid


def test_the_port_of_a_living_hanger(live: Keeper, other: Pooler, patched_binary: Path) -> None:
    other.settings["listen_port"] = live.port
    other.write_files()
    line = refused_to_start(other, patched_binary)
    assert line == (
        f"cannot listen on 127.0.0.1:{live.port}: another process is listening there (port in use)"
    )


def test_something_else_at_the_sockets_place(other: Pooler, patched_binary: Path) -> None:
    path = other.folder / "keeper.sock"
    path.write_text("precious")
    assert str(path) in refused_to_start(other, patched_binary)
    assert path.read_text() == "precious"


def test_a_stale_socket_file_is_in_nobodys_way(
    run_dir: RunDir, postgres: Postgres, live: Keeper, patched_binary: Path
) -> None:
    keeper = Keeper(run_dir, postgres, patched_binary, name=f"{live.name}-stale")
    for path in (keeper.socket_path, admin_path(keeper.socket_path)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
            stale.bind(str(path))
    with keeper:
        assert keeper.sql("SELECT 1") == [(1,)]
    keeper.print_logs()


# who knocks at them


def hello(**changes: Any) -> Hello:
    """What a pgbouncer of our own format says."""
    usual = Hello(
        format_version=FORMAT_VERSION,
        format_oldest=FORMAT_OLDEST,
        signature=SIGNATURE,
        slots=512,
        iobufs=256,
        units=4096,
        pkt_buf=4096,
        max_client_conn=100,
        role=Role.SUCCESSOR,
        pid=os.getpid(),
        incarnation=0,
        last_token=0,
        sockets=0,
        pgbouncer_version="1.24.1",
    )
    return replace(usual, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": FORMAT_VERSION + 1, "format_oldest": FORMAT_VERSION + 1},
        {"format_version": FORMAT_OLDEST - 1, "format_oldest": FORMAT_OLDEST - 1},
        {"signature": SIGNATURE ^ 1},
    ],
    ids=["newer", "older", "signature"],
)
def test_a_ledger_of_another_format(live: Keeper, changes: dict[str, int]) -> None:
    """Both sides are named, the ledger stays, and the active pgbouncer with it."""
    pid = live.bouncer_pid
    with knock(live.socket_path) as connection:
        datagram.send(connection, encode(hello(**changes)))
        wait_readable(connection)
        packet = datagram.receive(connection)
        answer = decode(packet.data)
        assert isinstance(answer, Refuse)
        assert answer.text.endswith(f"this pgkeeper {OURS}")
        assert f"pgbouncer knows {Formats.of(hello(**changes))}" in answer.text
        assert f"{SIGNATURE:016x}" in answer.text
        assert f"{changes.get('signature', SIGNATURE):016x}" in answer.text
        assert "\n" not in answer.text
        assert not packet.fds
        assert connection.recv(1) == b""
    assert live.bouncer_pid == pid


def test_nonsense_on_the_keeper_socket(live: Keeper) -> None:
    """From somebody who may connect; with descriptors in it, which must not be kept."""
    before = len(descriptors(live.hanger.pid))
    nonsense = [b"\0", b"GET / HTTP/1.0\r\n\r\n", random.Random(1).randbytes(4000), b"x" * 5000]
    for message in (*nonsense, encode(Refuse("the wrong way"))):
        with knock(live.socket_path) as connection:
            socket.send_fds(connection, [message], [0, 1, 2])
            wait_readable(connection)
            assert connection.recv(4096) == b""
    with knock(live.socket_path):
        pass
    wait_until(lambda: len(descriptors(live.hanger.pid)) <= before, what="all closed")


def test_one_who_says_hello_and_leaves(live: Keeper) -> None:
    """As a standby that dies before anything was asked of it."""
    pid = live.bouncer_pid
    with knock(live.socket_path) as connection:
        datagram.send(connection, encode(hello()))
        wait_readable(connection)
        for fd in datagram.receive(connection).fds:
            os.close(fd)
    assert live.bouncer_pid == pid


def test_nonsense_on_the_admin_socket(live: Keeper) -> None:
    lines = [b"\n", b"{}\n", b"no json\n", b"\xff\xfe\n", b'{"request": "fly"}\n', b"x" * (1 << 21)]
    for line in lines:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(admin_path(live.socket_path)))
            # It may hang up before it has all of an endless line.
            with contextlib.suppress(ConnectionError):
                connection.sendall(line)
                assert b"Traceback" not in connection.recv(65536)
    assert live.run("status").returncode == 0


@needs_root
@pytest.mark.parametrize("admin", [False, True], ids=["keeper-socket", "admin-socket"])
def test_a_foreign_uid(live: Keeper, admin: bool) -> None:
    """The file's mode keeps it out; should somebody open the file, the kernel's word does."""
    path = admin_path(live.socket_path) if admin else live.socket_path
    event = "admin-refused" if admin else "peer-refused"
    assert knock_as(STRANGER, path) == "PermissionError"
    path.chmod(0o666)
    with live.output.contains(rf"{event}.*uid={STRANGER}\b"):
        assert knock_as(STRANGER, path) == "closed"
    # The control: whom it knows it lets in.
    assert knock_as(0, path) == "open"


def test_a_foreign_uid_at_the_command_line(live: Keeper) -> None:
    """`pgkeeper status` of somebody who may not: no hanger answers, in one line."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    program = (
        "import os, pgkeeper.cli.status, pgkeeper.control.client\n"
        f"os.setgroups([]); os.setgid({STRANGER}); os.setuid({STRANGER})\n"
        "from pgkeeper.cli import main\n"
        "main()\n"
    )
    words = ["status", "--socket", str(live.socket_path)]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "permission denied" in line


@contextlib.contextmanager
def knock(path: Path) -> Iterator[socket.socket]:
    """A connection to the keeper socket, as ourselves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        yield connection


def wait_readable(connection: socket.socket) -> None:
    """Wait until there is something, or the end."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    assert poll.poll(10_000), "no answer"


# Stdlib alone, because another user cannot read ours: what a connection to a socket comes to.
_KNOCK = """
import os, select, socket, sys
uid, path, kind = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if uid:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
with socket.socket(socket.AF_UNIX, kind) as connection:
    try:
        connection.connect(path)
    except OSError as error:
        print(type(error).__name__)
        sys.exit()
    # Who is let in hears nothing before he speaks.
    readable, _, _ = select.select([connection], [], [], 1.0)
    try:
        print("closed" if readable and not connection.recv(1) else "open")
    except ConnectionResetError:
        print("closed")
"""


def knock_as(uid: int, path: Path) -> str:
    """What another user gets at a socket: "open", "closed", or the error's name."""
    kind = socket.SOCK_STREAM if path.name.endswith(".admin") else socket.SOCK_SEQPACKET
    done = subprocess.run(
        [sys.executable, "-I", "-c", _KNOCK, str(uid), str(path), str(int(kind))],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()
