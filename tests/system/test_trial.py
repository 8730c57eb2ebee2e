"""`pgkeeper trial` on real parts: what survives, and that what does not is noticed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed import RunDir, wait_until
from testbed.process import environment
from testbed.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed import Bouncer, Keeper, Postgres

COMMAND = Path(sys.executable).with_name("pgkeeper")
ALL = ("idle", "busy", "bulk", "login-storm")
# The trial's table while it runs.
LISTING = "SELECT relname FROM pg_class WHERE relname LIKE 'pgkeeper%'"
# Row 11 of a long answer has many of them in a row.
MARK = b"lllllllllllllllllllll"


def trial(run_dir: RunDir, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "trial", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(f"{run_dir.run_id}/trial"),
    )


def found(run_dir: RunDir, *words: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Exit status and results by mode and side."""
    done = trial(run_dir, "--json", *words)
    print(done.stderr)
    report = json.loads(done.stdout)
    return done.returncode, {(one["mode"], one["side"]): one for one in report["results"]}


def test_every_patched_session_survives_and_no_other(run_dir: RunDir, tmp_path: Path) -> None:
    picture = tmp_path / "trial.png"
    code, results = found(run_dir, "--kills", "2", "--sessions", "4", "--png", str(picture))
    assert list(results) == [(mode, side) for mode in ALL for side in ("patched", "unpatched")]
    assert code == 0
    for (mode, side), result in results.items():
        assert (result["different"], len(result["kills"]), result["cut_short"]) == (0, 2, False)
        books = result["books"]
        assert (books["missing"], books["duplicates"], books["foreign"]) == (0, 0, 0)
        assert (books["told"] > 0) == (mode == "busy")
        assert result["bytes_compared"] > 1000
        if side == "patched":
            assert (result["survived"], result["lost"]) == (4, 0)
            assert len(result["kills"][0]["pauses_s"]) == 4
        else:
            assert result["lost"] >= 4 or mode == "login-storm"
            assert result["survived"] == 0 or mode == "login-storm"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_given_server_is_left_as_it_was(run_dir: RunDir, postgres: Postgres) -> None:
    words = ("--kills", "1", "--sessions", "2", "--mode", "busy")
    code, results = found(run_dir, "--dsn", postgres.conninfo(), *words)
    assert code == 0
    assert results["busy", "patched"]["survived"] == 2
    assert postgres.sql(LISTING) == []


def kill_command(keeper: Keeper, folder: Path) -> str:
    """What an operator could write: SIGKILL for the pgbouncer that `pgkeeper status` names."""
    script = folder / "kill.py"
    script.write_text(
        "import json, os, signal, subprocess\n"
        f"words = [{str(COMMAND)!r}, 'status', '--json', '--socket', {str(keeper.socket_path)!r}]\n"
        "status = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)\n"
        "os.kill(status['pgbouncer']['pid'], signal.SIGKILL)\n"
    )
    return f"{sys.executable} '{script}'"


def at_work(postgres: Postgres, sessions: int) -> bool:
    """Whether so many sessions of a trial have inserted something."""
    tables = postgres.sql(LISTING)
    if not tables:
        return False
    count = f"SELECT count(DISTINCT session) FROM {tables[0][0]} WHERE session > 0"
    return bool(postgres.value(count) == sessions)


def test_a_running_deployment(run_dir: RunDir, keeper: Keeper, tmp_path: Path) -> None:
    target = keeper.conninfo()
    before = keeper.status().pgbouncer.incarnation
    words = ("--kills", "2", "--sessions", "3", "--mode", "busy", "--mode", "idle")
    command = ("--kill-command", kill_command(keeper, tmp_path))
    code, results = found(run_dir, "--target", target, *command, *words)
    assert code == 0
    assert {key: result["survived"] for key, result in results.items()} == {
        ("busy", "patched"): 3,
        ("idle", "patched"): 3,
    }
    assert keeper.status().pgbouncer.incarnation == before + 4


def test_sessions_that_are_lost_by_the_target_are_noticed(
    run_dir: RunDir, vanilla_bouncer: Bouncer, postgres: Postgres
) -> None:
    """The control: PgBouncer without pgkeeper in its place."""
    target = vanilla_bouncer.conninfo()
    words = ("--sessions", "3", "--mode", "busy", "--seconds", "1.5")
    started = start(run_dir, "--json", "--target", target, *words)
    wait_until(lambda: at_work(postgres, 3), what="the sessions are at work", seconds=100)
    vanilla_bouncer.process.stop(signal.SIGKILL)
    vanilla_bouncer.start()
    output, errors = started.communicate(timeout=100)
    print(errors)
    result = json.loads(output)["results"][0]
    assert (started.returncode, result["survived"], result["lost"]) == (1, 0, 3)


# More kills than there is time for.
_LONG = ("--kills", "1000", "--sessions", "3", "--mode", "busy")


def start(run_dir: RunDir, *words: str, temporary: Path | None = None) -> subprocess.Popen[str]:
    """Begin a trial whose own run lies in `temporary`."""
    more = {"TMPDIR": str(temporary)} if temporary else None
    return subprocess.Popen(
        [COMMAND, "trial", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(f"{run_dir.run_id}/trial", more),
    )


def changed(data: bytes) -> bytes:
    """One byte is another."""
    return data.replace(MARK, b"L" + MARK[1:], 1)


def repeated(data: bytes) -> bytes:
    """A CommandComplete of an INSERT comes twice."""
    message = b"C\0\0\0\x0fINSERT 0 1\0"
    return data.replace(message, message + message, 1)


@pytest.mark.parametrize(("mode", "spoil"), [("bulk", changed), ("busy", repeated)])
def test_a_wrong_answer_is_noticed(
    run_dir: RunDir, keeper: Keeper, postgres: Postgres, mode: str, spoil: Callable[[bytes], bytes]
) -> None:
    with Relay(keeper, spoil) as relay:
        target = keeper.conninfo(port=relay.port)
        words = ("--sessions", "2", "--mode", mode, "--seconds", "1")
        code, results = found(run_dir, "--target", target, "--dsn", postgres.conninfo(), *words)
    (result,) = results.values()
    assert code == 1
    assert result["different"] > 0
    assert result["survived"] < 2
    assert " became " in result["differences"][0]


def test_an_insert_that_happens_twice_is_noticed(
    run_dir: RunDir, keeper: Keeper, postgres: Postgres
) -> None:
    """Every answer is right, and the table is not: a trigger doubles some rows."""
    words = ("--sessions", "2", "--mode", "busy", "--seconds", "1.5")
    started = start(run_dir, "--json", "--target", keeper.conninfo(), *words)
    wait_until(lambda: at_work(postgres, 2), what="the sessions are at work", seconds=100)
    ((table,),) = postgres.sql(LISTING)
    postgres.sql(
        "CREATE FUNCTION twice() RETURNS trigger LANGUAGE plpgsql AS"
        f" 'BEGIN INSERT INTO {table} VALUES (NEW.session, NEW.turn); RETURN NULL; END'"
    )
    postgres.sql(
        f"CREATE TRIGGER twice AFTER INSERT ON {table} FOR EACH ROW"
        " WHEN (NEW.turn % 10 = 0 AND pg_trigger_depth() = 0) EXECUTE FUNCTION twice()"
    )
    output, errors = started.communicate(timeout=100)
    print(errors)
    result = json.loads(output)["results"][0]
    assert (started.returncode, result["different"]) == (1, 0)
    assert result["books"]["duplicates"] > 0
    postgres.sql("DROP FUNCTION twice")


def test_an_interrupted_trial_leaves_nothing(run_dir: RunDir) -> None:
    temporary = run_dir.folder("interrupted")
    started = start(run_dir, *_LONG, temporary=temporary)
    try:
        wait_until(lambda: busy(temporary), what="pgbouncer is killed", seconds=120)
        started.send_signal(signal.SIGINT)
        output, errors = started.communicate(timeout=100)
    finally:
        started.kill()
    print(output, errors)
    assert started.returncode == 130
    assert "cut short" in output
    assert "interrupted; " in output
    assert runs_in(temporary) == []
    assert run_dir.processes("trial") == []


def test_a_trial_that_is_killed_with_its_run_leaves_nothing(run_dir: RunDir) -> None:
    """As when a test that started one gives up: the outer guard ends it, the inner one the rest."""
    outer = RunDir()
    temporary = run_dir.folder("killed")
    started = start(outer, *_LONG, temporary=temporary)
    try:
        wait_until(lambda: busy(temporary), what="pgbouncer is killed", seconds=120)
    finally:
        left = outer.close()
        started.communicate()
    assert len(left) == 1
    wait_until(lambda: not runs_in(temporary), what="the folders are gone", seconds=60)


def runs_in(temporary: Path) -> list[Path]:
    return list(temporary.glob("pgkeeper-run-*"))


def busy(temporary: Path) -> bool:
    """A pgbouncer was killed already, so that there is something to tell."""
    logs = [path / "patched" / "output.log" for path in runs_in(temporary)]
    return any(log.exists() and log.read_text().count("active") > 3 for log in logs)


@pytest.mark.parametrize(
    "words",
    [
        ("--kills", "0"),
        ("--mode", "lazy"),
        ("--kill-command", "true"),
        ("--mode", "container"),
        ("--target", "host=127.0.0.1 port=1", "--kill-command", "true"),
        ("--target", "nonsense"),
        ("--png", "/nowhere/at/all.png"),
        ("--target", "host=127.0.0.1", "--mode", "container", "--mode", "idle"),
    ],
)
def test_what_cannot_start_is_exit_status_2(run_dir: RunDir, words: tuple[str, ...]) -> None:
    done = trial(run_dir, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
