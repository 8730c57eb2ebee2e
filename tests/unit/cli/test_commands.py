"""The commands that ask a hanger: what they print, where, and with which exit status."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from pgkeeper.cli import COMMANDS, main
from pgkeeper.control.client import ControlClient
from pgkeeper.control.report import BouncerStatus
from pgkeeper.errors import PgkeeperError
from pgkeeper.states import ServiceState
from pgkeeper.version import version
from tests.fix_admin import SESSIONS, STATUS, RunningAdmin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from click.testing import Result

ASKING = ("status", "sessions", "handoff", "release")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PGKEEPER_"):
            monkeypatch.delenv(name)


def pgkeeper(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(
        main, [str(argument) for argument in arguments], prog_name="pgkeeper"
    )
    if result.exit_code not in (0, 64):
        lines = result.stderr.splitlines()
        assert [line for line in lines if line.startswith("pgkeeper: ")][-1:] == lines[-1:]
    return result


def test_status(admin: RunningAdmin) -> None:
    result = pgkeeper("status", "--socket", admin.socket)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("hanger     pid 4711")
    assert "active, pid 4712, incarnation 3, standby pid 4720" in result.stdout


def test_status_as_json_is_the_outside_contract(admin: RunningAdmin) -> None:
    admin.keeper.warning_lines = ["server_tls_sslmode = prefer: ..."]
    result = pgkeeper("status", "--json", "--socket", admin.socket)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "hanger": {"pid": 4711, "version": "0.1.0", "uptime_s": 11530.25},
        "pgbouncer": {"state": "active", "pid": 4712, "incarnation": 3, "standby_pid": 4720},
        "sessions": {"clients_held": 12, "servers_held": 1, "unheld": {"tls": 2, "ledger-full": 0}},
        "adoptions": {"count": 2, "last_ms": 3.4375, "sessions_lost": 1},
        "crashes": {
            "hangs": 1,
            "quarantine": {"ended": {"crash": 2}, "logins_refused": 3, "addresses": 1},
        },
    }
    assert result.stderr == "WARNING: server_tls_sslmode = prefer: ...\n"


def test_status_shows_warnings(admin: RunningAdmin) -> None:
    admin.keeper.warning_lines = ["server_tls_sslmode = prefer: ..."]
    result = pgkeeper("status", "--socket", admin.socket)
    assert result.stdout.endswith("\nWARNING: server_tls_sslmode = prefer: ...\n")


@pytest.mark.parametrize("state", ServiceState)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_status_is_0_only_when_active(
    admin: RunningAdmin, state: ServiceState, options: Sequence[str]
) -> None:
    bouncer = BouncerStatus(state, 1, 1, None)
    admin.keeper.status_value = replace(STATUS, pgbouncer=bouncer)
    result = CliRunner().invoke(main, ["status", "--socket", str(admin.socket), *options])
    assert result.exit_code == (0 if state is ServiceState.ACTIVE else 1)
    assert state.value in result.stdout


def test_status_that_failed_does_not_say_not_active(admin: RunningAdmin) -> None:
    admin.keeper.error = PgkeeperError("no idea")
    result = pgkeeper("status", "--socket", admin.socket)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "pgkeeper: no hanger answers: no idea\n"


def test_sessions(admin: RunningAdmin) -> None:
    result = pgkeeper("sessions", "--socket", admin.socket)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "TOKEN",
        "c7",
        "c1234",
        "s2",
    ]


def test_sessions_as_json(admin: RunningAdmin) -> None:
    result = pgkeeper("sessions", "--json", "--socket", admin.socket)
    assert result.exit_code == 0
    sessions = json.loads(result.stdout)
    assert [(session["token"], session["reason"]) for session in sessions] == [
        ("c7", None),
        ("c1234", "tls"),
        ("s2", None),
    ]


def test_handoff(admin: RunningAdmin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").symlink_to("/bin/true")
    result = pgkeeper("handoff", "--pgbouncer", "new", "--socket", admin.socket)
    assert result.exit_code == 0
    assert result.stderr == "start: starting the new pgbouncer\nactivate: activating it\n"
    assert result.stdout == (
        "pgbouncer 4720 (incarnation 4) serves 12 clients and 1 server"
        " after a pause of 2.2 ms; lost: 1 in-flight\n"
    )
    # absolute, because the hanger is elsewhere, but the link itself: it will point elsewhere later
    assert admin.keeper.handoffs == [(tmp_path / "new", None)]


def test_handoff_as_json(admin: RunningAdmin) -> None:
    result = pgkeeper("handoff", "--json", "--socket", admin.socket)
    assert json.loads(result.stdout) == {
        "pid": 4720,
        "incarnation": 4,
        "clients": 12,
        "servers": 1,
        "lost": {"in-flight": 1},
        "pause_ms": 2.25,
    }


def test_handoff_that_failed(admin: RunningAdmin) -> None:
    admin.keeper.error = PgkeeperError("the new pgbouncer did not start; back on the old one")
    result = pgkeeper("handoff", "--socket", admin.socket)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        "pgkeeper: the new pgbouncer did not start; back on the old one"
    )


def test_handoff_finds_the_hanger_by_its_new_ini(admin: RunningAdmin, open_dir: Path) -> None:
    ini = open_dir / "new.ini"
    ini.write_text(f"[pgbouncer]\nkeeper_socket = {admin.socket}\n")
    assert pgkeeper("handoff", "--ini", ini).exit_code == 0
    assert admin.keeper.handoffs == [(None, ini)]


def test_the_ini_of_the_environment_is_no_new_ini(
    admin: RunningAdmin, open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ini = open_dir / "pgbouncer.ini"
    ini.write_text(f"[pgbouncer]\nkeeper_socket = {admin.socket}\n")
    monkeypatch.setenv("PGKEEPER_INI", str(ini))
    assert pgkeeper("handoff").exit_code == 0
    assert admin.keeper.handoffs == [(None, None)]


def test_release(admin: RunningAdmin) -> None:
    result = pgkeeper("release", "--socket", admin.socket)
    assert (result.exit_code, result.stdout) == (0, "ended 12 clients and 1 server\n")
    result = pgkeeper("release", "--json", "--socket", admin.socket)
    assert json.loads(result.stdout) == {"clients": 12, "servers": 1}
    assert admin.keeper.releases == 2


# --- finding the hanger ---


@pytest.mark.parametrize("command", ASKING)
def test_the_socket_from_the_environment(
    admin: RunningAdmin, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGKEEPER_SOCKET", str(admin.socket))
    assert pgkeeper(command).exit_code == 0


@pytest.mark.parametrize("command", ["status", "sessions", "release"])
def test_the_socket_from_the_ini(
    admin: RunningAdmin, command: str, open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ini = open_dir / "pgbouncer.ini"
    ini.write_text(f"[pgbouncer]\nkeeper_socket = {admin.socket}\n")
    assert pgkeeper(command, "--ini", ini).exit_code == 0
    monkeypatch.setenv("PGKEEPER_INI", str(ini))
    assert pgkeeper(command).exit_code == 0
    # --socket has the last word
    assert pgkeeper(command, "--socket", open_dir / "none").exit_code == 2


def test_top_needs_a_terminal(admin: RunningAdmin) -> None:
    result = pgkeeper("top", "--socket", admin.socket)
    text = "pgkeeper: top needs a terminal; `pgkeeper sessions --json` needs none\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", text)
    assert admin.keeper.queries == []


def test_top_says_what_it_is_drawn_with(
    admin: RunningAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textual.app", None)
    monkeypatch.delitem(sys.modules, "pgkeeper.top.app", raising=False)
    monkeypatch.setattr("pgkeeper.cli.top.watched", lambda: True)
    result = pgkeeper("top", "--socket", admin.socket)
    text = "pgkeeper: top needs the Python package textual, 3.0 or later: pip install textual\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", text)


@pytest.mark.parametrize("command", ASKING)
def test_no_hanger_answers(open_dir: Path, command: str) -> None:
    result = pgkeeper(command, "--socket", open_dir / "none")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"pgkeeper: no hanger answers: {open_dir}/none.admin does not exist\n"


@pytest.mark.parametrize("command", ASKING)
def test_nothing_says_where_the_hanger_is(command: str) -> None:
    result = pgkeeper(command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "give --socket (or PGKEEPER_SOCKET), or --ini" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read it: No such file or directory"),
        ("[pgbouncer]\n", "sets no keeper_socket; give --socket"),
        ("bad\n", ':1: syntax error: expected "key = value" or "[section]"'),
    ],
)
def test_the_ini_does_not_say_where_the_hanger_is(
    open_dir: Path, content: str | None, message: str
) -> None:
    ini = open_dir / "pgbouncer.ini"
    if content is not None:
        ini.write_text(content)
    result = pgkeeper("status", "--ini", ini)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


# --- all commands ---


@pytest.mark.parametrize("arguments", [(), ("frob",), ("--frob",), ("status", "--frob"), ("run",)])
def test_wrong_usage_is_not_taken_for_no_answer(arguments: Sequence[str]) -> None:
    result = pgkeeper(*arguments)
    assert (result.exit_code, result.stdout) == (64, "")
    assert "Usage: pgkeeper" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = pgkeeper(command, "--help")
    assert result.exit_code == 0
    assert f"  pgkeeper {command}" in result.stdout
    assert pgkeeper(command, "-h").stdout == result.stdout


def test_version() -> None:
    assert pgkeeper("--version").stdout == f"pgkeeper {version()}\n"


def test_a_defect_is_one_line_with_a_hint(monkeypatch: pytest.MonkeyPatch, open_dir: Path) -> None:
    def broken(_: ControlClient) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr(ControlClient, "status", broken)
    result = pgkeeper("status", "--socket", open_dir / "k")
    assert result.exit_code == 70
    assert result.stderr == (
        "pgkeeper: unexpected KeyError: 'two\\nlines' (pgkeeper --debug status ... shows where)\n"
    )
    result = CliRunner().invoke(main, ["--debug", "status", "--socket", str(open_dir / "k")])
    assert isinstance(result.exception, KeyError)


def test_debug_shows_where_errors_come_from(open_dir: Path) -> None:
    result = CliRunner().invoke(main, ["--debug", "status", "--socket", str(open_dir / "k")])
    assert isinstance(result.exception, PgkeeperError)


# --- as a process ---

COMMAND = (sys.executable, "-c", "from pgkeeper.cli import main; main(prog_name='pgkeeper')")


def test_ctrl_c_during_a_handoff(admin: RunningAdmin) -> None:
    admin.keeper.go_on.clear()
    process = subprocess.Popen(
        [*COMMAND, "handoff", "--socket", str(admin.socket)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert admin.keeper.waiting.wait(60)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-2:] == [
        "pgkeeper: the handoff goes on without us; see pgkeeper status",
        "pgkeeper: interrupted",
    ]
    assert "Traceback" not in stderr


def test_progress_on_a_terminal_is_one_line_that_is_erased(admin: RunningAdmin) -> None:
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "handoff", "--socket", str(admin.socket)], stdout=subprocess.PIPE, stderr=end
    )
    os.close(end)
    shown = b""
    while chunk := _read(terminal):
        shown += chunk
    os.close(terminal)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert stdout.startswith(b"pgbouncer 4720")
    erase = b"\r\x1b[K"
    assert shown == erase + erase.join(
        [b"starting the new pgbouncer ...", b"activating it ...", b""]
    )


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO: the other end of the terminal is closed
        return b""


def test_a_reader_that_leaves_is_no_defect(admin: RunningAdmin) -> None:
    admin.keeper.session_list = SESSIONS * 2000
    process = subprocess.Popen(
        [*COMMAND, "sessions", "--socket", str(admin.socket)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    process.wait(60)
