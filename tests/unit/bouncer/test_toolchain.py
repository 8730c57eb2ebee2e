"""What is missing is named at once, with the packages that have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer.toolchain import (
    HEADERS,
    TOOLS,
    BuildStepError,
    MissingError,
    Requirement,
    check,
    run,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_missing_headers_and_tools_are_one_line() -> None:
    tools = (*TOOLS, Requirement("no-such-tool", "tool-package"))
    headers = (
        *HEADERS,
        Requirement("no/such.h", "libno-dev"),
        Requirement("nor/this.h", "libx-dev"),
    )
    with pytest.raises(MissingError) as caught:
        check(tools, headers)
    assert caught.value.missing == ("no-such-tool", "no/such.h", "nor/this.h")
    assert str(caught.value) == (
        "missing to build PgBouncer: no-such-tool, no/such.h, nor/this.h"
        " (Debian, Ubuntu: apt-get install tool-package libno-dev libx-dev)"
    )


def test_headers_that_are_there_are_not_missing() -> None:
    check(headers=(Requirement("stdio.h", "libc6-dev"), Requirement("sys/socket.h", "libc6-dev")))


def test_without_a_compiler_headers_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError) as caught:
        check()
    assert caught.value.packages[0] == "gcc"
    assert caught.value.missing == tuple(tool.name for tool in TOOLS)


@pytest.mark.parametrize(
    ("printed", "line"),
    [
        ("checking...\nconfigure: error: no libevent", "configure: error: no libevent"),
        (
            "cc -c x.c\nx.c:3:5: error: 'a' undeclared\nmake: *** x",
            "x.c:3:5: error: 'a' undeclared",
        ),
        ("x.c:1:10: fatal error: a.h: No such file", "x.c:1:10: fatal error: a.h: No such file"),
        ("nothing telling", "exit status 3"),
    ],
)
def test_a_failing_step_shows_its_first_error(tmp_path: Path, printed: str, line: str) -> None:
    log = tmp_path / "log"
    log.write_text("an earlier step: error: long past\n")
    with pytest.raises(BuildStepError) as caught:
        run("make", ["sh", "-c", 'printf "%s\\n" "$1"; exit 3', "sh", printed], tmp_path, log)
    assert caught.value.line == line
    assert str(caught.value) == f"make failed: {line} (all of it: {log})"
    assert printed in log.read_text()


def test_flags_of_the_shell_do_not_reach_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-O0")
    monkeypatch.setenv("MAKEFLAGS", "-n")
    log = tmp_path / "log"
    run("env", ["env"], tmp_path, log)
    assert "CFLAGS" not in log.read_text()
    assert "MAKEFLAGS" not in log.read_text()
