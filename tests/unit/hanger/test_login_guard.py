"""For how long an address may not log in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeeper.hanger.login_guard import (
    LONGEST,
    LONGEST_LOCAL,
    QUIET,
    UNIX,
    LoginGuard,
    neighbourhood,
)


def test_the_first_crash_may_be_chance_and_each_further_one_doubles_the_time() -> None:
    guard = LoginGuard()
    assert [guard.crashed("192.0.2.1", 0.0) for _ in range(5)] == [0, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("peer", "longest"),
    [
        ("192.0.2.1", LONGEST),
        ("2001:db8::1", LONGEST),
        ("127.0.0.1", LONGEST_LOCAL),
        ("::1", LONGEST_LOCAL),
        ("::ffff:127.0.0.1", LONGEST_LOCAL),
        (UNIX, LONGEST_LOCAL),
    ],
)
def test_there_is_a_longest_time(peer: str, longest: float) -> None:
    guard = LoginGuard()
    assert [guard.crashed(peer, 0.0) for _ in range(3000)][-1] == longest


def test_an_address_may_log_in_again_and_others_always_may() -> None:
    guard = LoginGuard()
    guard.crashed("192.0.2.1", 10.0)
    assert guard.refused("192.0.2.1", 10.0) == 0
    guard.crashed("192.0.2.1", 11.0)
    assert guard.refused("192.0.2.1", 12.5) == 0.5
    assert guard.refused("192.0.2.1", 13.0) == 0
    assert guard.refused("192.0.2.2", 11.0) == 0
    assert (guard.slowed(12.0), guard.slowed(13.0)) == (1, 0)


def test_after_a_quiet_time_nothing_is_known_against_it() -> None:
    guard = LoginGuard()
    for _ in range(4):
        guard.crashed("192.0.2.1", 0.0)
    assert guard.crashed("192.0.2.1", QUIET - 1) == 16
    assert guard.crashed("192.0.2.1", 2 * QUIET - 1) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::1", "::2", False),
        (UNIX, UNIX, True),
    ],
)
def test_who_is_taken_for_one(one: str, other: str, same: bool) -> None:
    assert (neighbourhood(one) == neighbourhood(other)) is same


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 5000)), max_size=50))
def test_a_refusal_never_outlasts_the_longest(crashes: list[tuple[str, float]]) -> None:
    guard = LoginGuard()
    now = 0.0
    for peer, later in crashes:
        now += later
        guard.crashed(peer, now)
    assert all(guard.refused(peer, now) <= LONGEST for peer in "abc")


def test_what_is_remembered_is_bounded() -> None:
    guard = LoginGuard()
    for first, second in itertools.product(range(60), range(256)):
        for _ in range(2):
            guard.crashed(f"192.0.{first}.{second}", 0.0)
    assert guard.slowed(1.0) == 10_000


def test_another_guard_goes_on_with_what_is_known() -> None:
    guard, other = LoginGuard(), LoginGuard()
    for _ in range(3):
        guard.crashed("192.0.2.1", 10.0)
    other.inherit(guard.records())
    assert other.refused("192.0.2.1", 11.0) == guard.refused("192.0.2.1", 11.0) == 3.0
    assert other.crashed("192.0.2.1", 20.0) == guard.crashed("192.0.2.1", 20.0) == 8.0
    assert other.refused("192.0.2.2", 11.0) == 0.0
