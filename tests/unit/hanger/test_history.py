"""Why a pgbouncer ended, and what is counted about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pgkeeper.bouncer.spawn import Exit
from pgkeeper.hanger.history import PAUSES, Cause, History, cause_of
from pgkeeper.states import ProcessState


def process(**facts: Any) -> Any:
    usual = {"said_farewell": False, "dismissed": False, "faulty": False, "end": Exit(signal=9)}
    return SimpleNamespace(**{**usual, **facts})


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        ({}, Cause.KILLED),
        ({"end": Exit(signal=11)}, Cause.CRASH),
        ({"end": Exit(code=1)}, Cause.CRASH),
        ({"end": Exit(code=0)}, Cause.STOPPED),
        ({"end": Exit()}, Cause.UNKNOWN),
        ({"faulty": True}, Cause.UNRESPONSIVE),
        ({"dismissed": True}, Cause.HANDOFF),
        ({"said_farewell": True, "end": Exit(code=0)}, Cause.FAREWELL),
    ],
)
def test_of_one_that_served(facts: dict[str, Any], cause: Cause) -> None:
    assert cause_of(process(**facts), ProcessState.ACTIVE, served=True, died_of=0) is cause


def test_the_ledger_tells_of_another_ones_child() -> None:
    other = process(end=Exit())
    assert cause_of(other, ProcessState.ACTIVE, served=True, died_of=11) is Cause.CRASH


def test_of_those_that_served_nobody() -> None:
    for state, cause in ((ProcessState.STANDBY, Cause.STANDBY), (ProcessState.FENCED, Cause.START)):
        assert cause_of(process(), state, served=False, died_of=11) is cause


def test_an_adoption_is_put_down_to_the_last_that_served() -> None:
    history = History()
    history.died(Cause.CRASH)
    history.died(Cause.STANDBY)
    history.died(Cause.START)
    history.taken_over(0.004)
    history.taken_over(100.0)
    record = history.record()
    assert record.deaths == {"crash": 1, "standby": 1, "start": 1}
    assert record.takeovers == {"crash": 1, "unknown": 1}
    assert record.pauses[PAUSES.index(0.005)] == record.pauses[-1] == 1
    assert sum(record.pauses) == 2
    assert record.pause_sum == pytest.approx(100.004)


def test_the_next_hanger_goes_on() -> None:
    first, second = History(), History()
    first.died(Cause.KILLED)
    first.taken_over(0.5)
    first.lost({"unheld": 2})
    first.died(Cause.CRASH)
    second.inherit(first.record())
    assert second.record() == first.record()
    second.taken_over(0.5)
    assert second.record().takeovers == {"killed": 1, "crash": 1}
