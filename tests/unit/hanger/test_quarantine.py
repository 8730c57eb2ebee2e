"""Which session is ended for a crash, and which never."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from pgkeeper.bouncer.spawn import Exit
from pgkeeper.hanger.holdings import Holdings
from pgkeeper.hanger.quarantine import ENDED, LIMIT, WINDOW, Quarantine
from protocol.ledger import Kind
from protocol.ledger_layouts import HANDLED_TOKEN
from tests.unit.hanger.test_farewell import CLIENT, SERVER, Scene, the_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.ledger import LedgerView

CRASH = Exit(signal=signal.SIGSEGV)
KILL = Exit(signal=signal.SIGKILL)


@dataclass
class FakeSegment:
    scene: Scene
    handled: int = CLIENT
    died_of: int = 0
    crash_was_sent: bool = False

    def view(self) -> LedgerView:
        return self.scene.view()


@dataclass
class FakeProcess:
    end: Exit = CRASH
    looped: bool = False
    incarnation: int = 3
    child: object = "ours"


class Bed:
    """A quarantine over one linked pair of sockets, which are held over unix-domain ones."""

    def __init__(self) -> None:
        self.scene = Scene("unix")
        self.holdings = Holdings()
        self.holdings.vault = self.scene.vault
        self.segment = FakeSegment(self.scene)
        self.holdings.segment = cast("Any", self.segment)
        self.now = 100.0
        self.quarantine = Quarantine(lambda: self.now, self.holdings)

    def dies(self, end: Exit = CRASH, *, looped: bool = False) -> bool:
        return self.quarantine.judge(cast("Any", FakeProcess(end, looped)))

    def change_hangers(self) -> None:
        """As in a takeover."""
        blame = self.quarantine.blame(0)
        self.quarantine = Quarantine(lambda: self.now, self.holdings)
        self.quarantine.inherit(blame)

    @property
    def held(self) -> int:
        return len(self.holdings.vault)

    def another(self) -> None:
        """Other sockets take the place of those that were ended, with the same tokens."""
        self.close()
        self.scene = self.segment.scene = Scene("unix")
        self.holdings.vault = self.scene.vault

    def close(self) -> None:
        self.holdings.vault.close_all()
        self.scene.client.close()
        self.scene.server.close()


@pytest.fixture
def bed() -> Iterator[Bed]:
    bed = Bed()
    yield bed
    bed.close()


@pytest.mark.parametrize("handled", [CLIENT, SERVER], ids=["client", "server"])
@pytest.mark.parametrize("looped", [False, True], ids=["crash", "loop"])
def test_the_second_death_in_a_row_ends_the_session_and_its_link(
    bed: Bed, handled: int, looped: bool
) -> None:
    bed.segment.handled = handled
    end = KILL if looped else CRASH
    assert (bed.dies(end, looped=looped), bed.held) == (False, 2)
    assert (bed.dies(end, looped=looped), bed.held) == (True, 0)
    assert the_error(bed.scene.rest()).sqlstate == ENDED[0]
    assert bed.quarantine.status(0).ended == {"loop" if looped else "crash": 1}


def test_where_a_message_is_half_sent_the_client_is_only_closed(bed: Bed) -> None:
    bed.scene.server_copy |= {"pkt_remain": 100, "pkt_action": 1}
    bed.dies()
    assert bed.dies()
    assert bed.scene.rest() == b""


@pytest.mark.parametrize("between", ["a-kill", "another's-crash", "nobody's-crash"])
def test_what_comes_between_two_deaths_ends_the_row(bed: Bed, between: str) -> None:
    bed.dies()
    match between:
        case "a-kill":
            bed.dies(KILL)
        case "another's-crash":
            bed.segment.handled = SERVER
            bed.dies()
        case _:
            bed.segment.handled = 0
            bed.dies()
    bed.segment.handled = CLIENT
    assert (bed.dies(), bed.held) == (False, 2)


@pytest.mark.parametrize(
    "handled", [0, HANDLED_TOKEN, 5, 1 << 40], ids=["nobody", "no-token", "free", "no-slot"]
)
def test_nobody_is_ended_where_nobody_is_named(bed: Bed, handled: int) -> None:
    bed.segment.handled = handled
    assert [bed.dies() for _ in range(4)] == [False] * 4
    assert bed.held == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT])
def test_a_death_from_outside_is_no_sessions_fault(bed: Bed, number: int) -> None:
    assert [bed.dies(Exit(signal=number)) for _ in range(4)] == [False] * 4
    assert bed.held == 2


@pytest.mark.parametrize("ours", [True, False], ids=["child", "stranger"])
def test_a_crash_that_somebody_sent_is_no_sessions_fault(bed: Bed, ours: bool) -> None:
    bed.segment.died_of, bed.segment.crash_was_sent = signal.SIGABRT, True
    bed.quarantine.recall()
    assert [bed.dies(CRASH if ours else Exit()) for _ in range(4)] == [False] * 4
    assert bed.held == 2


@pytest.mark.parametrize("died_of", [0, signal.SIGSEGV], ids=["killed", "crashed"])
def test_of_one_that_is_no_child_only_the_ledger_tells(bed: Bed, died_of: int) -> None:
    bed.segment.died_of = died_of
    stranger = cast("Any", FakeProcess(Exit(), child=None))
    assert [bed.quarantine.judge(stranger) for _ in range(2)] == [False, bool(died_of)]


@pytest.mark.parametrize("died_of", [0, signal.SIGSEGV], ids=["killed", "crashed"])
def test_of_one_that_another_hanger_started_only_the_ledger_tells(bed: Bed, died_of: int) -> None:
    bed.segment.died_of = died_of
    assert [bed.dies(Exit()) for _ in range(2)] == [False, bool(died_of)]


def test_another_hanger_goes_on_in_the_row(bed: Bed) -> None:
    bed.dies()
    bed.change_hangers()
    assert bed.dies()
    bed.change_hangers()
    assert bed.quarantine.status(0).ended == {"crash": 1}
    assert bed.quarantine.blame(3).refused == 3


@pytest.mark.parametrize("died_of", [0, signal.SIGSEGV], ids=["killed", "crashed"])
def test_a_death_that_nobody_saw_is_the_first_if_it_was_a_crash(bed: Bed, died_of: int) -> None:
    bed.segment.died_of = died_of
    bed.quarantine.recall()
    assert bed.dies() == bool(died_of)


def test_a_slot_that_holds_no_socket_is_not_ended(bed: Bed) -> None:
    bed.scene.client_copy |= {"kind": Kind.POOL, "token": 0, "link": 0, "flags": 0}
    assert [bed.dies() for _ in range(4)] == [False] * 4


def test_one_that_is_not_held_died_with_the_process(bed: Bed) -> None:
    bed.segment.handled = HANDLED_TOKEN | 99
    assert [bed.dies() for _ in range(3)] == [False] * 3


def test_where_everyone_crashes_it_is_not_the_sessions(bed: Bed) -> None:
    """A pgbouncer that dies of any bytes must not cost session by session."""
    ended = 0
    for _ in range(LIMIT + 2):
        bed.dies()
        ended += bed.dies()
        bed.another()
        bed.change_hangers()
    assert ended == LIMIT
    bed.now += WINDOW
    assert bed.dies()
