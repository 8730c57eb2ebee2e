"""What the proof that the keeper was on is worth: whatever is missing in the logs is noticed."""

from __future__ import annotations

import json
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.suites.evidence import Evidence, collect

if TYPE_CHECKING:
    from pathlib import Path

ADOPTED = "2026-01-01 [7] LOG keeper: incarnation 1 adopted 0 clients and 0 servers in 9 us"


def event(name: str, level: str = "info", **facts: str) -> str:
    return json.dumps({**facts, "event": name, "level": level})


GOOD = [event("hanger-started"), ADOPTED, event("bouncer-active"), event("hanger-stopped")]


def write(folder: Path, bouncer: str, hanger: list[str] | None) -> None:
    folder.mkdir()
    (folder / "test.log").write_text(bouncer + "\n")
    if hanger is not None:
        (folder / "hanger.log").write_text("".join(line + "\n" for line in hanger))


def test_what_was_kept_is_counted(tmp_path: Path) -> None:
    unheld = event("session-unheld", reason="tls")
    write(tmp_path / "one", ADOPTED, [*GOOD[:-1], unheld, unheld, GOOD[-1]])
    # stopped and started again
    write(tmp_path / "two", f"{ADOPTED}\n{ADOPTED}", [*GOOD, *GOOD])
    assert collect(tmp_path) == Evidence(2, (), Counter(tls=2))


def test_a_socket_that_was_left_is_named(tmp_path: Path) -> None:
    write(tmp_path / "one", ADOPTED, GOOD)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "one" / "keeper"))
    assert collect(tmp_path).unkept == ("one: keeper was left",)


def test_kills_are_counted(tmp_path: Path) -> None:
    kill = event("bouncer-ended", "warning", how="killed by SIGKILL")
    crash = event("bouncer-ended", "warning", how="killed by SIGSEGV")
    lost = json.dumps({"event": "sessions-lost", "level": "error", "config": 2, "incarnation": 7})
    write(tmp_path / "one", ADOPTED, [*GOOD[:-1], kill, lost, kill, GOOD[-1]])
    assert collect(tmp_path, killed=True) == Evidence(1, (), Counter(), 2, Counter(config=2))
    assert len(collect(tmp_path).unkept) == 1
    write(tmp_path / "two", ADOPTED, [*GOOD[:-1], kill, crash, GOOD[-1]])
    (line,) = collect(tmp_path, killed=True).unkept
    assert line.startswith("two: ")
    assert "SIGSEGV" in line


def test_a_handoff_may_fail_whose_new_pgbouncer_was_killed(tmp_path: Path) -> None:
    reason = "the new pgbouncer did not adopt: it ended ({})"
    for name, how in (("one", "killed by SIGKILL"), ("two", "exit code 1")):
        failed = event("handoff-failed", "error", reason=reason.format(how))
        write(tmp_path / name, ADOPTED, [*GOOD[:-1], failed, GOOD[-1]])
    (line,) = collect(tmp_path, killed=True).unkept
    assert line.startswith("two: ")
    assert len(collect(tmp_path).unkept) == 2


def test_what_may_be_lost_over_a_unix_socket_counts_apart(tmp_path: Path) -> None:
    said = "2026-01-01 [7] WARNING keeper: a client session{} could not go on: data was in flight"
    log = "\n".join([ADOPTED, said.format(" over a Unix-domain socket"), said.format("")])
    lost = json.dumps({"event": "sessions-lost", "level": "error", "in-flight": 2})
    write(tmp_path / "one", log, [*GOOD[:-1], lost, GOOD[-1]])
    assert collect(tmp_path, killed=True).lost == {"unix": 1, "in-flight": 1}


@pytest.mark.parametrize(
    ("bouncer", "hanger", "complaint"),
    [
        (ADOPTED, None, "it has no hanger"),
        (ADOPTED, [ADOPTED], "it has no hanger"),
        ("LOG process up", GOOD, "0 adoptions, of which the hanger knows 1"),
        (ADOPTED, [GOOD[0], GOOD[-1]], "1 adoptions, of which the hanger knows 0"),
        (ADOPTED, GOOD[:-1], "its hanger did not end in order"),
        (ADOPTED, [*GOOD, *GOOD[:1]], "its hanger did not end in order"),
        (ADOPTED, [*GOOD[:-1], *GOOD], "1 adoptions, of which the hanger knows 2"),
        (ADOPTED, [event("protocol-error", "error"), *GOOD], "protocol-error"),
        (ADOPTED, [event("bouncer-ended", "warning", how="exit code 1"), *GOOD], "bouncer-ended"),
        (ADOPTED, [event("sessions-lost", "warning"), *GOOD], "sessions-lost"),
        (ADOPTED, ["Traceback (most recent call last):", *GOOD], "hanger.log: Traceback"),
        (f"{ADOPTED}\nFATAL @src/x.c", GOOD, "test.log: FATAL @src/x.c"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    tmp_path: Path, bouncer: str, hanger: list[str] | None, complaint: str
) -> None:
    write(tmp_path / "one", bouncer, hanger)
    evidence = collect(tmp_path)
    assert evidence.bouncers == 1
    (line,) = evidence.unkept
    assert line.startswith("one: ")
    assert complaint in line
