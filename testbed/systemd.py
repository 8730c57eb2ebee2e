"""The real systemd as process 1 of namespaces of its own, with no units but ours.

Nothing of the machine's own services is started, and nothing of it is seen by them: PIDs, mounts,
/run and control groups are its own, files and network the machine's. With its first process all
others end, so nothing is left however a run ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from testbed.errors import BedError, NotFoundError, ProcessFailedError
from testbed.logfile import LogFile
from testbed.process import Process, environment
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.rundir import RunDir

__all__ = ["UNITS", "Systemd", "unit_text"]

_ROOT: Final = Path(__file__).resolve().parent.parent
_PYTHON: Final = Path(sys.base_prefix).resolve()
UNITS: Final = _ROOT / "docker" / "systemd"

_SYSTEMD: Final = Path("/lib/systemd/systemd")
#: What every unit needs by default (systemd.special(7)).
_TARGETS: Final = ("sysinit", "basic", "shutdown", "multi-user")
_COMMAND_S: Final = 60.0
#: What the machine allows has been done; what fails from here on is a fault.
_READY: Final = "namespaces are ready"

# The run's folder, checkout and interpreter are bound to where /tmp and homes do not hide them.
_INIT: Final = """
set -e
echo $$ >"$1/cgroup.procs"
exec unshare --pid --fork --kill-child --mount --mount-proc --cgroup --ipc --uts \
    --propagation private bash -ec '
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "$7"
for pair in "bed:$2" "checkout:$3" "python:$4"; do
    mkdir "/run/${pair%%:*}"
    mount --bind "${pair#*:}" "/run/${pair%%:*}"
done
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_UNIT_PATH="$5" SYSTEMD_GENERATOR_PATH=/run/none \
    SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none \
    "$6" --system --unit=multi-user.target --log-target=null --show-status=no \
    --dump-core=no --crash-reboot=no --crash-shell=no
' bash "$@"
"""

_COMMAND: Final = """#!/run/python/{python}
import sys
sys.path[:0] = ["/run/checkout", "/run/checkout/{packages}"]
from pgkeeper.cli import main
main(prog_name="pgkeeper")
"""


def unit_text(name: str, *, user: str, ini: Path, pgkeeper: Path, pgbouncer: Path) -> str:
    """The unit file `name` of docker/systemd with these in place of what an installation has.

    Raises `NotFoundError` if it does not say where they go.
    """
    text = (UNITS / name).read_text()
    places = {
        "/opt/pgkeeper/bin/pgkeeper": str(pgkeeper),
        "/opt/pgkeeper/bin/pgbouncer": str(pgbouncer),
        "/etc/pgbouncer/pgbouncer.ini": str(ini),
        "User=pgbouncer\n": f"User={user}\n",
    }
    needed = set(places)
    if "ExecStart=/opt/pgkeeper/bin/pgkeeper" not in text:
        needed.discard("/opt/pgkeeper/bin/pgkeeper")
    if "--no-supervise" in text:
        needed.discard("/opt/pgkeeper/bin/pgbouncer")
    for place, here in places.items():
        if place in needed and place not in text:
            raise NotFoundError(f"{place} in {name}", "its test replaces it")
        text = text.replace(place, here)
    return text


class Systemd:
    """Starts it; use it as a context manager. Raises `NotFoundError` where it cannot run."""

    def __init__(self, run_dir: RunDir, name: str = "systemd") -> None:
        if os.geteuid() != 0:
            raise NotFoundError("a systemd of our own", "we are not root")
        if not os.access(_SYSTEMD, os.X_OK):
            raise NotFoundError(str(_SYSTEMD), "the package systemd is not installed")
        self._run_dir = run_dir
        self._folder = run_dir.folder(name)
        self._units = self._folder / "units"
        self._units.mkdir()
        self.output = LogFile(self._folder / "output.log")
        for target in _TARGETS:
            self.install(f"{target}.target", "[Unit]\nDefaultDependencies=no\n")
        output = self.inside(self.output.path)
        self.install("service.d/output.conf", f"[Service]\nStandardOutput=append:{output}\n")
        command = self._folder / "pgkeeper"
        packages = Path(sysconfig.get_path("purelib")).relative_to(_ROOT)
        python = Path(sys.executable).resolve().relative_to(_PYTHON)
        command.write_text(_COMMAND.format(python=python, packages=packages))
        command.chmod(0o755)
        self.pgkeeper = self.inside(command)
        """The command, for units."""
        self._cgroup = _new_cgroup(f"pgkeeper-{run_dir.run_id}-{name}")
        self._process: Process | None = None
        self._init = 0

    def __enter__(self) -> Systemd:
        try:
            self._start()
        except BaseException:
            with contextlib.suppress(BedError):
                self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def inside(self, path: Path) -> Path:
        """Where a file of the run lies for its services."""
        if path.is_relative_to(self._run_dir.path):
            return Path("/run/bed") / path.relative_to(self._run_dir.path)
        return path

    def outside(self, path: Path) -> Path:
        """Where a file lies for us that lies at `path` for its services."""
        return Path(f"/proc/{self._init}/root") / path.relative_to("/")

    def install(self, name: str, text: str) -> None:
        """Write a unit, or a `NAME.d/ANY.conf`; where it is loaded already, `daemon-reload`."""
        path = self._units / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def control(self, *words: str, check: bool = True) -> str:
        """`systemctl WORDS`; its output. Raises `ProcessFailedError`."""
        done = subprocess.run(
            ["nsenter", f"--target={self._init}", "--mount", "--pid", "systemctl", *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            env=environment(f"{self._run_dir.run_id}/systemctl"),
        )
        if check and done.returncode:
            reason = f"systemctl {' '.join(words)}: {done.stderr}"
            raise ProcessFailedError("systemctl", reason, self.output.tail())
        return done.stdout

    def property(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` prints it."""
        return self.control("show", "--value", f"--property={name}", unit).strip()

    def pid(self, inner: int) -> int:
        """The pid that process `inner` of its namespace has for us. Raises `NotFoundError`."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._number_inside(int(entry.name)) == str(inner):
                return int(entry.name)
        raise NotFoundError(f"process {inner}", "it has ended")

    def close(self) -> None:
        """End it and all that it has started."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None
        wait_until(self._remove_cgroup, what="its control groups are empty")

    def _start(self) -> None:
        folders = (self._cgroup, self._run_dir.path, _ROOT, _PYTHON)
        words = (*folders, self.inside(self._units), _SYSTEMD, _READY)
        self._process = Process(
            self._run_dir,
            self._folder.name,
            ["bash", "-c", _INIT, "bash", *words],
            output=self.output.path,
            privileged=True,
        )
        wait_until(self._running, what="systemd answers", seconds=30)

    def _running(self) -> bool:
        assert self._process is not None  # noqa: S101 - it has just been started
        if not self._process.running:
            if _READY in self.output.read():
                raise ProcessFailedError("systemd", "it ended", self.output.tail())
            raise NotFoundError("namespaces for a systemd", self.output.tail())
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        pids = children.read_text().split()
        if not pids:
            return False
        self._init = int(pids[0])
        answer = self.control("is-system-running", check=False).strip()
        return answer in ("running", "degraded")

    def _number_inside(self, pid: int) -> str:
        """The number of `pid` in the namespace of our systemd; empty if it is not of it."""
        with contextlib.suppress(OSError):
            ours = Path(f"/proc/{self._init}/ns/pid").readlink()
            if Path(f"/proc/{pid}/ns/pid").readlink() == ours:
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("NSpid:"):
                        return line.split()[-1]
        return ""

    def _remove_cgroup(self) -> bool:
        for folder in _bottom_up(self._cgroup):
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return False  # the kernel has not taken leave of the last process yet
        return True


def _bottom_up(folder: Path) -> Iterator[Path]:
    for path, _, _ in os.walk(folder, topdown=False):
        yield Path(path)


def _new_cgroup(name: str) -> Path:
    """A control group below our own in the unified hierarchy. Raises `NotFoundError`."""
    root = _cgroup2_mount()
    own = next(
        line.partition("::")[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    folder = root / own.lstrip("/") / name
    try:
        folder.mkdir()
    except OSError as error:
        raise NotFoundError("a control group of our own", f"{folder}: {error.strerror}") from None
    return folder


def _cgroup2_mount() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[words.index("-") + 1] == "cgroup2":
            return Path(words[4])
    raise NotFoundError("a control group of our own", "no cgroup2 is mounted")
