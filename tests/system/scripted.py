"""A hanger as a process of its own, with the scripted pgbouncer of `fake_bouncer`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgkeeper.control.client import ControlClient, NoHangerError
from pgkeeper.states import ServiceState
from testbed.waiting import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgkeeper.control.report import Status

ROOT = Path(__file__).parents[2]
SECONDS = 15.0


def wait_until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass(frozen=True)
class Who:
    """What a scripted pgbouncer says of itself and of the client that asks."""

    pid: int
    incarnation: int
    token: int


class LineClient:
    """A client that sends lines and reads lines, on one socket for ever."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(SECONDS)
        self.socket.connect(address)
        self._file = self.socket.makefile("rb")

    def say(self, text: str) -> None:
        self.socket.sendall(text.encode() + b"\n")

    def hear(self) -> str:
        line = self._file.readline()
        assert line.endswith(b"\n"), f"the connection ended after {line!r}"
        return line.decode().strip()

    def ask(self, text: str) -> str:
        self.say(text)
        return self.hear()

    def insist(self, text: str) -> None:
        """Ask until it is echoed: a scripted pgbouncer that is killed forgets what it has read."""
        self.socket.settimeout(0.5)
        answer = b""
        deadline = time.monotonic() + SECONDS
        while f"echo {text}\n".encode() not in answer:
            assert time.monotonic() < deadline, f"no answer to {text!r}"
            self.say(text)
            with contextlib.suppress(TimeoutError):
                while chunk := self.socket.recv(4096):
                    answer += chunk
                    if answer.endswith(f"echo {text}\n".encode()):
                        break
                else:
                    raise AssertionError(f"the connection ended after {answer!r}")

    def who(self) -> Who:
        return Who(*map(int, self.ask("who").split()))

    def rest(self) -> bytes:
        """Everything until the end of the connection."""
        return self._file.read()

    def close(self) -> None:
        self._file.close()
        self.socket.close()


class ScriptedHanger:
    """`pgkeeper run` with a scripted pgbouncer, in `directory`."""

    def __init__(self, directory: Path, *, tcp: bool = True, unix: bool = True) -> None:
        directory.chmod(0o755)
        self.directory = directory
        self.port = free_port()
        self.socket = directory / "keeper.sock"
        self.ini = directory / "pgbouncer.ini"
        self.log = directory / "hanger.log"
        self.bouncer = self.make_bouncer("bouncer")
        self.process: subprocess.Popen[bytes] | None = None
        self.clients: list[LineClient] = []
        self.write_ini(
            listen_addr="127.0.0.1" if tcp else "", unix_socket_dir=str(directory) if unix else ""
        )

    # what it is made of

    def make_bouncer(self, name: str, program: Path | None = None) -> Path:
        """An executable that is the scripted pgbouncer, or another program."""
        path = self.directory / name
        program = program or Path(__file__).with_name("fake_bouncer.py")
        path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {program} "$@"\n')
        path.chmod(0o755)
        return path

    def write_ini(self, path: Path | None = None, **settings: object) -> Path:
        """Settings stay until they are set again."""
        self._settings = {
            "listen_port": self.port,
            "user": "nobody",
            "server_tls_sslmode": "disable",
            **getattr(self, "_settings", {}),
            **settings,
        }
        lines = [f"{name} = {value}" for name, value in self._settings.items()]
        path = path or self.ini
        path.write_text("\n".join(["[databases]", "[pgbouncer]", *lines, ""]))
        return path

    def script(self, directory: Path | None = None, **script: object) -> None:
        """What pgbouncers that start from now on do wrong."""
        target = (directory or self.directory) / "fake.json"
        target.write_text(json.dumps(script))

    # its life

    def start(self, *options: str, wait: bool = True, limit: int | None = None) -> None:
        program = "from pgkeeper.cli import main; main()"
        if limit is not None:
            program = (
                f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({limit},) * 2); " + program
            )
        words = [sys.executable, "-c", program, "run", "--ini", str(self.ini)]
        words += ["--socket", str(self.socket), "--no-standby"]  # unless an option says so
        if "--pgbouncer" not in options:
            words += ["--pgbouncer", str(self.bouncer)]
        # The scripted pgbouncer has no heartbeat.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PGKEEPER_HANG_TIMEOUT": "0"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*words, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        if wait:
            self.wait_active()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal the hanger and wait for its end; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(SECONDS)

    def close(self) -> None:
        """Nothing may be left by a test, whatever it did."""
        for client in self.clients:
            client.close()
        pids = self.bouncer_pids()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in {*pids, *self.bouncer_pids()}:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)

    # what it says

    @property
    def control(self) -> ControlClient:
        return ControlClient(self.socket, timeout=SECONDS)

    def status(self) -> Status:
        return self.control.status().status

    def wait_state(self, *states: ServiceState) -> Status:
        def reached() -> Status | None:
            assert self.process is None or self.process.poll() is None, self.logged()
            try:
                status = self.status()
            except NoHangerError:
                return None
            return status if status.pgbouncer.state in states else None

        found: Status = wait_until(reached, f"state {states}\n{self.logged()}")
        return found

    def wait_active(self, incarnation: int = 1) -> Status:
        def reached() -> Status | None:
            status = self.wait_state(ServiceState.ACTIVE)
            return status if status.pgbouncer.incarnation >= incarnation else None

        found: Status = wait_until(reached, f"incarnation {incarnation}")
        return found

    def logged(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_logged(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.logged().count(text) >= times, f"{text!r} in\n{self.logged()}")

    # its clients and processes

    def client(self, *, unix: bool = False) -> LineClient:
        path = f"{self.directory}/.s.PGSQL.{self.port}"
        client = LineClient(path if unix else ("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    def descriptors(self) -> int:
        """How many the hanger has."""
        assert self.process is not None
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def idle_descriptors(self) -> int:
        """How many it has once those of the last requests are closed."""
        seen: list[int] = []

        def settled() -> bool:
            seen.append(self.descriptors())
            return len(seen) >= 20 and len(set(seen[-20:])) == 1

        wait_until(settled, "a steady number of descriptors")
        return seen[-1]

    def bouncer_pids(self) -> list[int]:
        """Scripted pgbouncers of this hanger that are alive."""
        return [pid for pid in processes_with(str(self.directory)) if alive(pid)]


def processes_with(word: str) -> Sequence[int]:
    """Processes that have `word` in one of their arguments and run a scripted pgbouncer."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if any("bouncer" in it for it in words[:2]) and any(word in it for it in words[2:]):
                found.append(int(entry.name))
    return found
