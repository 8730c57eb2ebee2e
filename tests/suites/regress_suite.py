"""Runs PostgreSQL's own regression tests, as they come with its source, through a pooler."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.account import give
from testbed.errors import NotFoundError, ProcessFailedError
from testbed.pginstall import installation, usable_installation
from testbed.process import Process
from tests.suites.outcomes import Outcome
from tests.suites.regress_source import PIN, TESTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from testbed.pooler import Pooler
    from testbed.rundir import RunDir

# What the tests expect of a server. pg_regress sends the last three with each startup message, and
# RESET goes back to them. What PgBouncer was sent it sets in the session, so that RESET goes back
# to the server's own.
SERVER: dict[str, str | int] = {
    "autovacuum": "on",
    "max_prepared_transactions": 2,
    "shared_buffers": "128MB",
    "synchronous_commit": "on",
    "DateStyle": "Postgres, MDY",
    "IntervalStyle": "postgres_verbose",
    "TimeZone": "America/Los_Angeles",
}
POOLER: dict[str, str | int | None] = {
    "pool_mode": "session",
    "default_pool_size": 100,
    "log_connections": 0,
    "log_disconnections": 0,
}
_DRIVER = Path("lib/pgxs/src/test/regress/pg_regress")
# Libraries that the tests load, of PostgreSQL's contrib.
_CONTRIB = ("autoinc", "refint")
_PATIENCE_S = 15 * 60.0
# Of pg_regress's output (log_child_failure() and test_status_print() in its source).
_ENDED = re.compile(r"(not )?ok +\d+ +[-+] (\S+) +\d+ ms")
_DIED = re.compile(r"# \((test process .*)\)")


@dataclass(frozen=True, slots=True)
class Difference:
    """Tests of whose results no other lines differ than these, a + or - before each."""

    tests: tuple[str, ...]
    lines: frozenset[str]

    def explains(self, test: str, outcome: Outcome) -> bool:
        """Whether `outcome` of `test` is this difference."""
        changed = {line for line in outcome.output.splitlines() if line[:1] in ("+", "-")}
        return (
            test in self.tests
            and outcome.status == "failed"
            and not outcome.message
            and bool(changed)
            and {line.rstrip() for line in changed} <= self.lines
        )


def read_differences(path: Path, kind: str) -> tuple[Difference, ...]:
    """Read a list of regress.toml. Raises KeyError for an entry without what it must have."""
    entries = tomllib.loads(path.read_text())[kind]
    if not all(entry["reason"].strip() for entry in entries):
        raise KeyError("reason")
    return tuple(
        Difference(tuple(entry["tests"]), frozenset(entry["lines"].strip().splitlines()))
        for entry in entries
    )


_LIST = Path(__file__).with_name("regress.toml")
_FAILS = read_differences(_LIST, "fails")
_MAY_FAIL = read_differences(_LIST, "may_fail")


def why_not() -> str | None:
    """Why this machine cannot run the tests, if it cannot."""
    if not TESTS.is_dir():
        return "PostgreSQL's own tests are not here: ./dev setup says why"
    install = installation()
    answer = subprocess.run(
        [install.program("postgres"), "--version"], check=True, capture_output=True, text=True
    )
    if answer.stdout.split()[-1] != PIN.version:
        return f"PostgreSQL's own tests are those of {PIN.version}: {answer.stdout.strip()}"
    if not (install.bin_dir.parent / _DRIVER).is_file():
        return "this PostgreSQL comes without pg_regress"
    return None


def whole() -> list[list[str]]:
    """The names of all tests; those of a group run at once."""
    lines = (TESTS / "parallel_schedule").read_text().splitlines()
    return [line.split()[1:] for line in lines if line.startswith("test:")]


def run(
    run_dir: RunDir, pooler: Pooler, name: str, groups: Sequence[Sequence[str]]
) -> dict[str, Outcome]:
    """Run groups of tests through a pooler; the outcomes by name.

    The output of one that failed is the diff, its message how psql ended if not in order. Raises
    `NotFoundError` without a compiler, `ProcessFailedError` if pg_regress itself fails.
    """
    inputs = _inputs(run_dir)
    library = _library(run_dir)
    install = usable_installation(run_dir)
    folder = run_dir.folder(name)
    schedule = folder / "schedule"
    schedule.write_text("".join(f"test: {' '.join(group)}\n" for group in groups))
    log = run_dir.path / f"{name}.log"
    process = Process(
        run_dir,
        name,
        [
            *(install.bin_dir.parent / _DRIVER, f"--bindir={install.bin_dir}"),
            *(f"--inputdir={inputs}", f"--expecteddir={inputs}", f"--outputdir={folder}"),
            *(f"--dlpath={library}", f"--schedule={schedule}", "--max-concurrent-tests=20"),
            *(f"--host={pooler.host}", f"--port={pooler.port}", "--user=postgres"),
        ],
        output=log,
    )
    code = process.wait(_PATIENCE_S)
    # 1: tests have failed, which is for the caller to judge.
    if code not in (0, 1):
        raise ProcessFailedError(name, f"pg_regress ended with {code}", log.read_text()[-5000:])
    diffs = folder / "regression.diffs"
    # A few results hold bytes of other encodings.
    return read_outcomes(
        log.read_text(), diffs.read_text(errors="replace") if diffs.exists() else ""
    )


def _inputs(run_dir: RunDir) -> Path:
    """The tests, where the account can read them and the server can write beside them."""
    folder = run_dir.path / "regress-inputs"
    if not folder.exists():
        shutil.copytree(TESTS, folder, copy_function=shutil.copyfile)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def _library(run_dir: RunDir) -> Path:
    """The folder of what the tests load into the server, compiled for it."""
    folder = run_dir.path / "regress-library"
    if not folder.exists():
        folder.mkdir(mode=0o755)
        install = installation()
        headers, libraries = subprocess.run(
            [install.program("pg_config"), "--includedir-server", "--pkglibdir"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        made = folder / "regress.so"
        command = ["cc", "-shared", "-fPIC", f"-I{headers}", "-o", made, TESTS / "regress.c"]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except FileNotFoundError:
            raise NotFoundError("cc", "run ./dev setup") from None
        if done.returncode:
            raise ProcessFailedError("cc", f"exit code {done.returncode}", done.stderr[-5000:])
        for name in _CONTRIB:
            shutil.copyfile(Path(libraries) / f"{name}.so", folder / f"{name}.so")
        for path in folder.iterdir():
            path.chmod(0o755)
            give(path, run_dir.account)
    return folder


def read_outcomes(log: str, diffs: str) -> dict[str, Outcome]:
    """What pg_regress said of each test, with the parts of its regression.diffs."""
    found: dict[str, Outcome] = {}
    shown = _by_test(diffs)
    last = ""
    for line in log.splitlines():
        if ended := _ENDED.match(line):
            last = ended[2]
            found[last] = Outcome("passed")
            if ended[1]:
                found[last] = Outcome("failed", "", shown.get(last, ""))
        elif died := _DIED.match(line):
            found[last] = Outcome("failed", died[1], shown.get(last, ""))
    return found


def _by_test(diffs: str) -> dict[str, str]:
    """The diffs without their heads, by the tests whose results they are of."""
    parts = re.split(r"^diff -U3 .*\n--- .*\n\+\+\+ .*/results/(.*)\.out\t.*\n", diffs, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def complaints(
    outcomes: Mapping[str, Outcome], groups: Sequence[Sequence[str]], *, reused: bool
) -> list[str]:
    """A line for each test that did not run, or ended otherwise than it should.

    `reused`: the pooler gave a server process to one client after another.
    """
    found = [f"{test} did not run" for group in groups for test in group if test not in outcomes]
    for test, outcome in outcomes.items():
        must = [entry for entry in _FAILS if test in entry.tests]
        may = [*must, *_MAY_FAIL] if reused else must
        right = any(entry.explains(test, outcome) for entry in may)
        if not right and (outcome.status != "passed" or (must and not reused)):
            found.append(f"{test} {outcome.status}: {outcome.message}\n{outcome.output[:3000]}")
    return found
