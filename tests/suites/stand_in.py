"""Run in place of pgbouncer by PgBouncer's own suite: the same, but kept by a hanger.

`stand_in.py NURSERY PYTHON PACKAGES KILL_EVERY PGBOUNCER OPTION... [INI]`: the nursery at that
socket makes a hanger, which listens and starts PGBOUNCER; PYTHON with PACKAGES runs other commands
of pgkeeper. It lives as long as that hanger, whose log it leaves beside the ini. KILL_EVERY is the
time in seconds, on average, from one SIGKILL of pgbouncer to the next; 0 is never. What the suite
does to its pgbouncer means:

- SIGQUIT, its way to stop one, and SIGTERM, SIGINT: SIGTERM to the hanger. (A pgbouncer that gets
  them leaves its sessions with the hanger, which starts the next one.)
- SIGHUP: to the hanger, which reloads pgbouncer too. SIGUSR1, SIGUSR2: to pgbouncer itself.
- `--reboot`, the online restart: `pgkeeper handoff`. The stand-in that the suite starts for it
  takes the place of the older one.

Standard library only, and nothing of ours: it is run with `python -I -S`.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HANGER_LOG = "hanger.log"

_COMMAND = "from pgkeeper.cli import main; main()"
_PIDS = "keeper.pids"
_TRIES = 10
_TO_HANGER = {
    signal.SIGQUIT: signal.SIGTERM,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGHUP,
}
_TO_BOUNCER = (signal.SIGUSR1, signal.SIGUSR2)


class StandIn:
    """One pgbouncer of the suite, known by its ini."""

    def __init__(
        self,
        nursery: str,
        python: str,
        packages: str,
        kill_every_s: float,
        pgbouncer: str,
        ini: str,
    ) -> None:
        self._nursery = nursery
        self._kill_every_s = kill_every_s
        self._ini = Path(ini).absolute()
        self._folder = self._ini.parent
        # Beside pgbouncer's own Unix socket, with a shorter name: where that fits, this does.
        self._socket = self._folder / "keeper"
        self._pgkeeper = [python, "-S", "-c", _COMMAND]
        self._environment = {**os.environ, "PYTHONPATH": packages}
        self._pgbouncer = pgbouncer
        self._signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        for number in (*_TO_HANGER, *_TO_BOUNCER):
            # Its number comes through the pipe.
            signal.signal(number, lambda _number, _frame: None)

    def run(self) -> None:
        """Have a hanger made with a pgbouncer, and stay until it ends."""
        words = [
            *(Path.cwd(), self._folder / HANGER_LOG, "run", "--log-json", "--ini", self._ini),
            *("--pgbouncer", self._pgbouncer, "--socket", self._socket, "--no-standby"),
        ]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as nursery:
            nursery.connect(self._nursery)
            nursery.send(b"\0".join(map(os.fsencode, words)))
            hanger = int(nursery.recv(64))
        self._stay_with(hanger)

    def reboot(self) -> None:
        """Replace the pgbouncer of the older stand-in, and that one itself."""
        hanger, older = map(int, (self._folder / _PIDS).read_text().split())
        # One of whose two sides is killed may fail, and says so: then again, as an operator would.
        for tries in range(_TRIES if self._kill_every_s else 1, 0, -1):
            done = subprocess.run(
                [*self._pgkeeper, "handoff", "--socket", self._socket],
                check=tries == 1,
                env=self._environment,
                stdout=subprocess.DEVNULL,
            )
            if done.returncode == 0:
                break
        # It holds nothing and has nothing to say.
        os.kill(older, signal.SIGKILL)
        self._stay_with(hanger)

    def _stay_with(self, hanger: int) -> None:
        """Pass signals on until the hanger has ended, and kill pgbouncer meanwhile."""
        (self._folder / _PIDS).write_text(f"{hanger} {os.getpid()}")
        handle = os.pidfd_open(hanger)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        kill_at = self._wait_to_kill()
        ready: dict[int, int] = {}
        while handle not in ready:
            left_ms = max(0.0, (kill_at - time.monotonic()) * 1000) if self._kill_every_s else None
            ready = dict(poll.poll(left_ms))
            if self._signals in ready:
                self._pass_on(hanger, handle)
            elif not ready:
                # Until then its child is one that says its version, if it has come that far.
                log = self._folder / HANGER_LOG
                if log.exists() and "bouncer-active" in log.read_text(errors="replace"):
                    _signal_children(hanger, signal.SIGKILL)
                kill_at = self._wait_to_kill()

    def _wait_to_kill(self) -> float:
        """When to kill next, on the monotonic clock: at no even pace."""
        return time.monotonic() + random.uniform(0.0, 2.0) * self._kill_every_s

    def _pass_on(self, hanger: int, handle: int) -> None:
        for byte in os.read(self._signals, 64):
            number = signal.Signals(byte)
            if number in _TO_HANGER:
                if _TO_HANGER[number] == signal.SIGTERM:
                    # It may say goodbye in peace.
                    self._kill_every_s = 0.0
                signal.pidfd_send_signal(handle, _TO_HANGER[number])
            else:
                _signal_children(hanger, number)


def _signal_children(parent: int, number: signal.Signals) -> None:
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), number)


def main() -> None:
    """See the module."""
    nursery, python, packages, kill_every_s, pgbouncer, *options, ini = sys.argv[1:]
    if ini.startswith("-"):
        os.execv(pgbouncer, [pgbouncer, *options, ini])  # --help, --version
    stand_in = StandIn(nursery, python, packages, float(kill_every_s), pgbouncer, ini)
    if "--reboot" in options:
        stand_in.reboot()
    else:
        stand_in.run()


if __name__ == "__main__":
    main()
