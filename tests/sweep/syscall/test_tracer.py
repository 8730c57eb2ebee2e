"""The tracer kills where it says: before a system call is made, or right after."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import pytest

from testbed.process import state
from testbed.waiting import wait_until
from tests.sweep.syscall.tracer import Point, Tracer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def cat() -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads and writes, and makes no other call between two lines."""
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            # The first line comes back when it has started up.
            _say(process, b"one\n")
            assert process.stdout is not None
            assert process.stdout.read(4) == b"one\n"
            yield process
        finally:
            process.kill()


def _say(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line)


def _rest(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdin.close()
    return process.stdout.read()


@pytest.mark.parametrize(
    ("point", "syscall", "written"),
    [
        (Point(1), "read", b""),
        (Point(1, at_exit=True), "read", b""),
        (Point(2), "write", b""),
        (Point(2, at_exit=True), "write", b"two\n"),
        (Point(2, at_exit=True, steps=3), "write", b"two\n"),
    ],
)
def test_it_dies_at_the_point(
    tracer_program: Path,
    cat: subprocess.Popen[bytes],
    point: Point,
    syscall: str,
    written: bytes,
) -> None:
    with Tracer(tracer_program, cat.pid, point) as tracer:
        with contextlib.suppress(BrokenPipeError):  # dead already: it waits in its first call
            _say(cat, b"two\n")
        wait_until(lambda: cat.poll() is not None, what="it is dead")
    assert cat.returncode == -9
    assert _rest(cat) == written
    (death,) = tracer.deaths
    assert (death.pid, death.point.call, death.syscall) == (cat.pid, point.call, syscall)


def test_without_a_point_it_counts_and_lets_go(
    tracer_program: Path, cat: subprocess.Popen[bytes]
) -> None:
    with Tracer(tracer_program, cat.pid, None) as tracer:
        _say(cat, b"two\n")
        assert cat.stdout is not None
        assert cat.stdout.read(4) == b"two\n"
    assert tracer.deaths == []
    assert tracer.count >= 2
    _say(cat, b"three\n")
    assert _rest(cat) == b"three\n"
    assert cat.wait() == 0


def test_nobody_follows_before_the_absence_is_over(
    tracer_program: Path, cat: subprocess.Popen[bytes]
) -> None:
    with subprocess.Popen(["sleep", "60"]) as parent:
        seen: list[str] = []

        def absence() -> None:
            wait_until(lambda: cat.poll() is not None, what="it is dead")
            # It may be on its way still: the signal comes first when it runs next.
            wait_until(lambda: state(parent.pid) != "R", what="the other has taken the signal")
            seen.append(state(parent.pid))

        try:
            with Tracer(
                tracer_program, cat.pid, Point(2), parent=parent.pid, absence=absence
            ) as tracer:
                with contextlib.suppress(BrokenPipeError):
                    _say(cat, b"two\n")
                wait_until(lambda: bool(tracer.deaths and seen), what="it was called")
                wait_until(lambda: state(parent.pid) == "S", what="the other goes on")
        finally:
            parent.kill()
    assert seen == ["T"]
