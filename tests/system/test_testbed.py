"""The test bed itself: what it starts goes away, and what it should notice it notices."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from testbed import Auth, Bouncer, Postgres, RawClient, RunDir, guard, wait_until
from testbed.account import Account, reachable
from testbed.errors import (
    BadLogError,
    LeftBehindError,
    ProcessFailedError,
    ServerError,
    WaitTimeoutError,
)
from testbed.logfile import LogFile
from testbed.pginstall import pg_tool, usable_installation
from testbed.process import Process

if TYPE_CHECKING:
    from tests.fix_bouncer import MakeBouncer

_ROOT = Path(__file__).parents[2]

# Starts PostgreSQL and PgBouncer, says so, and waits for whatever ends it.
_OWNER = """
import pathlib, sys, time
from testbed import Bouncer, Postgres, RunDir
with RunDir() as run_dir, Postgres(run_dir) as postgres:
    with Bouncer(run_dir, postgres, pathlib.Path(sys.argv[1])):
        print(run_dir.run_id, run_dir.path, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_owner_is_ended(
    vanilla_binary: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(vanilla_binary)],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        run_id, path = owner.stdout.readline().split()
        assert len(guard.marked(run_id)) >= 2
        assert Path(path).is_dir()

        owner.send_signal(number)
        owner.wait(20)

        wait_until(lambda: not guard.marked(run_id), what="every process has ended", seconds=20)
        wait_until(lambda: not Path(path).exists(), what="the directory is gone", seconds=20)


def test_a_process_left_running_is_reported() -> None:
    with pytest.raises(LeftBehindError, match="sleep 60"), RunDir() as run_dir:
        sleeper = Process(run_dir, "sleeper", ["sleep", "60"], output=run_dir.path / "log")
    assert sleeper.wait(5) == -signal.SIGQUIT


def test_unreachable_programs_are_copied() -> None:
    """As when the virtual environment lies under a folder that only root may enter."""
    account = Account("nobody", 65534, 65534)
    with RunDir() as run_dir:
        hidden = run_dir.path / "hidden"
        hidden.mkdir(mode=0o700)
        program = Path(shutil.copy("/bin/true", hidden))
        assert not reachable(program, account)
        run_dir.account = account
        copy = run_dir.usable(program)
        assert copy != program
        assert reachable(copy, account)
        assert subprocess.run([copy], check=False).returncode == 0


def test_postgres_runs_from_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeeper.trial.pginstall.reachable", lambda path, account: False)
    with RunDir() as run_dir, Postgres(run_dir) as postgres:
        assert run_dir.path in usable_installation(run_dir).bin_dir.parents
        assert postgres.value("SELECT 1") == 1


def test_users_log_in_as_they_were_made(postgres: Postgres) -> None:
    for auth in Auth:
        postgres.add_user(f"bed_{auth.name.lower()}", "secret", auth)
        user = f"bed_{auth.name.lower()}"
        assert postgres.value("SELECT session_user", user=user, password="secret") == user
    assert postgres.value("SELECT session_user", user="bed_trust", password="wrong") == "bed_trust"
    for user in ("bed_password", "bed_md5", "bed_scram"):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            postgres.sql("SELECT 1", user=user, password="wrong")
    assert postgres.verifier("bed_md5").startswith("md5")
    assert postgres.verifier("bed_scram").startswith("SCRAM-SHA-256$")


def test_the_raw_client_knows_passwords(postgres: Postgres) -> None:
    postgres.add_user("raw_md5", "secret", Auth.MD5)
    postgres.add_user("raw_password", "secret", Auth.PASSWORD)
    for user in ("raw_md5", "raw_password"):
        with RawClient(postgres.host, postgres.port) as client:
            client.login(user=user, database="postgres", secret="secret")
            assert client.query("SELECT 1, NULL, 'x'") == [("1", None, "x")]
            assert client.parameters["client_encoding"] == "UTF8"
            assert client.transaction_status == "I"
        with RawClient(postgres.host, postgres.port) as client:
            with pytest.raises(ServerError) as refused:
                client.login(user=user, database="postgres", secret="wrong")
            assert refused.value.sqlstate == "28P01"


def test_the_raw_client_cancels(postgres: Postgres) -> None:
    with RawClient(postgres.host, postgres.port).login(database="postgres") as client:
        assert client.backend_pid == int(client.query("SELECT pg_backend_pid()")[0][0] or 0)
        statement = "SELECT pg_sleep(30) /* raw */"
        client.send(b"Q" + (len(statement) + 5).to_bytes(4, "big") + statement.encode() + b"\0")
        wait_until(lambda: postgres.runs(statement), what="it runs")
        client.cancel()
        codes = [m.error_fields()["C"] for m in client.until_ready() if m.kind == "E"]
        assert codes == ["57014"]


@pytest.mark.parametrize(
    "line",
    [
        "2026-01-01 FATAL @src/objects.c:220 in function x(): Assert(client->link) failed",
        "pgbouncer: src/a.c:1: f: Assertion `x' failed.",
        "FATAL keeper: stale incarnation",
        "==1==ERROR: AddressSanitizer: heap-use-after-free",
        "src/a.c:1:2: runtime error: signed integer overflow",
        "Traceback (most recent call last):",
    ],
)
def test_a_log_that_shows_a_broken_program_fails(tmp_path: Path, line: str) -> None:
    log = LogFile(tmp_path / "log")
    log.check()
    log.path.write_text("LOG all is well\n")
    log.check()
    log.path.write_text(f"LOG all is well\n{line}\n")
    with pytest.raises(BadLogError):
        log.check()


def test_log_contains(vanilla_bouncer: Bouncer) -> None:
    with vanilla_bouncer.log_contains("login attempt", times=1):
        vanilla_bouncer.sql("SELECT 1")
    with pytest.raises(AssertionError), vanilla_bouncer.log_contains("login attempt", times=0):
        vanilla_bouncer.sql("SELECT 1")
    with pytest.raises(WaitTimeoutError), vanilla_bouncer.log.contains("never", seconds=0.05):
        pass


def test_a_client_that_stays_is_a_leak(make_vanilla_bouncer: MakeBouncer) -> None:
    bouncer = make_vanilla_bouncer()
    with (
        contextlib.closing(bouncer.connect()),
        pytest.raises(WaitTimeoutError, match="closed the sockets"),
    ):
        bouncer.check_sockets(seconds=0.1)
    bouncer.check_sockets()


def test_a_pgbouncer_that_does_not_start_says_why(
    run_dir: RunDir, postgres: Postgres, vanilla_binary: Path
) -> None:
    bouncer = Bouncer(
        run_dir, postgres, vanilla_binary, name="broken", settings={"pool_mode": "nonsense"}
    )
    with pytest.raises(ProcessFailedError, match="nonsense"):
        bouncer.start()


def test_the_servers_do_not_run_as_root(postgres: Postgres, vanilla_bouncer: Bouncer) -> None:
    for pid in (postgres.pid, vanilla_bouncer.pid):
        assert Path(f"/proc/{pid}").stat().st_uid != 0


def test_client_programs_are_found() -> None:
    for name in ("psql", "pgbench"):
        tool = pg_tool(name)
        assert tool is not None
        assert os.access(tool, os.X_OK)
    assert pg_tool("no-such-tool") is None
