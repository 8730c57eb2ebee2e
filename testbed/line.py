"""A bad line: PostgreSQL and the clients on this side, pgbouncer and the hanger on the other."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from testbed.errors import NotFoundError, ProcessFailedError
from testbed.keeper import Keeper
from testbed.logfile import LogFile
from testbed.postgres import Postgres
from testbed.process import Process
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from testbed.rundir import RunDir

_Result = TypeVar("_Result")

_SOURCE = Path(__file__).with_name("line.c")
_CLONE_NEWNET = 0x40000000  # <sched.h>; os.setns came with Python 3.12
_libc = ctypes.CDLL(None, use_errno=True)


class NearPostgres(Postgres):
    """PostgreSQL at this end of the line."""

    host = "10.99.0.1"
    clients = "10.99.0.0/24"


class FarKeeper(Keeper):
    """A hanger at the other end; start it and end it by `Line.there`."""

    host = "10.99.0.2"


class Line:
    """Two network namespaces and what connects them, as a context manager; needs root.

    The thread that enters it, and what it starts, is at this end until it leaves it; `there` does
    something at the other end. `delay` and `jitter` are microseconds, `lost` and `twice` packets
    in a thousand. Both namespaces are gone with the last process in them.
    Raises `NotFoundError` if there can be no such line here.
    """

    def __init__(
        self, run_dir: RunDir, *, delay: int, jitter: int = 0, lost: int = 0, twice: int = 0
    ) -> None:
        self.loses = lost > 0
        self._run_dir = run_dir
        self._log = LogFile(run_dir.path / "line.log")
        self._nature = [str(number) for number in (delay, jitter, lost, twice)]
        self._stack = contextlib.ExitStack()
        self._far = -1

    def __enter__(self) -> Line:
        with contextlib.ExitStack() as stack:
            near, self._far = (self._namespace(stack) for _ in range(2))
            program = _build(self._run_dir.path)
            before = self._log.size()
            process = Process(
                self._run_dir,
                "line",
                [program, str(near), str(self._far), *self._nature],
                output=self._log.path,
                privileged=True,
                pass_fds=(near, self._far),
            )
            stack.callback(process.stop, signal.SIGKILL)
            wait_until(lambda: "up" in self._log.read(before) or not process.running, what="a line")
            if not process.running:
                raise NotFoundError("a line", self._log.tail())
            home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            stack.callback(os.close, home)
            _go(near)
            stack.callback(_go, home)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def there(self, call: Callable[[], _Result]) -> _Result:
        """What `call` returns at the other end; what it raises is raised here."""

        def run() -> _Result:
            _go(self._far)
            return call()

        return _in_a_thread(run)

    def sent_again(self) -> int:
        """How many TCP segments this end has had to send again (RFC 4022, tcpRetransSegs)."""
        names, values = (
            line.split()[1:]
            for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
            if line.startswith("Tcp:")
        )
        return int(dict(zip(names, values, strict=True))["RetransSegs"])

    def _namespace(self, stack: contextlib.ExitStack) -> int:
        def make() -> int:
            if _libc.unshare(_CLONE_NEWNET):
                raise NotFoundError("a network namespace", os.strerror(ctypes.get_errno()))
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

        namespace = _in_a_thread(make)
        stack.callback(os.close, namespace)
        return namespace


def _go(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _in_a_thread(call: Callable[[], _Result]) -> _Result:
    """A namespace is a thread's, so one that goes elsewhere need not come back."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="elsewhere")
    thread.start()
    thread.join()
    for error in errors:
        raise error
    return results[0]


def _build(folder: Path) -> Path:
    program = folder / "line"
    done = subprocess.run(
        ["cc", "-O2", "-Wall", "-Wextra", "-o", program, _SOURCE],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ProcessFailedError("cc", "cannot compile the line", done.stderr)
    return program
