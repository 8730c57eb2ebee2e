"""Sockets that pgbouncer has closed: the peer hears of it at once, the hanger in few messages."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest

from testbed.rawclient import RawClient, frontend
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from testbed import Keeper
    from tests.fix_keeper import MakeKeeper

#: More than one message carries.
MANY = 150
_ROUNDS = 8


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    return make_keeper(settings={"max_client_conn": 400})


def logged_in(keeper: Keeper, count: int) -> list[RawClient]:
    return [
        RawClient(keeper.host, keeper.port).login(user="postgres", database="transaction")
        for _ in range(count)
    ]


def leave(clients: list[RawClient]) -> None:
    """All say goodbye, and each hears the end of its connection."""
    for client in clients:
        client.send(frontend("X"))
    for client in clients:
        assert client.socket.recv(1) == b""
        client.socket.close()


def held(keeper: Keeper) -> int:
    return keeper.status().sessions.clients_held


def test_those_who_leave_hear_it_though_the_hanger_still_holds_them(keeper: Keeper) -> None:
    clients = logged_in(keeper, MANY)
    assert held(keeper) == MANY
    os.kill(keeper.hanger.pid, signal.SIGSTOP)
    try:
        leave(clients)
    finally:
        os.kill(keeper.hanger.pid, signal.SIGCONT)
    wait_until(lambda: held(keeper) == 0, what="the release of all")


@pytest.mark.parametrize("count", [1, MANY])
def test_released_without_anything_else_happening(keeper: Keeper, count: int) -> None:
    leave(logged_in(keeper, count))
    wait_until(lambda: held(keeper) == 0, what="the release of all", seconds=2.0)


@pytest.mark.parametrize("count", [1, 10, MANY])
def test_a_kill_before_the_hanger_was_told(keeper: Keeper, count: int) -> None:
    """The successor finds them closed, closes them again, and misses nobody."""
    before_told = 0
    with contextlib.closing(keeper.connect(dbname="session")) as stays:
        for _ in range(_ROUNDS):
            leave(logged_in(keeper, count))
            before_told += held(keeper) > 1
            keeper.kill_bouncer()
            assert stays.execute("SELECT 1").fetchone() == (1,)
            wait_until(lambda: held(keeper) == 1, what="the release of all who left")
            assert keeper.status().adoptions.sessions_lost == 0
    assert before_told, "always told in time: not what is tried here"


def test_the_hanger_dies_before_it_was_told(keeper: Keeper) -> None:
    with contextlib.closing(keeper.connect(dbname="session")) as stays:
        leave(logged_in(keeper, 10))
        keeper.kill_hanger()
        keeper.start_hanger()
        assert held(keeper) == 1
        assert stays.execute("SELECT 1").fetchone() == (1,)
    wait_until(lambda: held(keeper) == 0, what="the release of all")
