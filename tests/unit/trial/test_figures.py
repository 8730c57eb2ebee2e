"""Held is only what every patched session survived, with nothing missing, twice or different."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pgkeeper.trial.books import balance
from pgkeeper.trial.figures import UNPATCHED, Books, Report, Spread
from tests.unit.trial.results import HELD, LOST, REPORT


def test_what_the_unpatched_side_loses_is_no_fault() -> None:
    assert REPORT.held


@pytest.mark.parametrize(
    "fault",
    [
        {"survived": 1},
        {"lost": 1},
        {"different": 1},
        {"books": Books(told=40, missing=1)},
        {"books": Books(told=40, duplicates=1)},
        {"books": Books(told=40, foreign=1)},
    ],
)
def test_any_fault_of_the_patched_side_is_no_hold(fault: dict[str, object]) -> None:
    assert not Report((replace(HELD, **fault), LOST)).held  # type: ignore[arg-type]


def test_nothing_tried_is_nothing_held() -> None:
    assert not Report(()).held
    assert not Report((replace(HELD, side=UNPATCHED),)).held


def test_a_spread_is_of_nearest_ranks() -> None:
    assert Spread.of([]) is None
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    values = [float(n) for n in range(1, 201)]
    assert Spread.of(values[::-1]) == Spread(100.5, 198.0, 200.0)


def test_the_books_balance_when_each_insert_is_there_once() -> None:
    rows = {(1, 1): 1, (1, 2): 1, (2, 1): 1}
    assert balance(rows, [(1, 1), (1, 2), (2, 1)], []) == Books(told=3)
    assert balance(rows, [(1, 1), (1, 2)], [(2, 1)]).right
    assert balance({(1, 1): 1}, [(1, 1)], [(2, 1)]).right


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ({(1, 1): 1}, Books(told=2, doubtful=1, missing=1)),
        ({(1, 1): 2, (1, 2): 1}, Books(told=2, doubtful=1, duplicates=1)),
        ({(1, 1): 1, (1, 2): 1, (1, 3): 3}, Books(told=2, doubtful=1, duplicates=2)),
        ({(1, 1): 1, (1, 2): 1, (9, 9): 2}, Books(told=2, doubtful=1, foreign=2)),
    ],
)
def test_the_books_notice(rows: dict[tuple[int, int], int], found: Books) -> None:
    books = balance(rows, [(1, 1), (1, 2)], [(1, 3)])
    assert books == found
    assert not books.right


def test_json_has_everything() -> None:
    plain = json.loads(json.dumps(REPORT.plain()))
    assert (plain["held"], plain["interrupted"], plain["kills"]) == (True, False, 2)
    busy = plain["results"][0]
    assert busy["pause_s"] == {"median": 0.007, "p99": 0.1, "longest": 0.1}
    assert busy["first_answer_s"]["longest"] == 0.005
    assert busy["kills"][1]["pauses_s"] == [0.008, 0.1]
    assert plain["results"][1]["reasons"] == {
        "closed by the peer": 3,
        "connection reset by peer": 1,
    }
