"""What a run of PgBouncer's own suite came to, and whether that is what it should come to."""

from __future__ import annotations

import ast
import itertools
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

Status = Literal["passed", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended: `message` is the skip's reason or the error, `output` all of the rest."""

    status: Status
    message: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Tests that the suite skips, with `message`, unless the machine has `facility`."""

    facility: str
    tests: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class Racing:
    """A test that may fail with `message`, with `where` in the traceback, whatever PgBouncer does.

    It certainly does so with `forced` in its source in place of `found`.
    """

    test: str
    message: str
    where: str
    found: str
    forced: str

    def excuses(self, test: str, outcome: Outcome) -> bool:
        """Whether `outcome` of `test` is this failure."""
        return (
            test == self.test
            and outcome.status == "failed"
            and re.search(self.message, outcome.message) is not None
            and re.search(self.where, outcome.output, re.MULTILINE) is not None
        )


@dataclass(frozen=True, slots=True)
class ByDesign:
    """Tests that fail with the keeper on, with `message`: a kept PgBouncer means to differ."""

    tests: tuple[str, ...]
    message: str

    def explains(self, outcome: Outcome) -> bool:
        """Whether `outcome` is this failure."""
        return outcome.status == "failed" and re.search(self.message, outcome.message) is not None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The content of left_out.toml; `tls` names tests and files of tests, `killed` tests."""

    skipped: tuple[Skipped, ...]
    racing: tuple[Racing, ...]
    by_design: tuple[ByDesign, ...]
    tls: tuple[str, ...]
    killed: tuple[str, ...] = ()

    def needs_tls(self, test: str) -> bool:
        """Whether `test` (FILE::TEST) runs only with a PostgreSQL that has OpenSSL."""
        return test in self.tls or test.partition("::")[0] in self.tls

    def may_race(self, test: str, outcome: Outcome) -> bool:
        """Whether `test` is known to be able to end so, whatever PgBouncer does."""
        return any(entry.excuses(test, outcome) for entry in self.racing)

    def differs(self, test: str) -> ByDesign | None:
        """Why `test` has to fail with the keeper on, if it has."""
        return next((entry for entry in self.by_design if test in entry.tests), None)

    def skips(self, test: str, outcome: Outcome, facilities: frozenset[str]) -> bool:
        """Whether the suite was right to skip `test` on a machine with these facilities."""
        return outcome.status == "skipped" and any(
            test in entry.tests
            and entry.facility not in facilities
            and re.search(entry.message, outcome.message)
            for entry in self.skipped
        )


def read_left_out(path: Path) -> LeftOut:
    """Read left_out.toml. Raises KeyError for an entry without what it must have."""
    table = tomllib.loads(path.read_text())
    lists = (table[kind] for kind in ("skipped", "racing", "by_design", "killed"))
    for entry in (*itertools.chain.from_iterable(lists), table["tls"]):
        if not entry["reason"].strip():
            raise KeyError("reason")
    return LeftOut(
        tuple(
            Skipped(entry["facility"], tuple(entry["tests"]), entry["message"])
            for entry in table["skipped"]
        ),
        tuple(
            Racing(*(entry[key] for key in ("test", "message", "where", "found", "forced")))
            for entry in table["racing"]
        ),
        tuple(ByDesign(tuple(entry["tests"]), entry["message"]) for entry in table["by_design"]),
        tuple(table["tls"]["tests"]),
        tuple(test for entry in table["killed"] for test in entry["tests"]),
    )


def read_junit(path: Path) -> dict[str, Outcome]:
    """The outcomes by FILE::TEST, or FILE::CLASS::TEST, from pytest's JUnit XML (xunit2).

    A test that fails and whose clean-up fails too has two entries there: the failures are joined.
    """
    found: dict[str, Outcome] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        names = case.attrib["classname"].split(".")
        module = next(i for i, name in enumerate(names) if name.startswith("test_"))
        test = "::".join([f"{names[module]}.py", *names[module + 1 :], case.attrib["name"]])
        outcome = _outcome(case)
        earlier = found.get(test)
        if earlier is not None and "failed" in (earlier.status, outcome.status):
            parts = [part for part in (earlier, outcome) if part.status == "failed"]
            outcome = Outcome(
                "failed",
                "; ".join(part.message for part in parts),
                "\n".join(part.output for part in parts),
            )
        found[test] = outcome
    return found


def _outcome(case: ElementTree.Element) -> Outcome:
    # An error is a failure of a fixture; a test can have both.
    broken = [*case.findall("failure"), *case.findall("error")]
    if broken:
        message = "; ".join(element.get("message", "") for element in broken)
        texts = [element.text or "" for element in (*broken, *case.findall("system-out"))]
        return Outcome("failed", message, "\n".join(texts))
    skip = case.find("skipped")
    if skip is not None:
        return Outcome("skipped", skip.get("message", ""))
    return Outcome("passed")


def functions_in(folder: Path) -> Iterator[str]:
    """FILE::FUNCTION of each test function in PgBouncer's test/, read from the source alone."""
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            # One of its fixtures is called test_message_fixture.
            fixture = any("fixture" in ast.unparse(line) for line in node.decorator_list)
            if node.name.startswith("test_") and not fixture:
                yield f"{path.name}::{node.name}"


def complaints(
    outcomes: Mapping[str, Outcome],
    expected: Sequence[str],
    left_out: LeftOut,
    facilities: frozenset[str],
    *,
    kept: bool = False,
) -> list[str]:
    """What is not as it should be: a line for each test of `expected` that did not run, and for
    each that ran and neither passed nor is left out for the reason given.

    With the keeper on (`kept`) also for each that passed though it is known to differ by design.
    """
    run = {test.partition("[")[0] for test in outcomes}
    found = [f"{test} did not run" for test in expected if test not in run]
    for test, outcome in outcomes.items():
        entry = left_out.differs(test) if kept else None
        if entry is not None:
            if not entry.explains(outcome):
                found.append(f"{test} {outcome.status}, not as left out: {outcome.message}")
            continue
        if outcome.status == "passed" or left_out.may_race(test, outcome):
            continue
        if not left_out.skips(test, outcome, facilities):
            found.append(f"{test} {outcome.status}: {outcome.message}")
    return found


def differences(
    one: Mapping[str, Outcome], other: Mapping[str, Outcome], left_out: LeftOut
) -> list[str]:
    """A line for each test that ended differently in two runs; a known race is no difference."""
    found = []
    for test in sorted(one.keys() | other.keys()):
        pair = (one.get(test), other.get(test))
        if any(outcome is not None and left_out.may_race(test, outcome) for outcome in pair):
            continue
        statuses = [outcome.status if outcome is not None else "not run" for outcome in pair]
        if statuses[0] != statuses[1]:
            found.append(f"{test}: {statuses[0]} and {statuses[1]}")
    return found
