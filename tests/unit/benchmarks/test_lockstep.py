"""What the keeper costs in lockstep: a mean of lives, and how well it is known."""

from __future__ import annotations

import pytest

from benchmarks.lockstep import cost


def test_a_cost_is_the_mean_of_the_lives_with_its_standard_error() -> None:
    found = cost("simple", 16, [(10.0, 10.1), (10.0, 10.3), (20.0, 20.4)])
    assert (found.protocol, found.sessions, found.lives) == ("simple", 16, 3)
    assert found.unpatched == pytest.approx(40 / 3)
    assert found.keeper == pytest.approx(40.8 / 3)
    assert found.more == pytest.approx(0.02)
    assert found.error == pytest.approx(0.01 / 3**0.5)
