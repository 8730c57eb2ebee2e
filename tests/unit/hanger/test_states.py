"""The tables of a process's life."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeeper.states import (
    CRASH_LOOP_LIMIT,
    OWNERS,
    REMOTE,
    SHORT_LIFE,
    TRANSITIONS,
    CrashHistory,
    Event,
    ImpossibleEventError,
    Lifecycle,
    ProcessState,
    ServiceState,
    service_state,
)

events = st.lists(st.sampled_from(Event), max_size=30)


def live(happened: list[Event]) -> Lifecycle:
    """A life in which what cannot happen did not."""
    life = Lifecycle()
    for event in happened:
        if life.allows(event):
            life.feed(event)
    return life


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(ProcessState)
    reached = {ProcessState.STARTED} | {
        target for row in TRANSITIONS.values() for target in row.values()
    }
    assert reached == set(ProcessState)


def test_every_living_process_can_die_and_be_fenced() -> None:
    for state, row in TRANSITIONS.items():
        if state is not ProcessState.DEAD:
            assert row[Event.DIED] is ProcessState.DEAD
            assert row[Event.FENCE] is ProcessState.FENCED
    assert not TRANSITIONS[ProcessState.DEAD]


def test_what_is_under_way_when_it_is_fenced_is_no_fault_of_the_peer() -> None:
    for state, event in itertools.product(ProcessState, REMOTE):
        row = TRANSITIONS[state]
        # HELLO comes once, before anything that we would fence an owner for
        if event in row and event not in (Event.HELLO_SUCCESSOR, Event.HELLO_SERVING):
            assert event in TRANSITIONS[ProcessState.FENCED]


def test_nothing_but_death_ends_being_fenced() -> None:
    targets = set(TRANSITIONS[ProcessState.FENCED].values())
    assert targets == {ProcessState.FENCED, ProcessState.DEAD}


def test_only_a_standby_can_be_activated() -> None:
    able = {state for state, row in TRANSITIONS.items() if Event.ACTIVATE in row}
    assert able == {ProcessState.STANDBY}


@given(events)
def test_an_owner_stays_one_until_it_is_dead(happened: list[Event]) -> None:
    life = Lifecycle()
    owned = False
    for event in happened:
        if life.allows(event):
            life.feed(event)
            owned = owned or life.state in OWNERS
            assert life.owner == (owned and life.state is not ProcessState.DEAD)


@given(events)
def test_what_is_not_in_the_table_moves_nothing(happened: list[Event]) -> None:
    life = live(happened)
    state, owner = life.state, life.owner
    for event in set(Event) - set(TRANSITIONS[state]):
        with pytest.raises(ImpossibleEventError) as error:
            life.feed(event)
        assert (error.value.state, error.value.event) == (state, event)
        assert (life.state, life.owner) == (state, owner)


def test_a_fenced_standby_owns_nothing() -> None:
    life = live([Event.HELLO_SUCCESSOR, Event.FENCE])
    assert life.state is ProcessState.FENCED
    assert not life.owner


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], ServiceState.DOWN),
        (["started"], ServiceState.STARTING),
        (["standby"], ServiceState.STARTING),
        (["fenced", "standby"], ServiceState.STARTING),
        (["adopting"], ServiceState.ADOPTING),
        (["returning"], ServiceState.ADOPTING),
        (["active", "standby"], ServiceState.ACTIVE),
        (["freezing"], ServiceState.ACTIVE),
        (["frozen", "started"], ServiceState.ACTIVE),
        (["leaving"], ServiceState.DOWN),
        (["fenced"], ServiceState.DOWN),
    ],
)
def test_service_state(states: list[str], expected: ServiceState) -> None:
    given_states = [ProcessState(name) for name in states]
    assert service_state(given_states, crash_looping=False) is expected
    looping = service_state(given_states, crash_looping=True)
    assert looping is (expected if expected is ServiceState.ACTIVE else ServiceState.CRASH_LOOP)


def test_the_first_crash_costs_no_time_and_the_next_ones_more_and_more() -> None:
    history = CrashHistory()
    delays = [history.died(0.1, crashed=True) for _ in range(9)]
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_five_in_a_row_are_a_loop() -> None:
    history = CrashHistory()
    for _ in range(CRASH_LOOP_LIMIT - 1):
        history.died(SHORT_LIFE / 2, crashed=True)
        assert not history.looping
    history.died(SHORT_LIFE / 2, crashed=True)
    assert history.looping


@pytest.mark.parametrize(("lifetime", "crashed"), [(SHORT_LIFE, True), (0.0, False)])
def test_a_long_life_or_a_death_from_outside_ends_the_loop(lifetime: float, crashed: bool) -> None:
    history = CrashHistory()
    for _ in range(20):
        history.died(0.0, crashed=True)
    assert history.died(lifetime, crashed=crashed) == 0.0
    assert not history.looping
