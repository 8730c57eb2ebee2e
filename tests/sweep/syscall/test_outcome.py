"""The comparison itself: nothing that matters may pass it."""

from __future__ import annotations

import dataclasses

import pytest

from tests.sweep.syscall.outcome import (
    CHECK_QUERY,
    CONNECT_QUERY,
    Outcome,
    alarms,
    differences,
    server_log,
)

REFERENCE = Outcome(
    {"a": b"one two", "b": b""},
    ("x", "y"),
    (("LOG:  statement: SELECT 1",), ("LOG:  statement: SELECT 2",)),
)


def test_the_same_is_no_difference() -> None:
    assert differences(REFERENCE, dataclasses.replace(REFERENCE)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transcripts": {"a": b"one tvo", "b": b""}}, "difference at 5"),
        ({"transcripts": {"a": b"one two!", "b": b""}}, "8 bytes instead of 7"),
        ({"transcripts": {"a": b"one", "b": b""}}, "3 bytes instead of 7"),
        ({"transcripts": {"b": b""}}, "0 bytes instead of 7"),
        ({"acts": ("x",)}, "missing {'y': 1}"),
        ({"acts": ("x", "y", "y")}, "too much {'y': 1}"),
        ({"acts": ("y", "x")}, "another order"),
        ({"logged": (("LOG:  statement: SELECT 2",),)}, "missing {'LOG:  statement: SELECT 1': 1}"),
        (
            {"logged": (("LOG:  statement: SELECT 2", "LOG:  statement: SELECT 1"),)},
            "sessions of the server",
        ),
        ({"wrong": ("2 incarnations followed",)}, "2 incarnations followed"),
    ],
)
def test_every_change_is_a_difference(change: dict[str, object], said: str) -> None:
    (text,) = differences(REFERENCE, dataclasses.replace(REFERENCE, **change))  # type: ignore[arg-type]
    assert said in text


def test_the_servers_log_leaves_out_whom_we_do_not_ask_about() -> None:
    lines = [
        "2026-01-01 00:00:00.000 UTC [7] sweeper@postgres LOG:  statement: SELECT 2",
        "2026-01-01 00:00:00.000 UTC [6] sweeper@postgres LOG:  statement: SELECT '127.0.0.1:9'",
        "2026-01-01 00:00:00.000 UTC [7] sweeper@postgres LOG:  execute PGBOUNCER_12: SELECT 1",
        "2026-01-01 00:00:00.000 UTC [8] postgres@postgres LOG:  statement: TRUNCATE acts",
        "2026-01-01 00:00:00.000 UTC [9] sweeper@postgres FATAL:  a login that came to nothing",
        f"2026-01-01 00:00:00.000 UTC [5] sweeper@postgres LOG:  statement: {CONNECT_QUERY}",
        "2026-01-01 00:00:00.000 UTC [7] sweeper@postgres LOG:  could not send data to client",
    ]
    assert server_log("\n".join(lines)) == (
        ("LOG:  statement: SELECT '127.0.0.1:n'",),
        ("LOG:  statement: SELECT 2", "LOG:  execute PGBOUNCER_n: SELECT 1"),
    )


def test_checks_of_a_server_that_nobody_used_are_left_out() -> None:
    times = "2026-01-01 00:00:00.000 UTC [7] sweeper@postgres"
    check, use = f"LOG:  statement: {CHECK_QUERY}", "LOG:  statement: SELECT 2"
    lines = [f"{times} {line}" for line in (check, use, check, check, use, use, check)]
    assert server_log("\n".join(lines)) == ((use, check, use, use, check),)


def test_a_lost_session_is_an_alarm() -> None:
    line = "WARNING keeper: a client session could not go on: pgbouncer was restarted"
    assert alarms(f"LOG process up\n{line}\n") == [line]
