"""Reports as text: what comes from elsewhere must not confuse a terminal, and words agree."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pgkeeper.cli import render
from pgkeeper.control.report import HandoffReport, Session
from tests.fix_admin import SESSIONS, STATUS


def test_no_sessions() -> None:
    assert render.sessions_text([]) == "no sessions"


def test_columns_are_aligned_whatever_their_content() -> None:
    long = replace(SESSIONS[0], user="u" * 63, database="d" * 63, token=10**15)
    table = render.sessions_text([*SESSIONS, long]).splitlines()
    for heading in ("KIND", "USER@DATABASE", "STATE", "HELD", "DOING", "LINKED"):
        column = table[0].index(heading)
        assert all(line[column - 2 : column] == "  " for line in table)
        assert all(line[column] != " " for line in table)


def test_names_cannot_send_commands_to_the_terminal() -> None:
    evil = Session(1, "client", "\x1b[2J\nroot", "d\udcffb\u202e", "idle", False, "\r", "\a", None)
    text = render.sessions_text([evil])
    assert len(text.splitlines()) == 2
    assert all(line.isprintable() for line in text.splitlines())
    assert r"\x1b[2J\nroot@d\udcffb\u202e" in text
    assert render.status_text(STATUS, ["\x1b[2J"]).splitlines()[-1] == r"WARNING: \x1b[2J"


def test_letters_of_other_alphabets_stay() -> None:
    named = replace(SESSIONS[0], user="jürgen", database="магазин")
    assert "jürgen@магазин" in render.sessions_text([named])


def test_json_of_a_session_names_tokens() -> None:
    assert render.session_plain(SESSIONS[0]) == {
        "token": "c7",
        "kind": "client",
        "user": "joe",
        "database": "shop",
        "state": "active",
        "held": True,
        "reason": None,
        "doing": "in transaction",
        "linked": "s2",
    }
    assert render.session_plain(SESSIONS[1])["linked"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86399, "23 h 59 min"),
        (86400 * 3 + 7200, "3 d 2 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_counts_are_sorted_and_leave_out_zeros() -> None:
    assert render.counts({"b": 1, "a": 1, "tls": 7, "none": 0}) == "7 tls, 1 a, 1 b"
    assert render.counts({}) == ""


def test_a_handoff_without_losses() -> None:
    report = HandoffReport(10, 2, 1, 2, {}, 3.14159)
    assert render.handoff_text(report) == (
        "pgbouncer 10 (incarnation 2) serves 1 client and 2 servers after a pause of 3.1 ms;"
        " lost: none"
    )
