"""Runs PgBouncer's own pytest suite, as it comes with the source, against a given binary."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from testbed.account import give
from testbed.errors import LeftBehindError, NotFoundError, ProcessFailedError
from testbed.pginstall import PgInstall, installation, usable_installation
from testbed.process import Process
from testbed.waiting import wait_until
from tests.suites import nursery, stand_in
from tests.suites.evidence import Evidence, collect
from tests.suites.interpreter import hanger_packages, usable_interpreter
from tests.suites.outcomes import functions_in, read_junit, read_left_out

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.rundir import RunDir
    from tests.suites.interpreter import Interpreter
    from tests.suites.outcomes import Outcome

Part = Literal["plain", "tls"]

LEFT_OUT = read_left_out(Path(__file__).with_name("left_out.toml"))

# Nearly all of its time the suite sleeps: two processors bear four at once.
_WORKERS = 4
_PATIENCE_S = 15 * 60.0
_UPSTREAMS_TRIES = "if tries > 50:"
_TRIES = "if tries > 250:"
_DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Run:
    """What ran and how it ended. `tree` is the copy of upstream's files that ran."""

    outcomes: dict[str, Outcome]
    tree: Path
    part: Part
    evidence: Evidence
    killed: bool = False

    def expected(self, files: Sequence[str] = ()) -> list[str]:
        """FILE::FUNCTION of every test that this part of the suite consists of, in `files` if any
        are named; less those that cannot be run under kills, if it was."""
        wanted = self.part == "tls"
        return [
            test
            for test in functions_in(self.tree / "test")
            if LEFT_OUT.needs_tls(test) is wanted
            and (not files or test.partition("::")[0] in files)
            and not (self.killed and test in LEFT_OUT.killed)
        ]


class UpstreamSuite:
    """The suite of one source tree, run as often as wanted in one run's directory."""

    def __init__(self, run_dir: RunDir, source: Path) -> None:
        self._run_dir = run_dir
        self._source = source
        self._ports = run_dir.path / "suite-ports"
        self._bytecode = run_dir.path / "suite-bytecode"
        self._nursery = run_dir.folder("nursery") / "socket"
        self._kept: set[Path] = set()
        self._killed: set[Path] = set()

    def copy(
        self, name: str, binary: Path, *, kept: bool = False, kill_every_s: float = 0.0
    ) -> Path:
        """What of the source tree the suite reads, beside `binary`, owned by the account.

        The suite expects the executable in the folder above its own, makes its certificates in
        its own, and reads a limit and the TLS support from the source. `name` must be new. With
        `kept` each pgbouncer that it starts has a hanger of its own; `kill_every_s`: and is killed
        again and again, see `stand_in`.
        """
        tree = self._run_dir.folder(name)
        for part in ("test", "pyproject.toml", "config.mak", "include/bouncer.h"):
            source, target = self._source / part, tree / part
            target.parent.mkdir(exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
        program = tree / "pgbouncer"
        if kept:
            program.write_text(self._stand_in(binary, kill_every_s))
            _be_patient(tree / "test" / "utils.py")
            self._kept.add(tree)
            if kill_every_s:
                self._killed.add(tree)
        else:
            shutil.copyfile(binary, program)
        program.chmod(0o755)
        for path in (tree, *tree.rglob("*")):
            give(path, self._run_dir.account)
        return tree

    def _stand_in(self, binary: Path, kill_every_s: float) -> str:
        """A script that the suite takes for pgbouncer; see `stand_in`."""
        python = usable_interpreter(self._run_dir)
        script = self._run_dir.path / "stand_in.py"
        if not script.exists():
            shutil.copyfile(stand_in.__file__, script)
            script.chmod(0o644)
        packages = hanger_packages(self._run_dir)
        cache = f"-Xpycache_prefix={self._bytecode}"
        words = (
            *(python.executable, "-I", "-S", cache, script),
            *(self._nursery, python.executable, packages, kill_every_s),
            self._run_dir.usable(binary),
        )
        command = shlex.join(map(str, words))
        return f'#!/bin/sh\nexec {command} "$@"\n'

    def run(self, tree: Path, part: Part, only: Sequence[str] = ()) -> Run:
        """Run a part of the suite (`only` these tests or files, if given) in a tree from `copy`.

        Raises `ProcessFailedError` if pytest itself fails, `NotFoundError` if the machine lacks
        something, `LeftBehindError` if something still runs afterwards.
        """
        name = f"{tree.name}-{part}"
        postgres = tls_installation() if part == "tls" else usable_installation(self._run_dir)
        if postgres is None:
            raise NotFoundError("a PostgreSQL with OpenSSL", "apt-get install postgresql")
        python = usable_interpreter(self._run_dir)
        log = self._run_dir.path / f"{name}.log"
        report = tree / f"{part}.xml"
        environment = self._environment(tree, postgres, python)
        with _alone(), self._hangers(tree, name, python, environment):
            process = Process(
                self._run_dir,
                name,
                [
                    *_command(python, tree, part, report),
                    *_selection(tree, part, only, killed=tree in self._killed),
                ],
                output=log,
                env=environment,
            )
            try:
                code = process.wait(_PATIENCE_S)
            finally:
                if process.running:
                    # pytest ends its servers when it is interrupted.
                    process.stop(signal.SIGINT, 60.0)
        # 1: tests have failed, which is for the caller to judge.
        if code not in (0, 1):
            raise ProcessFailedError(name, f"pytest ended with {code}", log.read_text()[-5000:])
        if left := self._run_dir.processes(name):
            raise LeftBehindError("PgBouncer's own suite", left)
        evidence = collect(tree / part[0], killed=tree in self._killed)
        # Half a gigabyte of clusters.
        shutil.rmtree(tree / part[0])
        return Run(read_junit(report), tree, part, evidence, killed=tree in self._killed)

    @contextmanager
    def _hangers(
        self, tree: Path, name: str, python: Interpreter, environment: dict[str, str]
    ) -> Iterator[None]:
        """Where hangers for a tree come from, if it wants any; see `nursery`."""
        if tree not in self._kept:
            yield
            return
        script = self._run_dir.path / "nursery.py"
        shutil.copyfile(nursery.__file__, script)
        script.chmod(0o644)
        process = Process(
            self._run_dir,
            name,
            [python.executable, "-S", script, self._nursery],
            output=self._run_dir.path / f"{name}-nursery.log",
            env={**environment, "PYTHONPATH": str(hanger_packages(self._run_dir))},
        )
        try:
            wait_until(self._nursery.exists, what="the nursery listens")
            yield
        finally:
            process.stop(signal.SIGTERM)
            self._nursery.unlink()

    def _environment(self, tree: Path, postgres: PgInstall, python: Interpreter) -> dict[str, str]:
        # The suite's locks on ports are files in the temporary folder. Hundreds of hangers start
        # here: they need not compile themselves each.
        for folder in (self._ports, self._bytecode):
            if not folder.exists():
                folder.mkdir(mode=0o755)
                give(folder, self._run_dir.account)
        libraries = [str(folder) for folder in python.libraries]
        if (postgres.bin_dir.parent / "lib" / "libpq.so.5").exists():
            libraries.append(str(postgres.bin_dir.parent / "lib"))
        if inherited := os.environ.get("LD_LIBRARY_PATH"):
            libraries.append(inherited)
        return {
            "PATH": f"{postgres.bin_dir}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(libraries),
            "PYTHONPATH": str(python.packages),
            "PYTHONPYCACHEPREFIX": str(self._bytecode),
            "PYTHONIOENCODING": "utf8",
            "PYTHONWARNINGS": "",
            "PYTEST_ADDOPTS": "",
            # libpq looks for certificates below it.
            "HOME": str(tree),
            "TMPDIR": str(self._ports),
            "HAVE_IPV6_LOCALHOST": "yes" if "ipv6" in facilities() else "",
            "USE_SUDO": "",
            "ENABLE_VALGRIND": "",
        }


def _be_patient(utils: Path) -> None:
    """Let a start take longer than upstream's five seconds: a hanger comes first.

    A suite that gave up would leave both behind.
    """
    text = utils.read_text()
    assert text.count(_UPSTREAMS_TRIES) == 1
    utils.write_text(text.replace(_UPSTREAMS_TRIES, _TRIES))


def facilities() -> frozenset[str]:
    """What this machine lets the suite use, by the names in left_out.toml.

    `network`, the control of it, is never given, even to root.
    """
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return frozenset()
    return frozenset({"ipv6"})


def tls_installation() -> PgInstall | None:
    """A PostgreSQL with psql, built with OpenSSL: the test bed's, else the newest of Debian's."""
    return next((found for found in _installations() if _has_tls(found)), None)


def _installations() -> Iterator[PgInstall]:
    yield installation()
    versions = [path for path in _DEBIAN.glob("*") if path.name.isdigit()]
    for path in sorted(versions, key=lambda path: int(path.name), reverse=True):
        yield PgInstall(path / "bin", int(path.name))


def _has_tls(found: PgInstall) -> bool:
    programs = [found.program(name) for name in ("postgres", "initdb", "psql")]
    if not all(program.is_file() for program in programs):
        return False
    linked = subprocess.run(
        ["ldd", *programs[:1]], check=False, capture_output=True, text=True
    ).stdout
    return re.search(r"\blibssl\b", linked) is not None


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for any other suite on this machine: all take their ports from 10201 upwards, and look
    whether a port is free long before they bind it.

    The lock is an abstract socket address: it leaves no file and cannot outlive its process.
    """
    with socket.socket(socket.AF_UNIX) as lock:

        def locked() -> bool:
            try:
                lock.bind("\0pgkeeper-pgbouncer-suite")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return False
            return True

        wait_until(locked, what="another PgBouncer suite ends", seconds=_PATIENCE_S, poll_s=0.5)
        yield


def _command(python: Interpreter, tree: Path, part: Part, report: Path) -> list[str | Path]:
    return [
        *(python.executable, "-S", "-m", "pytest", "-p", "no:cacheprovider", "-q"),
        *("--numprocesses", str(_WORKERS), "--dist", "worksteal"),
        *("--override-ini", "junit_family=xunit2", f"--junitxml={report}"),
        # Upstream's 30 s are too few for initdb in each worker of a busy machine.
        *("--override-ini", "timeout=120"),
        # A short path: a Unix socket's may have 107 bytes.
        f"--basetemp={tree / part[0]}",
    ]


def _selection(tree: Path, part: Part, only: Sequence[str], *, killed: bool) -> list[str]:
    """Absolute paths: the suite changes the working directory while it is loaded."""
    apart = LEFT_OUT.tls if part == "plain" else ()
    without = [f"--deselect=test/{test}" for test in (*apart, *(LEFT_OUT.killed if killed else ()))]
    if only or part == "tls":
        return [*(f"{tree}/test/{test}" for test in only or LEFT_OUT.tls), *without]
    return [f"{tree}/test", *without]
