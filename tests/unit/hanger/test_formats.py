"""Which ledger format two programs have in common."""

from __future__ import annotations

import pytest

from pgkeeper.hanger.formats import Formats


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (Formats(3, 3), Formats(3, 3), 3),
        (Formats(3, 3), Formats(3, 4), 3),
        (Formats(3, 4), Formats(3, 4), 4),
        (Formats(3, 4), Formats(4, 6), 4),
        (Formats(3, 3), Formats(4, 4), None),
        (Formats(3, 4), Formats(5, 6), None),
        # two programs that call different things by the same number
        (Formats(3, 4, signature=1), Formats(3, 4, signature=2), None),
        (Formats(3, 4, signature=1), Formats(3, 5, signature=2), 4),
    ],
)
def test_the_newest_that_both_know(one: Formats, other: Formats, common: int | None) -> None:
    assert one.common(other) == other.common(one) == common
    assert common is None or (common in one and common in other)


def test_a_range_is_told_as_one() -> None:
    assert str(Formats(3, 3, 0xAB)) == "ledger format 3 (signature 00000000000000ab)"
    assert str(Formats(3, 4, 0xAB)) == "ledger format 3 to 4 (signature 00000000000000ab)"
