"""What was handed on to a socket and has left: its copy still names an IOBuf of another by then."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from protocol.ledger import Flag
from testbed import RawClient, wait_until
from testbed.ledgers import ledger_of
from testbed.process import state
from testbed.rawclient import frontend, text
from tests.sweep.syscall.unread import unread

if TYPE_CHECKING:
    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper

pytestmark = pytest.mark.timeout(120)

_ANSWERS = 6
_HALVES = 40
"""Clients that keep an IOBuf each: more than there were in use at a time before."""


@pytest.mark.parametrize("ends", ["stays", "is reset"])
def test_a_copy_that_names_anothers_buffer(make_keeper: MakeKeeper, ends: str) -> None:
    """Only the kernel knows that all has left, also of a socket whose peer has thrown it away."""
    keeper = make_keeper()
    with contextlib.ExitStack() as stack:
        deaf, helper, *others = (
            stack.enter_context(RawClient(keeper.host, keeper.port, receive_buffer=size))
            for size in (4096, 0, *[0] * _HALVES)
        )
        deaf.login(database="session")
        for client in (helper, *others):
            client.login(database="transaction")
        # It reads none of it: most waits in pgbouncer's kernel, which has taken all of it.
        for number in range(_ANSWERS):
            before = _deaf(keeper)[1]
            deaf.send(frontend("Q", text(f"SELECT repeat('{number}', 3000)")))
            wait_until(lambda before=before: _deaf(keeper)[1] > before, what="the next answer")
        # A commit gives the IOBuf of the last one back.
        assert helper.query("SELECT 'helped'") == [("helped",)]
        question = frontend("Q", text("SELECT 'whole'"))
        for other in others:
            other.send(question[:3])
            wait_until(lambda other=other: not unread(other.socket), what="half of it is read")
        wait_until(lambda: _deaf(keeper)[0] in _own_iobufs(keeper), what="a buffer named twice")
        pid = keeper.bouncer_pid
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: state(pid) == "T", what="it stands still, and hears of no reset")
        if ends == "is reset":
            linger = struct.pack("ii", 1, 0)
            deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            deaf.close()
        os.kill(pid, signal.SIGKILL)
        keeper.wait_active()
        for other in others:
            other.send(question[3:])
            assert [message.kind for message in other.until_ready()] == ["T", "D", "C", "Z"]
        if ends == "stays":
            for number in range(_ANSWERS):
                row = next(message for message in deaf.until_ready() if message.kind == "D").row()
                assert row == (str(number) * 3000,)
                assert deaf.read().kind == "C"
                assert deaf.read().kind == "Z"
        assert keeper.status().adoptions.sessions_lost == 0


def _deaf(keeper: Keeper) -> tuple[int, int]:
    """The IOBuf that was last handed on to the first client, and the epoch of that; or zeros."""
    with ledger_of(keeper) as view:
        first = min((copy for _, copy in view.iter_slots() if copy.token), key=lambda c: c.token)
    return (first.io, first.epoch) if first.flags & Flag.HANDED else (0, 0)


def _own_iobufs(keeper: Keeper) -> set[int]:
    with ledger_of(keeper) as view:
        return {copy.own_io for _, copy in view.iter_slots()} - {0}
