"""Runs asyncpg's own test suite, as it comes with its source, against a pooler."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import NotFoundError, ProcessFailedError
from testbed.process import environment
from tests.suites.outcomes import read_junit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from testbed.pooler import Pooler
    from testbed.rundir import RunDir
    from tests.suites.outcomes import Outcome

# `./dev setup` fills it from tests/suites/asyncpg.txt.
TESTS = Path(sys.prefix) / "asyncpg-suite" / "tests"
# What the suite's sessions need of a pooler that is no PostgreSQL.
SETTINGS: dict[str, str | int | None] = {
    "pool_mode": "session",
    "default_pool_size": 100,
    "ignore_startup_parameters": "extra_float_digits,jit,options",
    "log_connections": 0,
    "log_disconnections": 0,
}
_PATIENCE_S = 15 * 60.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Tests that fail with a message that contains these words."""

    tests: tuple[str, ...]
    message: str

    def explains(self, test: str, outcome: Outcome) -> bool:
        """Whether `outcome` of `test` is this failure."""
        return test in self.tests and outcome.status == "failed" and self.message in outcome.message


def read_failures(path: Path, kind: str) -> tuple[Failure, ...]:
    """Read a list of asyncpg.toml. Raises KeyError for an entry without what it must have."""
    entries = tomllib.loads(path.read_text())[kind]
    if not all(entry["reason"].strip() for entry in entries):
        raise KeyError("reason")
    return tuple(Failure(tuple(entry["tests"]), entry["message"]) for entry in entries)


_LIST = Path(__file__).with_name("asyncpg.toml")
_FAILS = read_failures(_LIST, "fails")
_MAY_FAIL = read_failures(_LIST, "may_fail")


def run(
    run_dir: RunDir, pooler: Pooler, name: str, files: Sequence[str] = ()
) -> dict[str, Outcome]:
    """Run the suite, or `files` of it, through a pooler; the outcomes by FILE::CLASS::TEST.

    Raises `NotFoundError` without the suite, `ProcessFailedError` if pytest itself fails.
    """
    if not TESTS.is_dir():
        raise NotFoundError("asyncpg's own suite", "run ./dev setup")
    folder = run_dir.folder(name)
    shutil.copytree(TESTS, folder / "tests")
    report = folder / "report.xml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=120"),
            *("--rootdir", folder, "-c", "/dev/null", f"--junitxml={report}"),
            *(f"tests/{file}" for file in files or [""]),
        ],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        env=environment(f"{run_dir.run_id}/{name}", _login(pooler)),
    )
    # 1: tests have failed, which is for the caller to judge.
    if done.returncode not in (0, 1):
        raise ProcessFailedError(
            name, f"pytest ended with {done.returncode}", done.stdout[-5000:] + done.stderr[-2000:]
        )
    return read_junit(report)


def _login(pooler: Pooler) -> dict[str, str]:
    return {
        "PGHOST": pooler.host,
        "PGPORT": str(pooler.port),
        "PGUSER": "postgres",
        "PGDATABASE": "postgres",
        # A connect that a test gives up while its SSLRequest is unanswered, which takes longer
        # while nobody serves, leaves an exception behind of which asyncpg complains.
        "PGSSLMODE": "disable",
        # A wheel can be imported as it is.
        "PYTHONPATH": ":".join(map(str, TESTS.parent.glob("*.whl"))),
        # No server is to be found: the suite would start its own.
        "PGINSTALLATION": "/nonexistent",
    }


def complaints(outcomes: Mapping[str, Outcome], *, killed: bool = False) -> list[str]:
    """A line for each test that failed though it could pass, or the other way round."""
    found = []
    for test, outcome in outcomes.items():
        entry = next((entry for entry in _FAILS if test in entry.tests), None)
        if entry is not None:
            right = entry.explains(test, outcome)
        else:
            right = outcome.status != "failed" or (
                killed and any(entry.explains(test, outcome) for entry in _MAY_FAIL)
            )
        if not right:
            found.append(f"{test} {outcome.status}: {outcome.message}\n{outcome.output[-3000:]}")
    return found
