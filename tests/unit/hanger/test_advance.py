"""Who stands by has what is held, and hears of what has ended: over a real socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer.pidfd import Pidfd
from pgkeeper.hanger import advance, datagram
from pgkeeper.hanger.advance import Advance, Given
from pgkeeper.hanger.bouncer_link import BouncerLink
from pgkeeper.hanger.census import Census
from pgkeeper.hanger.process import Process
from pgkeeper.hanger.vault import SERVER_BIT, Vault
from pgkeeper.states import Event
from protocol.control import Forget, Sockets, UnheldReason, decode
from tests.unit.hanger.until import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advance, "_GIVE_AFTER", 0.0)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advance, "_LOOK_AFTER", 0.001)


class Standby:
    """A process that stands by, and what it has understood so far."""

    def __init__(self, *, forgets: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.census, self.vault = Census(), Vault()
        self.advance = Advance(loop, self.census, self.vault)
        self.deaths: list[Process] = []
        self._child = subprocess.Popen(["sleep", "60"])
        pidfd = Pidfd.open(self._child.pid)
        self.process = Process(loop, self._child.pid, pidfd, self.deaths.append)
        self.process.hear(Event.HELLO_SUCCESSOR)
        self.process.given = Given() if forgets else None
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.process.link = BouncerLink(
            loop,
            ours,
            pid=self._child.pid,
            uid=0,
            on_message=lambda *_: None,
            on_end=lambda *_: None,
        )
        self.census.add(self.process)
        self.tokens: set[int] = set()
        self.messages = 0

    def hold(self, *, server: int = 0) -> int:
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        if server:
            self.vault.add(server | SERVER_BIT, fd, unix=False)
            return server | SERVER_BIT
        return self.vault.new_client(fd, unix=True).token

    def read(self) -> set[int]:
        """Do as pgbouncer does; the tokens of what it has now."""
        while True:
            try:
                packet = datagram.receive(self.peer)
            except BlockingIOError:
                return self.tokens
            datagram.close_all(packet.fds)
            self.messages += 1
            message = decode(packet.data)
            if isinstance(message, Sockets):
                new = {held.token for held in message.sockets}
                assert len(packet.fds) == len(new)
                assert not new & self.tokens, "no socket comes twice"
                self.tokens |= new
            else:
                assert isinstance(message, Forget)
                self.tokens.difference_update(message.tokens or tuple(self.tokens))

    def close(self) -> None:
        self.vault.close_all()
        self.process.forget()
        self.peer.close()
        self._child.kill()
        self._child.wait()


@contextlib.contextmanager
def standby(*, forgets: bool = True) -> Iterator[Standby]:
    made = Standby(forgets=forgets)
    try:
        yield made
    finally:
        made.close()


def test_what_is_held_is_there_before_it_is_needed() -> None:
    async def run() -> None:
        with standby() as one:
            tokens = {one.hold() for _ in range(100)} | {one.hold(server=7)}
            await until(lambda: one.read() == tokens)
            assert one.messages == 2, "in batches"
            one.advance.complete(one.process)
            assert one.read() == tokens
            assert one.messages == 2, "nothing was left to be sent"

    asyncio.run(run())


def test_what_has_ended_is_said_at_once_and_together() -> None:
    async def run() -> None:
        with standby() as one:
            tokens = [one.hold() for _ in range(100)]
            await until(lambda: len(one.read()) == 100)
            before = one.messages
            for token in tokens[:64]:
                one.vault.release(token)
            one.vault.mark_unheld(tokens[64], UnheldReason.TLS)
            await asyncio.sleep(0)
            assert one.read() == set(tokens[65:])
            assert one.messages == before + 2

    asyncio.run(run())


def test_what_ended_before_it_was_sent_is_not_spoken_of() -> None:
    async def run() -> None:
        with standby() as one:
            one.vault.release(one.hold())
            await asyncio.sleep(0.01)
            one.read()
            assert one.messages == 0

    asyncio.run(run())


def test_one_that_cannot_forget_gets_everything_when_it_is_to_adopt() -> None:
    async def run() -> None:
        with standby(forgets=False) as one:
            tokens = {one.hold() for _ in range(3)}
            await asyncio.sleep(0.01)
            assert one.read() == set()
            one.advance.complete(one.process)
            assert one.read() == tokens

    asyncio.run(run())


def test_another_hanger_begins_anew() -> None:
    async def run() -> None:
        with standby() as one:
            tokens = {one.hold() for _ in range(3)}
            one.tokens = {99}
            one.advance.inherited(one.process)
            await until(lambda: one.read() == tokens)

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(20))
def test_in_the_end_it_has_what_is_held_whatever_came_and_went(seed: int) -> None:
    """Also where it does not read for a while, and the messages wait in a queue."""
    chance = random.Random(seed)

    async def run() -> None:
        with standby() as one:
            acts: list[Callable[[], object]] = [
                one.hold,
                one.hold,
                lambda: one.hold(server=chance.randrange(1 << 40)),
                lambda: one.vault.tokens and one.vault.release(chance.choice([*one.vault.tokens])),
                lambda: [one.hold() for _ in range(chance.choice((1, 70)))],
            ]
            for _ in range(300):
                chance.choice(acts)()
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
                if chance.random() < 0.1:
                    await asyncio.sleep(0.001)
                if chance.random() < 0.05:
                    one.read()
            one.advance.complete(one.process)
            await until(lambda: one.read() == one.vault.tokens)

    asyncio.run(run())


@pytest.mark.usefixtures("_impatient")
def test_one_that_does_not_read_is_ended_for_the_sake_of_who_left() -> None:
    async def run() -> None:
        with standby() as one:
            token = one.hold()
            await until(lambda: token in one.read())
            one.vault.release(token)
            await until(lambda: one.process.faulty)
            await until(lambda: one.deaths)

    asyncio.run(run())


@pytest.mark.usefixtures("_impatient")
def test_one_that_is_behind_for_a_while_is_left_alone() -> None:
    async def run() -> None:
        with standby() as one:
            token = one.hold()
            await until(lambda: token in one.read())
            one.vault.release(token)
            given = one.process.given
            assert given is not None
            await until(lambda: given.looks == 2)
            one.read()
            await until(lambda: given.looks == 0)
            assert not one.process.faulty

    asyncio.run(run())
