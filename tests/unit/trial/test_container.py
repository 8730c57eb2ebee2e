"""The mode that kills a container says to docker what an operator would say, in that order."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from pgkeeper.trial.dsn import Address
from pgkeeper.trial.errors import ProcessFailedError, TrialError
from pgkeeper.trial.sides import ByCommand, Container

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = Address("db", 6432, "app", "shop")
# Says what a container's state is, which `start` changes, and keeps what it was told.
DOCKER = """#!/bin/sh
echo "$*" >>"$0.log"
case $1 in
inspect) cat "$0.state" ;;
kill) [ "$3" = proxy ] || { echo "No such container: $3" >&2; exit 1; } ;;
start) cp "$0.after" "$0.state" ;;
esac
"""


def state(started: str, finished: str) -> str:
    return json.dumps({"Running": True, "StartedAt": started, "FinishedAt": finished})


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "docker"
    program.write_text(DOCKER)
    program.chmod(0o755)
    first, died, second = (
        f"2026-01-02T03:04:{second}Z" for second in ("00.1", "05.000000001", "05.250000001")
    )
    (tmp_path / "docker.state").write_text(state(first, "0001-01-01T00:00:00Z"))
    (tmp_path / "docker.after").write_text(state(second, died))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return program


def test_the_time_that_a_container_was_away_is_docker_s_own(docker: Path) -> None:
    side = Container(ADDRESS, "proxy")
    side.kill()
    assert side.recover() == pytest.approx(0.25)
    said = docker.with_name("docker.log").read_text().splitlines()
    look = "inspect --format {{json .State}} proxy"
    assert said == [look, "kill --signal=KILL proxy", "start proxy", look]


@pytest.mark.usefixtures("docker")
def test_a_container_that_is_not_there_is_told_of() -> None:
    with pytest.raises(ProcessFailedError, match="No such container: web"):
        Container(ADDRESS, "web").kill()


def test_a_machine_without_docker_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TrialError, match="docker: No such file"):
        Container(ADDRESS, "proxy").kill()


def test_a_kill_command_is_split_as_a_shell_does(tmp_path: Path) -> None:
    made = tmp_path / "two words"
    ByCommand(ADDRESS, f"touch '{made}'").kill()
    assert made.exists()


def test_a_kill_command_that_fails_is_told_of() -> None:
    with pytest.raises(ProcessFailedError, match="exit code 1"):
        ByCommand(ADDRESS, "false").kill()
