"""`.ci/run`: the tests' exit status, their time limit, and nobody left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[3] / ".ci" / "run"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / ".ci").mkdir()
    for name in ("run", "run.py"):
        shutil.copy(RUN.with_name(name), tmp_path / ".ci" / name)
    os.mkfifo(tmp_path / "alive")
    return tmp_path


def dev(checkout: Path, script: str) -> None:
    path = checkout / "dev"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", checkout / ".ci/run"]  # as CI calls it
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("status", [0, 1, 5])
def test_it_runs_exactly_dev_test_and_keeps_its_status(checkout: Path, status: int) -> None:
    dev(checkout, f'echo "$PWD $*"; exit {status}')
    done = run(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (status, f"{checkout} test\n", "")


def test_a_daemon_left_behind_is_named_and_ended(checkout: Path) -> None:
    os.mkfifo(checkout / "ready")
    # A session of its own and no parent: what daemons do to get away.
    daemon = "exec 3>alive; echo > ready; exec sleep 600"
    dev(checkout, f"setsid -f sh -c '{daemon}' >/dev/null 2>&1; read line < ready")
    with subprocess.Popen(
        ["bash", checkout / ".ci/run"], stderr=subprocess.PIPE, text=True
    ) as process:
        with (checkout / "alive").open() as alive:
            assert alive.read() == ""  # returns when the daemon is gone
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert "ending what was left behind" in process.stderr.read()


def test_the_time_limit_ends_everything(checkout: Path) -> None:
    script = (checkout / ".ci/run.py").read_text()
    (checkout / ".ci/run.py").write_text(script.replace("LIMIT_S = 90 * 60", "LIMIT_S = 0.2"))
    dev(checkout, "sleep 600 & wait")
    done = run(checkout)
    assert done.returncode == 124
    assert "not finished after" in done.stderr
    assert done.stderr.count("ending what was left behind") == 2
