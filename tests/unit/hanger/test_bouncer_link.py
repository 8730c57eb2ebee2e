"""Messages with descriptors over a real socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeeper.hanger import datagram
from pgkeeper.hanger.bouncer_link import BouncerLink, DescriptorsLostError
from protocol.control import (
    BATCH,
    Adopt,
    Client,
    Frozen,
    HeldSocket,
    Register,
    Release,
    Sockets,
    Thaw,
    decode,
    encode,
)
from protocol.errors import RemoteProtocolError
from tests.unit.hanger.until import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from protocol.control import Message


class Wire:
    """A link, the peer's end of it, and what the link has said."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.heard: list[tuple[Message, tuple[int, ...]]] = []
        self.ends: list[RemoteProtocolError | None] = []
        self.link = BouncerLink(
            asyncio.get_running_loop(),
            ours,
            pid=1,
            uid=0,
            on_message=self.on_message,
            on_end=lambda _, error: self.ends.append(error),
        )

    def on_message(self, _: BouncerLink, message: Message, fds: tuple[int, ...]) -> None:
        self.heard.append((message, fds))

    async def until(self, condition: Callable[[], object]) -> None:
        await until(condition)

    def close(self) -> None:
        self.link.close()
        self.peer.close()
        for _, fds in self.heard:
            datagram.close_all(fds)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def on_wire(act: Callable[[Wire], Awaitable[None]]) -> None:
    """Run `act`; no descriptor may be left."""

    async def run() -> None:
        before = open_descriptors()
        wire = Wire()
        try:
            await act(wire)
        finally:
            wire.close()
        assert open_descriptors() == before

    asyncio.run(run())


@contextmanager
def pipes(count: int) -> Iterator[tuple[int, ...]]:
    fds = [fd for _ in range((count + 1) // 2) for fd in os.pipe()]
    try:
        yield tuple(fds[:count])
    finally:
        datagram.close_all(fds)


def entries(count: int) -> tuple[HeldSocket, ...]:
    return tuple(HeldSocket(1 << 63 | number) for number in range(1, count + 1))


def test_messages_arrive_in_order_with_their_descriptors() -> None:
    async def act(wire: Wire) -> None:
        with pipes(BATCH) as fds:
            datagram.send(wire.peer, encode(Register(entries(BATCH))), fds)
        datagram.send(wire.peer, encode(Release((3, 4))))
        await wire.until(lambda: len(wire.heard) == 2)
        register, got = wire.heard[0]
        assert register == Register(entries(BATCH))
        assert len(got) == BATCH
        assert not any(os.get_inheritable(fd) for fd in got)
        assert wire.heard[1] == (Release((3, 4)), ())

    on_wire(act)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"\0" * 8, encode(Release((1,)))[:-1], encode(Frozen(3)) + b"x", b"y" * 5000],
    ids=["empty", "short", "magic", "cut", "trailing", "long"],
)
def test_what_is_no_message_ends_the_link_and_leaks_nothing(data: bytes) -> None:
    async def act(wire: Wire) -> None:
        with pipes(2) as fds:
            datagram.send(wire.peer, data, fds)
        await wire.until(lambda: wire.ends)
        assert isinstance(wire.ends[0], RemoteProtocolError)
        assert wire.link.closed
        assert not wire.heard

    on_wire(act)


@pytest.mark.parametrize("count", [0, 1, 3, 65, 100, 253])
def test_a_wrong_number_of_descriptors_ends_the_link(count: int) -> None:
    async def act(wire: Wire) -> None:
        with pipes(count) as fds:
            datagram.send(wire.peer, encode(Register(entries(2))), fds)
        await wire.until(lambda: wire.ends or wire.heard)
        assert isinstance(wire.ends[0], RemoteProtocolError)
        assert not wire.heard

    on_wire(act)


@pytest.mark.parametrize("message", [Frozen(3), Register(entries(4))])
def test_descriptors_that_find_no_number(message: Message) -> None:
    """Register goes on with the first ones; every other message is refused."""

    async def act(wire: Wire) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with pipes(4) as fds:
            datagram.send(wire.peer, encode(message), fds)
            free = os.dup(0)
            os.close(free)
            # Room for `free` and what follows it, less what is open already.
            taken = [os.dup(0) for _ in range(20)]
            highest = max(taken)
            os.close(taken.pop(0))
            os.close(taken.pop(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
            try:
                await wire.until(lambda: wire.ends or wire.heard)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                datagram.close_all(taken)
        if isinstance(message, Register):
            assert not wire.ends
            assert len(wire.heard[0][1]) == 2
        else:
            assert isinstance(wire.ends[0], DescriptorsLostError)

    on_wire(act)


def test_the_peer_ends_the_connection() -> None:
    async def act(wire: Wire) -> None:
        datagram.send(wire.peer, encode(Frozen(3)))
        wire.peer.close()
        await wire.until(lambda: wire.ends)
        assert wire.heard == [(Frozen(3), ())]
        assert wire.ends == [None]
        wire.link.send(Thaw())  # goes nowhere

    on_wire(act)


def test_drain_reads_what_a_dead_peer_said_last() -> None:
    async def act(wire: Wire) -> None:
        for token in range(1, 200):
            datagram.send(wire.peer, encode(Release((token,))))
        wire.peer.close()
        wire.link.drain()
        assert len(wire.heard) == 199
        assert wire.ends == [None]

    on_wire(act)


def test_an_error_of_the_handler_ends_the_link() -> None:
    async def act(wire: Wire) -> None:
        def refuse(*_: object) -> None:
            raise RemoteProtocolError("not now")

        wire.link._on_message = refuse
        datagram.send(wire.peer, encode(Frozen(3)))
        await wire.until(lambda: wire.ends)
        assert str(wire.ends[0]) == "not now"

    on_wire(act)


def test_a_peer_that_does_not_read_blocks_nobody_and_misses_nothing() -> None:
    async def act(wire: Wire) -> None:
        count = 3000
        for number in range(count):
            wire.link.send(Adopt(number, 0, 3))
        assert wire.link.queued > 0
        got = []
        while len(got) < count:
            await asyncio.sleep(0)
            try:
                got.append(decode(datagram.receive(wire.peer).data))
            except BlockingIOError:
                continue
        assert got == [Adopt(number, 0, 3) for number in range(count)]
        assert wire.link.queued == 0

    on_wire(act)


def test_sent_now_or_not_at_all() -> None:
    async def act(wire: Wire) -> None:
        client = encode(Client(HeldSocket(7)))
        with pipes(1) as (fd,):
            assert wire.link.send_now(client, fd)
            arrived = datagram.receive(wire.peer)
            assert (arrived.data, len(arrived.fds)) == (client, 1)
            datagram.close_all(arrived.fds)
            while not wire.link.queued:
                wire.link.send(Thaw())
            # Behind what waits, not past it.
            assert not wire.link.send_now(client, fd)
            while wire.link.queued:
                assert decode(datagram.receive(wire.peer).data) == Thaw()
                await asyncio.sleep(0)
            while wire.link.send_now(client, fd):
                pass  # until the peer's queue is full
            assert not wire.link.queued
            with contextlib.suppress(BlockingIOError):
                while True:
                    datagram.close_all(datagram.receive(wire.peer).fds)
            wire.link.close()
            assert not wire.link.send_now(client, fd)

    on_wire(act)


def test_a_message_for_a_peer_that_is_gone_is_not_sent_now() -> None:
    async def act(wire: Wire) -> None:
        wire.peer.close()
        with pipes(1) as (fd,):
            assert not wire.link.send_now(encode(Client(HeldSocket(7))), fd)

    on_wire(act)


def test_what_is_sent_later_is_made_when_its_turn_comes() -> None:
    async def act(wire: Wire) -> None:
        while not wire.link.queued:
            wire.link.send(Adopt(0, 0, 3))
        truth = ["early"]
        made = []

        def build() -> tuple[Message, tuple[int, ...]] | None:
            made.append(truth[0])
            return None if truth[0] == "gone" else (Thaw(), ())

        wire.link.send_later(build)
        truth[0] = "gone"
        assert not made
        last = None
        wire.link.send(Adopt(1, 0, 3))
        while last != Adopt(1, 0, 3):
            await asyncio.sleep(0)
            try:
                last = decode(datagram.receive(wire.peer).data)
            except BlockingIOError:
                continue
            assert last != Thaw()
        assert made == ["gone"]

    on_wire(act)


def test_descriptors_under_way_are_limited_and_waited_for() -> None:
    """ETOOMANYREFS: the kernel counts descriptors in flight against the sender's limit."""
    if os.geteuid() == 0:
        pytest.skip("root may have as many under way as it likes")

    async def act(wire: Wire) -> None:
        with pipes(BATCH) as fds:
            for _ in range(1000):
                wire.link.send(Sockets(entries(BATCH)), fds)
            assert wire.link.queued
            got = 0
            while got < 1000:
                await asyncio.sleep(0)
                try:
                    datagram.close_all(datagram.receive(wire.peer).fds)
                except BlockingIOError:
                    continue
                got += 1

    on_wire(act)


def test_the_wait_for_descriptors_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for root, with the kernel's answer made up."""

    async def act(wire: Wire) -> None:
        answers = [OSError(109, "too many references")] * 3
        assert os.strerror(109) == "Too many references: cannot splice"
        real = datagram.send

        def send(*arguments: object) -> None:
            if answers:
                raise answers.pop()
            real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(datagram, "send", send)
        wire.link.send(Adopt(1, 0, 3))
        wire.link.send(Adopt(2, 0, 3))
        assert wire.link.queued == 2
        await wire.until(lambda: not wire.link.queued)
        assert not answers
        assert decode(datagram.receive(wire.peer).data) == Adopt(1, 0, 3)
        assert decode(datagram.receive(wire.peer).data) == Adopt(2, 0, 3)

    on_wire(act)
