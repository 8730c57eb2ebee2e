"""Handing over between pgbouncers that write the ledger in different formats, both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeeper.hanger.formats import Formats
from protocol.ledger import FORMAT_OLDEST, Flag, Kind, WaitType
from protocol.ledger_layouts import FORMAT_HANDED
from testbed import RawClient, wait_until
from testbed.errors import BedError
from testbed.ledgers import ledger_of
from testbed.rawclient import frontend, text
from tests.sweep.controls.mutants import Change
from tests.system.conversions import NEWER, OURS, hand_over, newer, sessions_of, written_in
from tests.system.wrapping import expect_fatal

if TYPE_CHECKING:
    from pathlib import Path

    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper
    from tests.sweep.controls.mutants import Mutants

pytestmark = pytest.mark.timeout(300)


def test_up_and_down_again(
    make_newer_keeper: MakeKeeper, newer_binary: Path, patched_binary: Path
) -> None:
    """With a kill in each format; the first newer one leaves the way back open."""
    keeper = make_newer_keeper()
    with sessions_of(keeper) as sessions:
        assert written_in(keeper) == OURS
        for program, expected in (
            (newer_binary, OURS),
            (newer_binary, NEWER),
            (patched_binary, OURS),
        ):
            assert hand_over(keeper, program) == expected
            sessions.assert_intact()
            keeper.kill_bouncer()
            sessions.assert_intact()
            assert written_in(keeper) == expected
        sessions.finish()


def test_an_older_pgkeeper_keeps_its_format(
    make_keeper: MakeKeeper, newer_binary: Path, patched_binary: Path
) -> None:
    """A newer pgbouncer writes what its hanger can read."""
    keeper = make_keeper()
    with sessions_of(keeper) as sessions:
        for program in (newer_binary, newer_binary, patched_binary):
            assert hand_over(keeper, program) == OURS
            keeper.kill_bouncer()
        sessions.finish()


def test_down_to_one_that_hands_nothing_on(
    make_keeper: MakeKeeper, format_mutants: Mutants, patched_binary: Path
) -> None:
    """Format 3 has no place for an answer that a client's full socket has not taken."""
    older = Change(
        "include/keeper/format.h",
        f"define KEEPER_FORMAT_VERSION\t{OURS}",
        f"define KEEPER_FORMAT_VERSION\t{FORMAT_HANDED - 1}",
    )
    program = format_mutants.binary((older,))
    keeper = make_keeper(settings={"tcp_socket_buffer": 16384})
    with sessions_of(keeper) as sessions, RawClient(keeper.host, keeper.port) as deaf:
        deaf.login(database="session")
        # All queries fit into one IOBuf; each answer comes by itself, and is smaller than one.
        question = "SELECT {} || repeat('x', 3800), pg_sleep(.01)"
        answers = [(f"{n}" + "x" * 3800, "") for n in range(60)]
        deaf.send(b"".join(frontend("Q", text(question.format(n))) for n in range(60)))
        wait_until(lambda: _handed_on_and_waiting(keeper), what="an answer that waits")
        for binary, expected in (
            (program, FORMAT_HANDED - 1),
            (patched_binary, FORMAT_HANDED - 1),
            (patched_binary, OURS),
        ):
            assert hand_over(keeper, binary) == expected
            keeper.kill_bouncer()
            sessions.assert_intact()
            assert _handed_on_and_waiting(keeper) is (expected == OURS)
        for answer in answers:
            messages = list(deaf.until_ready())
            assert [message.row() for message in messages if message.kind == "D"] == [answer]
        sessions.finish()


def _handed_on_and_waiting(keeper: Keeper) -> bool:
    """Whether a server waits to send to a client to which something was handed on."""
    with ledger_of(keeper) as view:
        copies = dict(view.iter_slots())
    return any(
        copy.kind is Kind.SERVER
        and copy.wait_type is WaitType.SEND
        and copies[copy.link].flags & Flag.HANDED
        for copy in copies.values()
    )


@pytest.mark.slow
def test_to_one_that_no_longer_knows_the_format(
    make_keeper: MakeKeeper, format_mutants: Mutants
) -> None:
    """It is refused before anything happens to the one that serves."""
    forgetful = Change(
        "include/keeper/format.h",
        f"define KEEPER_FORMAT_OLDEST\t{FORMAT_OLDEST}",
        f"define KEEPER_FORMAT_OLDEST\t{NEWER}",
    )
    keeper = make_keeper()
    with sessions_of(keeper) as sessions:
        pid = keeper.bouncer_pid
        done = keeper.run("handoff", "--pgbouncer", format_mutants.binary(newer(forgetful)))
        assert done.returncode == 1
        assert f"pgbouncer knows ledger format {NEWER} " in done.stderr
        assert f"this pgkeeper {Formats(FORMAT_OLDEST, OURS)}" in done.stderr
        assert done.stderr.endswith("; the old pgbouncer goes on, untouched\n")
        assert keeper.bouncer_pid == pid
        sessions.finish()
    expect_fatal(keeper, "refused by the hanger: pgbouncer knows ledger format")


@pytest.mark.slow
def test_from_one_that_does_not_write_the_older_format(
    make_newer_keeper: MakeKeeper, format_mutants: Mutants, patched_binary: Path
) -> None:
    """The handoff ends before the one that serves does."""
    stiff = Change(
        "src/keeper/hanger.c",
        "keeper_write_in_format(wish->format);",
        f"if (wish->format >= {NEWER}) keeper_write_in_format(wish->format);",
    )
    program = format_mutants.binary(newer(stiff))
    keeper = make_newer_keeper()
    with sessions_of(keeper) as sessions:
        hand_over(keeper, program)
        assert hand_over(keeper, program) == NEWER
        pid = keeper.bouncer_pid
        done = keeper.run("handoff", "--pgbouncer", patched_binary)
        assert done.returncode == 1
        assert f"the ledger is written in format {NEWER}, which it does not know" in done.stderr
        assert done.stderr.endswith("; the old pgbouncer goes on, untouched\n")
        assert keeper.bouncer_pid == pid
        sessions.finish()


@pytest.mark.slow
def test_from_one_that_writes_another_format_than_it_says(
    make_newer_keeper: MakeKeeper, format_mutants: Mutants, patched_binary: Path
) -> None:
    """A control: sessions notice, so the other tests would."""
    program = format_mutants.binary(newer(condition="keeper_store.epoch"))
    keeper = make_newer_keeper()
    assert hand_over(keeper, program) == OURS
    # What an adoption finds to be true it does not write anew: sessions that began with this one.
    with sessions_of(keeper) as sessions:
        assert hand_over(keeper, patched_binary) == OURS
        with pytest.raises((AssertionError, BedError, TimeoutError)):
            sessions.finish()
