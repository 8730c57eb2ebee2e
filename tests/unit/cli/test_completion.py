"""Shells complete commands and options with what `pgkeeper completion` prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgkeeper.cli import COMMANDS, main

# What bash does when TAB is pressed behind the words $2...
_PRESS_TAB = """
eval "$1"
shift
COMP_WORDS=(pgkeeper "$@") COMP_CWORD=$#
_pgkeeper_completion pgkeeper
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str) -> str:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    return result.stdout


def press_tab(*words: str) -> list[str]:
    command = Path(sys.executable).with_name("pgkeeper")
    done = subprocess.run(
        ["bash", "-c", _PRESS_TAB, "bash", script("bash"), *words],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"},
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_and_options() -> None:
    assert set(press_tab("")) == set(COMMANDS)
    assert press_tab("st") == ["status"]
    assert press_tab("run", "--no-s") == ["--no-standby", "--no-supervise"]
    assert press_tab("run", "--log-level", "wa") == ["warning"]
    assert press_tab("completion", "z") == ["zsh"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: str) -> None:
    assert f"_PGKEEPER_COMPLETE={shell}_complete" in script(shell)


def test_another_shell_is_wrong_usage() -> None:
    result = CliRunner().invoke(main, ["completion", "csh"])
    assert result.exit_code == 64
    assert "'bash', 'zsh', 'fish'" in result.stderr
