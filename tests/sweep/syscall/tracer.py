"""`tracer.c`, compiled and spoken to: a death at one exact point of a process's life."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import ProcessFailedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_SOURCE = Path(__file__).with_name("tracer.c")
# It knows the messages to the hanger.
_PATCHES = Path(__file__).parents[3] / "patches"


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """The `call`-th system call, counted from 1, and whether it was made before the death.

    `steps` machine instructions follow it.
    """

    call: int
    at_exit: bool = False
    steps: int = 0

    def __str__(self) -> str:
        steps = f" + {self.steps} instructions" if self.steps else ""
        return f"{'exit' if self.at_exit else 'entry'} of call {self.call}{steps}"


@dataclass(frozen=True, slots=True)
class Death:
    """What the killed process was doing."""

    pid: int
    point: Point
    syscall: str
    arguments: tuple[str, ...]
    result: int
    link: str

    def __str__(self) -> str:
        words = f"{self.syscall}({', '.join(self.arguments)})"
        result = f" = {self.result}" if self.point.at_exit else ""
        return f"{self.point}: {words}{result} on {self.link}"


def build_tracer(folder: Path) -> Path:
    """Compile the tracer into `folder`; its path. Raises `ProcessFailedError`."""
    program = folder / "tracer"
    done = subprocess.run(
        ["cc", "-O1", "-Wall", "-Wextra", "-I", _PATCHES, "-o", program, _SOURCE],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ProcessFailedError("cc", "cannot compile the tracer", done.stderr)
    return program


class Tracer:
    """The tracer at work on `pid`, as a context manager; the process goes on untraced at its end.

    With `point` None it only counts. With `parent` and `second`, the successor that `parent`
    starts is killed at that point of its adoption; `adopted` is the number of its calls if it got
    away. The successor is `standby`, if that is not 0. With `parent` and `absence`, no successor
    is started after a death before `absence` has returned; it is called by a thread of ours.
    """

    def __init__(
        self,
        program: Path,
        pid: int,
        point: Point | None,
        *,
        parent: int = 0,
        second: Point | None = None,
        standby: int = 0,
        absence: Callable[[], None] | None = None,
    ) -> None:
        self._argv = [str(program), str(pid), *_words(point), str(point.steps if point else 0)]
        if parent:
            hold = "0" if absence is None else "1"
            self._argv += [str(parent), *_words(second), hold]
            if standby:
                self._argv.append(str(standby))
        self._parent = parent
        self._absence = absence
        self.deaths: list[Death] = []
        self.ended: list[int] = []
        self.count = 0
        self.adopted: int | None = None

    def __enter__(self) -> Tracer:
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            _, errors = self._process.communicate()
            raise ProcessFailedError("tracer", "cannot attach", errors)
        self._reader = threading.Thread(target=self._read, name="tracer")
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Let everything go on untraced and read the news. Raises `ProcessFailedError`."""
        if self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdin.close()
        self._reader.join()
        with self._process.stdout, self._process.stderr as stderr:
            errors = stderr.read()
            code = self._process.wait()
        if code:
            raise ProcessFailedError("tracer", f"exit code {code}", errors)

    def _read(self) -> None:
        """Take what the tracer says, up to its end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, *rest = line.split(maxsplit=9)
            if word == "killed":
                self.deaths.append(_death(rest))
                self._nobody_serves()
            elif word == "ended":
                self.ended.append(int(rest[0]))
            elif word == "adopted":
                self.adopted = int(rest[0])
            elif word == "count":
                self.count = int(rest[0])

    def _nobody_serves(self) -> None:
        if self._absence is None:
            return
        try:
            self._absence()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._parent, signal.SIGCONT)


def _words(point: Point | None) -> tuple[str, str]:
    if point is None:
        return "0", "entry"
    return str(point.call), "exit" if point.at_exit else "entry"


def _death(words: list[str]) -> Death:
    pid, call, where, number, first, second, third, result, link = words
    return Death(
        pid=int(pid),
        point=Point(int(call), where == "exit"),
        syscall=_names().get(int(number), number),
        arguments=(first, f"0x{second}", f"0x{third}"),
        result=int(result),
        link=link.strip(),
    )


@functools.cache
def _names() -> dict[int, str]:
    """The kernel's numbers of its calls, for messages; empty where there are no headers."""
    done = subprocess.run(
        ["cc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"],
        check=False,
        capture_output=True,
        text=True,
    )
    pairs = re.findall(r"^#define __NR_(\w+) (\d+)$", done.stdout, re.MULTILINE)
    return {int(number): name for name, number in pairs}
