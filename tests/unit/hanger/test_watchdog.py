"""The watchdog: when a heartbeat that stands still means something, and when it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeeper.bouncer.inspection import Sighting
from pgkeeper.hanger import watchdog
from pgkeeper.hanger.watchdog import WATCHED, Pulse, Watchdog, excuse
from pgkeeper.states import OWNERS, ProcessState

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeeper.hanger.process import Process

TIMEOUT = 2.0
RUNNING = Sighting("R", traced=False, cpu_s=10.0)


def test_a_heartbeat_that_moves_is_no_hang_however_rarely_we_look() -> None:
    pulse = Pulse(0.5)
    assert [pulse.look("it", beat) for beat in (1, 2, 3)] == [0, 0, 0]


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40))
def test_only_looks_that_were_taken_count(beats: list[int]) -> None:
    pulse = Pulse(0.5)
    for beat in beats:
        still = pulse.look("it", beat)
    run = next((n for n, beat in enumerate(reversed(beats)) if beat != beats[-1]), len(beats))
    assert still == (run - 1) * 0.5


def test_a_successor_begins_with_its_predecessors_last_heartbeat() -> None:
    pulse = Pulse(0.5)
    for _ in range(9):
        pulse.look("one", 7)
    assert pulse.look("another", 7) == 0


@pytest.mark.parametrize(
    ("began", "now", "excused"),
    [
        (RUNNING, Sighting("R", traced=False, cpu_s=12.0), False),
        (RUNNING, Sighting("R", traced=False, cpu_s=10.01), True),
        (RUNNING, Sighting("S", traced=False, cpu_s=10.0), False),
        (RUNNING, Sighting("D", traced=False, cpu_s=10.0), False),
        (RUNNING, Sighting("T", traced=False, cpu_s=10.0), False),
        (RUNNING, Sighting("t", traced=True, cpu_s=10.0), True),
        (None, Sighting("R", traced=False, cpu_s=10.0), False),
        (RUNNING, None, False),
    ],
    ids=["loop", "starved", "waits", "disk", "stopped", "debugger", "first-look-failed", "unknown"],
)
def test_who_is_left_alone(began: Sighting | None, now: Sighting | None, excused: bool) -> None:
    assert (excuse(began, now, TIMEOUT) is not None) is excused


def test_every_owner_is_watched_but_one_that_leaves_which_has_a_deadline() -> None:
    assert set(OWNERS) == {*WATCHED, ProcessState.LEAVING}


class Bed:
    """A watchdog whose time and whose pgbouncer are ours."""

    pid = 4711
    incarnation = 1

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.state = ProcessState.ACTIVE
        self.beat: int | None = 1
        self.owner: Bed | None = self
        self.hung = 0
        self.again = 0
        self.waits: list[float] = []
        self._due: Callable[[], None] | None = None
        self.watchdog = Watchdog(
            cast("Any", self),
            timeout,
            lambda: cast("Process | None", self.owner),
            lambda: self.beat,
            self._hangs,
        )
        self.watchdog.start()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Bed:
        """The event loop's, and its handle."""
        self.waits.append(seconds)
        self._due = callback
        return self

    def cancel(self) -> None:
        """The handle's."""
        self._due = None

    def _hangs(self, process: Process, sighting: Sighting | None, *, again: bool) -> None:
        self.hung += not again
        self.again += again

    def look(self, times: int) -> int:
        """Let so many looks come due; how many hangs they have found by then."""
        for _ in range(times):
            assert self._due is not None
            self._due()
        return self.hung


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    monkeypatch.setattr(watchdog, "inspect", lambda pid: None)
    return Bed()


def test_ten_looks_without_a_heartbeat_are_a_hang(bed: Bed) -> None:
    assert bed.look(10) == 0
    assert bed.look(1) == 1
    assert bed.waits == [TIMEOUT / 10] * 12


def test_one_that_goes_on_hanging_is_one_hang_which_is_dealt_with_again_and_again(bed: Bed) -> None:
    assert (bed.look(51), bed.again) == (1, 4)


def test_one_that_has_moved_meanwhile_hangs_anew(bed: Bed) -> None:
    bed.look(21)
    bed.beat = 2
    assert (bed.look(11), bed.again) == (2, 1)


def test_its_successor_hangs_anew_at_the_same_heartbeat(bed: Bed) -> None:
    bed.look(21)
    bed.incarnation = 2
    assert (bed.look(11), bed.again) == (2, 1)


@pytest.mark.parametrize("state", sorted(set(ProcessState) - WATCHED, key=str))
def test_nobody_is_watched_who_does_not_serve(bed: Bed, state: ProcessState) -> None:
    bed.state = state
    assert bed.look(30) == 0


def test_before_there_is_a_ledger_nobody_is_watched(bed: Bed) -> None:
    bed.beat = None
    assert bed.look(30) == 0
    bed.beat, bed.owner = 1, None
    assert bed.look(30) == 0


def test_without_a_timeout_nobody_looks() -> None:
    assert Bed(0).waits == []


def test_one_that_is_left_alone_is_looked_at_again(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "inspect", lambda pid: Sighting("t", traced=True, cpu_s=0.0))
    assert bed.look(30) == 0
    monkeypatch.setattr(watchdog, "inspect", lambda pid: Sighting("T", traced=False, cpu_s=0.0))
    assert bed.look(11) == 1


def test_it_ends(bed: Bed) -> None:
    bed.watchdog.stop()
    assert bed._due is None
