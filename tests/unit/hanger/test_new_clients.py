"""What a new client is delivered as: untouched, unless the hanger has spoken with it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from pgkeeper.config import BouncerIni
from pgkeeper.hanger import datagram
from pgkeeper.hanger.bouncer_link import BouncerLink
from pgkeeper.hanger.settings import Settings
from pgkeeper.hanger.supervisor import Supervisor
from pgkeeper.states import ProcessState
from protocol.control import Client, HeldSocket, decode
from protocol.startup import CancelRequest, SSLRequest
from tests.unit.hanger.until import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest


class Delivered:
    """A supervisor with an owner that serves, of which this is the other end."""

    def __init__(self, ini: Path) -> None:
        loop = asyncio.get_running_loop()
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.supervisor = Supervisor(
            loop, Settings(), BouncerIni(ini), cast("Any", None), lambda: None, lambda: None
        )
        self.link = BouncerLink(
            loop, ours, pid=1, uid=0, on_message=cast("Any", None), on_end=cast("Any", None)
        )
        owner = SimpleNamespace(owner=True, state=ProcessState.ACTIVE, link=self.link, given=None)
        self.supervisor.census.add(cast("Any", owner))

    def accept(self) -> socket.socket:
        """A client comes; its own end."""
        ours, theirs = socket.socketpair()
        self.supervisor._client(ours.detach(), True, "unix")
        return theirs

    def take(self) -> Client:
        """What the owner is given."""
        packet = datagram.receive(self.peer)
        datagram.close_all(packet.fds)
        assert len(packet.fds) == 1
        message = decode(packet.data)
        assert isinstance(message, Client)
        return message

    def close(self) -> None:
        self.supervisor.refusals.close()
        self.supervisor.holdings.close()
        self.link.close()
        self.peer.close()


def delivered(ini: Path, act: Callable[[Delivered], Awaitable[None]]) -> None:
    """Run `act`; no descriptor may be left."""

    async def run() -> None:
        before = _descriptors()
        one = Delivered(ini)
        try:
            await act(one)
        finally:
            one.close()
        assert _descriptors() == before

    asyncio.run(run())


def test_a_new_client_has_carried_nothing(tmp_path: Path) -> None:
    async def act(one: Delivered) -> None:
        with one.accept(), one.accept():
            assert one.take() == Client(HeldSocket(1, unix=True), fresh=True)
            assert one.take() == Client(HeldSocket(2, unix=True), fresh=True)

    delivered(tmp_path / "x.ini", act)


def test_a_cancel_request_behind_an_answer_of_ours_is_not_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes count from here: pgbouncer has to ask the kernel what went before."""

    async def act(one: Delivered) -> None:
        monkeypatch.setattr(one.supervisor.quarantine, "refusal", lambda _: ("57P03", "not now"))
        with one.accept() as client:
            client.setblocking(False)
            client.send(SSLRequest().build())
            await until(lambda: _answered(client))
            client.send(CancelRequest(7, b"1234").build())
            await until(lambda: len(one.supervisor.holdings.vault))
            assert one.take() == Client(HeldSocket(1, unix=True), fresh=False)

    delivered(tmp_path / "x.ini", act)


def test_one_that_waits_in_the_queue_is_not_called_fresh(tmp_path: Path) -> None:
    """It is sent as it is held then, of which nothing is remembered."""

    async def act(one: Delivered) -> None:
        clients = []
        while not one.link.queued:
            clients.append(one.accept())
        got: list[Client] = []
        while len(got) < len(clients):
            try:
                got.append(one.take())
            except BlockingIOError:
                await asyncio.sleep(0)
        assert [message.socket.token for message in got] == list(range(1, len(clients) + 1))
        assert got[0].fresh
        assert not got[-1].fresh
        for client in clients:
            client.close()

    delivered(tmp_path / "x.ini", act)


def _answered(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b"N"
    except BlockingIOError:
        return False


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
