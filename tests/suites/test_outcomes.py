"""What the verdict on a run of PgBouncer's own suite is worth: each way to be wrong is noticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.suites.outcomes import (
    ByDesign,
    LeftOut,
    Outcome,
    Racing,
    Skipped,
    complaints,
    differences,
    functions_in,
    read_junit,
    read_left_out,
)

NOTHING: frozenset[str] = frozenset()
LEFT_OUT = LeftOut(
    (Skipped("ipv6", ("test_a.py::test_six",), "not SIX"),),
    (Racing("test_a.py::test_race", "^Aborted$", "^test_a.py:7: in test_race$", "try", "sleep"),),
    (ByDesign(("test_a.py::test_signal",), "^gone$"),),
    ("test_tls.py", "test_a.py::test_cert"),
)
PASSED = Outcome("passed")
RACED = Outcome("failed", "Aborted", "test_a.py:7: in test_race\n    p.sync()\nE   Aborted")


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_a.py::test_one", Outcome("failed", "assert 1 == 2")),
        ("test_a.py::test_one", Outcome("skipped", "condition: not SIX")),
        ("test_a.py::test_six", Outcome("skipped", "for another reason")),
        ("test_a.py::test_six", Outcome("failed", "condition: not SIX")),
        ("test_a.py::test_race", replace(RACED, message="Aborted; and at its end more")),
        ("test_a.py::test_race", replace(RACED, output="test_a.py:9: in test_race\n    p.sync()")),
        ("test_a.py::test_race", Outcome("skipped", "Aborted")),
        ("test_a.py::test_one", RACED),
    ],
)
def test_an_outcome_that_nothing_excuses_is_a_complaint(test: str, outcome: Outcome) -> None:
    found = complaints({test: outcome}, [], LEFT_OUT, NOTHING)
    assert found == [f"{test} {outcome.status}: {outcome.message}"]


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_a.py::test_one", PASSED),
        ("test_a.py::test_six", PASSED),
        ("test_a.py::test_six", Outcome("skipped", "condition: not SIX")),
        ("test_a.py::test_race", PASSED),
        ("test_a.py::test_race", RACED),
    ],
)
def test_what_passed_or_is_left_out_is_no_complaint(test: str, outcome: Outcome) -> None:
    assert complaints({test: outcome}, [test], LEFT_OUT, NOTHING) == []


def test_what_differs_by_design_has_to_differ_if_and_only_if_the_keeper_is_on() -> None:
    test = "test_a.py::test_signal"
    gone = {test: Outcome("failed", "gone")}
    assert complaints(gone, [test], LEFT_OUT, NOTHING, kept=True) == []
    assert complaints(gone, [test], LEFT_OUT, NOTHING) == [f"{test} failed: gone"]
    assert complaints({test: PASSED}, [test], LEFT_OUT, NOTHING) == []
    for other in (PASSED, Outcome("failed", "else"), Outcome("skipped", "gone")):
        assert complaints({test: other}, [test], LEFT_OUT, NOTHING, kept=True) == [
            f"{test} {other.status}, not as left out: {other.message}"
        ]


def test_a_skip_is_a_complaint_where_the_facility_is_there() -> None:
    outcomes = {"test_a.py::test_six": Outcome("skipped", "condition: not SIX")}
    assert complaints(outcomes, [], LEFT_OUT, frozenset({"ipv6"})) == [
        "test_a.py::test_six skipped: condition: not SIX"
    ]


def test_a_test_that_did_not_run_is_a_complaint() -> None:
    outcomes = {"test_a.py::test_one[x-1]": PASSED}
    expected = ["test_a.py::test_one", "test_a.py::test_two"]
    assert complaints(outcomes, expected, LEFT_OUT, NOTHING) == ["test_a.py::test_two did not run"]


def test_differences_are_named_from_both_sides() -> None:
    one = {"a": PASSED, "b": PASSED, "c": Outcome("skipped"), "test_a.py::test_race": PASSED}
    other = {
        "a": PASSED,
        "c": PASSED,
        "d": PASSED,
        "test_a.py::test_race": RACED,
    }
    assert differences(one, other, LEFT_OUT) == [
        "b: passed and not run",
        "c: skipped and passed",
        "d: not run and passed",
    ]
    other["test_a.py::test_race"] = replace(RACED, message="else")
    assert "test_a.py::test_race: passed and failed" in differences(one, other, LEFT_OUT)


def test_tls_is_needed_by_whole_files_and_by_single_tests() -> None:
    needing = ["test_tls.py::test_any", "test_a.py::test_cert"]
    assert all(LEFT_OUT.needs_tls(test) for test in needing)
    assert not LEFT_OUT.needs_tls("test_a.py::test_one")


def test_junit_failures_of_a_test_and_of_its_fixtures_are_joined(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        """<testsuites><testsuite>
        <testcase classname="test.test_a" name="test_one"/>
        <testcase classname="test.test_a" name="test_two[x]"><skipped message="why"/></testcase>
        <testcase classname="test.test_a" name="test_three">
          <failure message="first">trace</failure><system-out>log</system-out></testcase>
        <testcase classname="test.test_a" name="test_three">
          <error message="second">another</error></testcase>
        <testcase classname="test.test_a" name="test_four"/>
        <testcase classname="test.test_a" name="test_four"><error message="late"/></testcase>
        </testsuite></testsuites>"""
    )
    assert read_junit(report) == {
        "test_a.py::test_one": PASSED,
        "test_a.py::test_two[x]": Outcome("skipped", "why"),
        "test_a.py::test_three": Outcome("failed", "first; second", "trace\nlog\nanother"),
        "test_a.py::test_four": Outcome("failed", "late", ""),
    }


def test_tests_are_found_in_the_source(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "def test_one(): ...\nasync def test_two(): ...\ndef helper():\n    def test_no(): ...\n"
        "@pytest.fixture\ndef test_fixture(): ...\n"
    )
    (tmp_path / "utils.py").write_text("def test_not_here(): ...\n")
    assert list(functions_in(tmp_path)) == ["test_a.py::test_one", "test_a.py::test_two"]


def test_an_entry_without_a_reason_is_refused(tmp_path: Path) -> None:
    content = Path(__file__).with_name("left_out.toml").read_text()
    path = tmp_path / "left_out.toml"
    path.write_text(content)
    assert read_left_out(path).skipped
    path.write_text(content.replace('reason = "it connects', 'why = "it connects'))
    with pytest.raises(KeyError, match="reason"):
        read_left_out(path)
