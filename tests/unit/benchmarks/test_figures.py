"""A ratio is of rounds that were measured in turn, and a bar is cleared or marked as missed."""

from __future__ import annotations

import pytest

from benchmarks.figures import Bar, Figure, paired, table

ROUNDS = [
    {"unpatched": 100.0, "keeper": 90.0, "direct": 200.0},
    {"unpatched": 200.0, "keeper": 202.0, "direct": 400.0},
    {"unpatched": 50.0, "keeper": 50.0, "direct": 100.0},
]


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    figure = paired("speed", "simple", "1/s", ROUNDS)
    assert (figure.unpatched, figure.keeper, figure.direct) == (100.0, 90.0, 200.0)
    assert (figure.ratio, figure.lower, figure.upper) == (1.0, 0.9, 1.01)
    assert figure.met is None


@pytest.mark.parametrize(
    ("bar", "met"),
    [
        (Bar(0.99, at_least=True), True),
        (Bar(1.01, at_least=True), False),
        (Bar(0.99), False),
        (Bar(1.0), True),
        (Bar(90.0, ratio=False), True),
        (Bar(89.0, ratio=False), False),
    ],
)
def test_bars(bar: Bar, met: bool) -> None:
    assert paired("speed", "simple", "1/s", ROUNDS, bar).met is met


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert Figure("memory", "hanger", "bytes", bar=Bar(1000, ratio=False)).met is None


def test_the_table_marks_what_is_missed() -> None:
    figures = [
        paired("speed", "simple", "1/s", ROUNDS, Bar(1.01, at_least=True)),
        Figure("memory", "hanger", "bytes", None, 1234.5, bar=Bar(2000, ratio=False)),
    ]
    lines = table(figures).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["speed", "simple", "memory", "hanger"]
    assert lines[2].split() == [
        *("simple", "1/s", "100", "90", "200", "1.000", "(0.900", "..", "1.010)"),
        *(">=", "1.01", "x", "MISSED"),
    ]
    assert lines[4].split() == ["hanger", "bytes", "1,234", "<=", "2000", "met"]
