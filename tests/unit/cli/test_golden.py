"""Texts that people read and scripts may search: compared with files, letter by letter.

PGKEEPER_UPDATE_GOLDEN=1 writes the files anew; look at the difference before you keep it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgkeeper.cli import main, render
from pgkeeper.config import BouncerIni, Database
from pgkeeper.control.report import AdoptionStatus, BouncerStatus, CrashStatus, SessionStatus
from pgkeeper.states import ServiceState
from tests.fix_admin import SESSIONS, STATUS

GOLDEN = Path(__file__).parent / "golden"

TLS = BouncerIni(Path("/etc/pgbouncer.ini"), databases=(Database("a", ("db.example",)),)).warnings()

DOWN = replace(
    STATUS,
    pgbouncer=BouncerStatus(ServiceState.CRASH_LOOP, None, 0, None),
    sessions=SessionStatus(0, 0),
    adoptions=AdoptionStatus(0, None, 0),
    crashes=CrashStatus(),
)


def compare(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("PGKEEPER_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize(
    "command", ["", "run", "status", "sessions", "handoff", "release", "trial"]
)
def test_help(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = [command, "--help"] if command else ["--help"]
    result = CliRunner().invoke(main, arguments, prog_name="pgkeeper")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    compare(f"help-{command or 'pgkeeper'}", result.stdout)


def test_status() -> None:
    compare("status", render.status_text(STATUS, ()) + "\n")


def test_status_with_the_warning_about_tls() -> None:
    compare("status-tls", render.status_text(STATUS, [TLS[0].text]) + "\n")


def test_status_of_a_crash_loop() -> None:
    compare("status-crash-loop", render.status_text(DOWN, ()) + "\n")


def test_sessions() -> None:
    compare("sessions", render.sessions_text(SESSIONS) + "\n")
