"""Poolers that can be killed and come back: ours, one without pgkeeper, one that runs elsewhere."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from pgkeeper.control.client import ControlClient, NoHangerError
from pgkeeper.states import ServiceState
from pgkeeper.trial.account import give
from pgkeeper.trial.dsn import Address
from pgkeeper.trial.errors import ProcessFailedError, TrialError, WaitTimeoutError
from pgkeeper.trial.process import Process, send
from pgkeeper.trial.waiting import free_port, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeeper.control.report import Status
    from pgkeeper.trial.rundir import RunDir

__all__ = ["Alone", "ByCommand", "ByOperator", "Container", "Files", "Kept", "Side"]

_SESSION: Final = "trial_session"
_TRANSACTION: Final = "trial"
_START_S: Final = 20.0
_COMMAND_S: Final = 60.0
_POLL_S: Final = 0.002


class Side(Protocol):
    """A pooler whose pgbouncer can be killed; the methods block."""

    def address(self, *, whole: bool) -> Address:
        """Where sessions log in; `whole`: each wants a server of its own."""
        ...

    def kill(self) -> float:
        """Kill pgbouncer; perf_counter's time when it was dead. Raises `TrialError`."""
        ...

    def recover(self) -> float | None:
        """Wait until pgbouncer is back; how long it was away in seconds, if that is known.

        Raises `TrialError` if it does not come back.
        """
        ...


class Files:
    """A pgbouncer's folder, configuration and login: `server` stands behind it.

    `sessions` is how many sessions may want a server of their own; `keeper_socket` makes it a
    kept one.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        run_dir: RunDir,
        name: str,
        server: Address,
        login: tuple[str, str, str],
        sessions: int,
        *,
        kept: bool,
    ) -> None:
        self.name = name
        self.run_dir = run_dir
        self.port = free_port()
        self.folder = run_dir.folder(name)
        self.ini = self.folder / "pgbouncer.ini"
        self.output = self.folder / "output.log"
        self.socket = self.folder / "keeper.sock"
        self._user, self._password, verifier = login
        users = self.folder / "userlist.txt"
        parts = {
            "host": server.host,
            "port": str(server.port),
            "dbname": server.database,
            "user": server.user,
            **({"password": server.password} if server.password else {}),
        }
        target = " ".join(f"{name}='{_quoted(value)}'" for name, value in parts.items())
        settings: dict[str, str | int] = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "max_client_conn": 2 * sessions + 100,
            "default_pool_size": 20,
            "max_prepared_statements": 100,
            "server_tls_sslmode": "disable",
            "ignore_startup_parameters": "extra_float_digits",
            "log_connections": 0,
            "log_disconnections": 0,
            "listen_backlog": 1024,
            "logfile": str(self.folder / "pgbouncer.log"),
        }
        if kept:
            settings["keeper_socket"] = str(self.socket)
        if run_dir.account is not None:
            settings["user"] = run_dir.account.name
        lines = [
            "[databases]",
            f"{_TRANSACTION} = {target} pool_mode=transaction",
            f"{_SESSION} = {target} pool_mode=session pool_size={sessions + 10}",
            "[pgbouncer]",
            *(f"{key} = {value}" for key, value in settings.items()),
        ]
        self._write(users, f'"{self._user}" "{verifier}"\n')
        self._write(self.ini, "\n".join(lines) + "\n")

    def address(self, *, whole: bool) -> Address:
        """See `Side.address`."""
        database = _SESSION if whole else _TRANSACTION
        return Address(self.host, self.port, self._user, database, self._password)

    def failed(self, reason: str) -> ProcessFailedError:
        """The error that says why, with the end of what was printed and logged."""
        tail: list[str] = []
        for path in (self.output, self.folder / "pgbouncer.log"):
            if path.exists():
                tail += path.read_text(errors="replace").splitlines()[-6:]
        return ProcessFailedError(self.name, reason, "\n".join(tail))

    def listens(self) -> bool:
        """Whether somebody accepts."""
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True

    def _write(self, path: Path, text: str) -> None:
        path.touch(mode=0o600)
        path.write_text(text)
        give(path, self.run_dir.account)


class Kept:
    """`pgkeeper run` with a patched pgbouncer."""

    def __init__(self, files: Files, binary: Path, *, standby: bool) -> None:
        self._files = files
        self._binary = binary
        self._standby = standby
        self._client = ControlClient(files.socket)
        self._process: Process | None = None
        self._incarnation = 0
        self.address = files.address

    def start(self) -> None:
        """Start the hanger; returns when its pgbouncer serves. Raises `TrialError`."""
        files = self._files
        # Whatever name we were started by, this is the same pgkeeper.
        itself = [sys.executable, "-c", "from pgkeeper.cli import main; main()"]
        command: list[str | Path] = [*itself, "run", "--ini", files.ini]
        command += ["--pgbouncer", files.run_dir.usable(self._binary)]
        command.append("--standby" if self._standby else "--no-standby")
        self._process = Process(
            files.run_dir,
            files.name,
            command,
            output=files.output,
            privileged=True,  # it gives pgbouncer the ini's user
        )
        self._wait_active()

    def stop(self) -> None:
        """End the hanger and its pgbouncer. Raises `TrialError` if it does not end."""
        if self._process is not None and self._process.running:
            self._process.stop(signal.SIGTERM, 20)

    def kill(self) -> float:
        """See `Side.kill`."""
        bouncer = self._client.status().status.pgbouncer
        if bouncer.pid is None:
            raise self._files.failed("no pgbouncer runs")
        self._incarnation = bouncer.incarnation
        send(bouncer.pid, signal.SIGKILL)
        return time.perf_counter()

    def recover(self) -> float | None:
        """See `Side.recover`: the hanger's own figure, from the death to READY."""
        status = self._wait_active()
        last = status.adoptions.last_ms
        return None if last is None else last / 1000

    def _wait_active(self) -> Status:
        """Also until the next one stands by, so that each kill meets the same."""
        found: list[Status] = []

        def active() -> bool:
            if self._process is None or not self._process.running:
                raise self._files.failed("pgkeeper run has ended")
            try:
                status = self._client.status().status
            except NoHangerError:
                return False
            found[:] = [status]
            bouncer = status.pgbouncer
            return (
                bouncer.state is ServiceState.ACTIVE
                and bouncer.incarnation > self._incarnation
                and (bouncer.standby_pid is not None or not self._standby)
            )

        try:
            wait_until(active, what="pgbouncer serves", seconds=_START_S)
        except WaitTimeoutError as error:
            raise self._files.failed(error.message) from error
        return found[-1]


class Alone:
    """PgBouncer without pgkeeper, started anew at once when it is dead, sooner than by systemd."""

    def __init__(self, files: Files, binary: Path) -> None:
        self._files = files
        self._binary = binary
        self._process: Process | None = None
        self._died = 0.0
        self.address = files.address

    def start(self) -> None:
        """Start it; returns when it listens. Raises `TrialError`."""
        files = self._files
        command: list[str | Path] = [files.run_dir.usable(self._binary), "-q", files.ini]
        process = Process(files.run_dir, files.name, command, output=files.output)
        self._process = process
        wait_until(
            lambda: files.listens() or not process.running,
            what=f"{files.name} listens",
            seconds=_START_S,
            poll_s=_POLL_S,
        )
        if not process.running:
            raise files.failed("did not start")

    def stop(self) -> None:
        """End it. Raises `TrialError` if it does not end."""
        if self._process is not None and self._process.running:
            self._process.stop(signal.SIGQUIT, 20)

    def kill(self) -> float:
        """See `Side.kill`."""
        if self._process is None or not self._process.running:
            raise self._files.failed("no pgbouncer runs")
        self._process.stop(signal.SIGKILL)
        self._died = time.perf_counter()
        return self._died

    def recover(self) -> float | None:
        """See `Side.recover`."""
        self.start()
        return time.perf_counter() - self._died


class _Running:
    """A pooler that somebody else runs."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def address(self, *, whole: bool) -> Address:
        """See `Side.address`: it has one database, whatever is wanted."""
        return self._address


class ByOperator(_Running):
    """Killed by somebody else, who does not tell us: the trial watches for a time instead."""

    def kill(self) -> float:
        """Not by us."""
        return time.perf_counter()

    def recover(self) -> float | None:
        """Nobody tells; the sessions' answers do."""
        return None


class ByCommand(_Running):
    """Killed by a command of the operator's; `command` is split as a shell splits words."""

    def __init__(self, address: Address, command: str) -> None:
        super().__init__(address)
        self._words = shlex.split(command)

    def kill(self) -> float:
        """Run the command. Raises `ProcessFailedError` if it fails."""
        _run(self._words)
        return time.perf_counter()

    def recover(self) -> float | None:
        """Nobody tells; the sessions' answers do."""
        return None


class Container(_Running):
    """A pgbouncer in a container, killed and started again by docker."""

    def __init__(self, address: Address, container: str) -> None:
        super().__init__(address)
        self._container = container
        self._before = ""

    def kill(self) -> float:
        """`docker kill`. Raises `ProcessFailedError` if it fails."""
        self._before = self._look()["StartedAt"]
        _run(["docker", "kill", "--signal=KILL", self._container])
        return time.perf_counter()

    def recover(self) -> float | None:
        """Start it: to docker, what was killed by hand is to stay dead, whatever its policy."""
        _run(["docker", "start", self._container])
        looks: list[dict[str, str]] = []

        def runs() -> bool:
            looks[:] = [self._look()]
            return bool(looks[0]["Running"]) and looks[0]["StartedAt"] != self._before

        wait_until(runs, what=f"container {self._container} runs", seconds=_COMMAND_S)
        died, came = (_moment(looks[0][name]) for name in ("FinishedAt", "StartedAt"))
        return max(0.0, came - died)

    def _look(self) -> dict[str, str]:
        text = _run(["docker", "inspect", "--format", "{{json .State}}", self._container])
        state: dict[str, str] = json.loads(text)
        return state


def _run(words: list[str]) -> str:
    try:
        done = subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise TrialError(f"{words[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise ProcessFailedError(words[0], f"still running after {_COMMAND_S:g} s") from None
    if done.returncode:
        raise ProcessFailedError(words[0], f"exit code {done.returncode}", done.stderr)
    return done.stdout


def _moment(text: str) -> float:
    """Docker's time stamps have nine digits of a second, of which Python knows six."""
    whole, _, rest = text.partition(".")
    digits = rest.rstrip("Z")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{digits or 0}")


def _quoted(value: str) -> str:
    return value.replace("'", "''")
