"""Errors at message boundaries, and only there."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from pgkeeper.hanger.farewell import HOLD_TIMEOUT, Ended, end_sessions
from pgkeeper.hanger.figures import bytes_written
from pgkeeper.hanger.vault import SERVER_BIT, Vault
from protocol import FrameReader, parse_backend
from protocol.ledger import BlobKind, Flag, Kind, PacketAction, SocketState
from protocol.reports import ErrorResponse
from tests.unit.ledger.builder import LedgerBuilder

if TYPE_CHECKING:
    from protocol.ledger import LedgerView

CLIENT, SERVER = 2, 3


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    client.settimeout(10)
    return ours, client


def unix_pair() -> tuple[socket.socket, socket.socket]:
    ours, client = socket.socketpair()
    client.settimeout(10)
    return ours, client


PAIRS = {"tcp": tcp_pair, "unix": unix_pair}


class Scene:
    """One held client, linked to one held server, and their ledger."""

    def __init__(self, kind: str) -> None:
        self.builder = LedgerBuilder()
        self.vault = Vault()
        ours, self.client = PAIRS[kind]()
        self.unix = kind == "unix"
        self.token = self.vault.new_client(ours.detach(), unix=self.unix).token
        server, self.server = unix_pair()
        self.vault.add(SERVER_BIT | 1, server.detach(), unix=True)
        self.client_copy: dict[str, Any] = {
            "kind": Kind.CLIENT,
            "token": self.token,
            "state": SocketState.CL_ACTIVE,
            "link": SERVER,
            "flags": Flag.UNIX if self.unix else 0,
        }
        self.server_copy: dict[str, Any] = {
            "kind": Kind.SERVER,
            "token": SERVER_BIT | 1,
            "state": SocketState.SV_ACTIVE,
            "link": CLIENT,
            "dst": CLIENT,
        }

    def view(self) -> LedgerView:
        self.builder.copy(CLIENT, 1, **self.client_copy)
        self.builder.copy(SERVER, 1, **self.server_copy)
        self.builder.commit(1)
        return self.builder.view()

    def write(self, data: bytes) -> None:
        """What pgbouncer wrote to the client."""
        held = self.vault.get(self.token)
        assert held is not None
        os.write(held.fd, data)

    def end(self, view: LedgerView | None) -> Ended:
        return asyncio.run(end_sessions(self.vault, view, HOLD_TIMEOUT))

    def rest(self) -> bytes:
        data = b""
        try:
            while chunk := self.client.recv(4096):
                data += chunk
        except ConnectionResetError:
            data += b"[reset]"
        finally:
            self.client.close()
            self.server.close()
        return data


def the_error(data: bytes) -> ErrorResponse:
    reader = FrameReader()
    reader.feed(data)
    (frame,) = list(reader)
    message = parse_backend(frame)
    assert isinstance(message, ErrorResponse)
    return message


@pytest.mark.parametrize("kind", PAIRS)
def test_an_idle_client_is_told(kind: str) -> None:
    scene = Scene(kind)
    assert scene.end(scene.view()) == Ended(told=1, cut=0)
    error = the_error(scene.rest())
    assert (error.severity, error.sqlstate) == ("FATAL", "57P03")
    assert error.message == "pgbouncer has been gone for longer than hold_timeout"
    assert len(scene.vault) == 0


@pytest.mark.parametrize("kind", PAIRS)
def test_servers_see_the_end(kind: str) -> None:
    scene = Scene(kind)
    scene.end(scene.view())
    assert scene.server.recv(1) == b""
    scene.rest()


def test_a_client_that_still_sends_is_told_before_it_is_reset() -> None:
    scene = Scene("tcp")
    scene.client.sendall(b"Q" * 100_000)
    assert scene.end(scene.view()).told == 1
    assert the_error(scene.rest().removesuffix(b"[reset]")).sqlstate == "57P03"


@pytest.mark.parametrize("kind", PAIRS)
def test_a_client_in_the_middle_of_a_message_is_not_told(kind: str) -> None:
    scene = Scene(kind)
    scene.server_copy |= {"pkt_remain": 10, "pkt_action": PacketAction.SEND}
    assert scene.end(scene.view()) == Ended(told=0, cut=1)
    assert scene.rest() == b""


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("sent", [0, 3, 6])
def test_what_left_beyond_the_last_commit_counts(kind: str, sent: int) -> None:
    """Six bytes were about to be sent: only once all of them are out, a message may follow."""
    scene = Scene(kind)
    scene.builder.iobuf(1, b"answer")
    scene.server_copy |= {"io": 1, "io_done": 0, "io_parse": 6, "io_recv": 6}
    base = 0
    if not scene.unix:
        held = scene.vault.get(scene.token)
        assert held is not None
        connection = socket.socket(fileno=held.fd)
        base = bytes_written(connection)
        connection.detach()
    scene.write(b"answer"[:sent])
    set_figures(scene.builder, CLIENT, base_tx=base, unix_tx=sent)
    ended = scene.end(scene.view())
    rest = scene.rest()
    assert rest.startswith(b"answer"[:sent])
    assert ended.told == (1 if sent == 6 else 0)
    assert (len(rest) > sent) == (sent == 6)


def set_figures(builder: LedgerBuilder, slot: int, **figures: int) -> None:
    from protocol import ledger_layouts as layouts

    start = builder.geometry.slot_offset + (slot - 1) * layouts.SLOT.size
    for name, value in figures.items():
        at = start + layouts.SLOT.field(name).offset
        builder.data[at : at + 8] = value.to_bytes(8, "little")


def test_a_unix_socket_in_the_middle_of_a_system_call_is_ambiguous() -> None:
    scene = Scene("unix")
    set_figures(scene.builder, CLIENT, unix_busy=1)
    assert scene.end(scene.view()) == Ended(told=0, cut=1)
    assert scene.rest() == b""


def test_a_damaged_slot_is_no_new_client() -> None:
    scene = Scene("tcp")
    view_data = scene.view()
    del view_data
    at = scene.builder.copy(CLIENT, 1, **scene.client_copy)
    scene.builder.data[at + 40] ^= 1
    assert scene.end(scene.builder.view()) == Ended(told=0, cut=1)
    assert scene.rest() == b""


@pytest.mark.parametrize(("watermark", "told"), [(0, 1), (1, 0)])
def test_a_client_without_slot_is_told_only_if_it_is_new(watermark: int, told: int) -> None:
    scene = Scene("tcp")
    scene.builder.commit(1, watermark=watermark)
    assert scene.end(scene.builder.view()).told == told
    assert bool(scene.rest()) == bool(told)


def test_without_a_ledger_everybody_is_new() -> None:
    scene = Scene("unix")
    assert scene.end(None).told == 1
    assert the_error(scene.rest()).sqlstate == "57P03"


def test_a_client_that_does_not_read_blocks_nobody() -> None:
    scene = Scene("unix")
    held = scene.vault.get(scene.token)
    assert held is not None
    os.set_blocking(held.fd, False)
    filled = 0
    try:
        while True:
            filled += os.write(held.fd, b"x" * 65536)
    except BlockingIOError:
        pass
    os.set_blocking(held.fd, True)
    assert scene.end(None) == Ended(told=0, cut=1)
    assert scene.rest() == b"x" * filled


def test_the_kernel_counts_what_was_written() -> None:
    ours, client = tcp_pair()
    with ours, client:
        base = bytes_written(ours)
        ours.sendall(b"x" * 12345)
        assert bytes_written(ours) - base == 12345
        ours.shutdown(socket.SHUT_WR)
        assert bytes_written(ours) - base == 12345


def test_sessions_that_end_meanwhile_are_left_alone() -> None:
    """The number of a closed descriptor may be another's by the time it would be written to."""
    vault = Vault()
    pairs = [unix_pair() for _ in range(40)]
    tokens = [vault.new_client(ours.detach(), unix=True).token for ours, _ in pairs]

    async def act() -> Ended:
        ending = asyncio.ensure_future(end_sessions(vault, None, HOLD_TIMEOUT))
        await asyncio.sleep(0)  # it has done the first batch
        for token in tokens:
            vault.release(token)
        other, peer = unix_pair()  # takes the lowest free number
        with other, peer:
            ended = await ending
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
        return ended

    assert asyncio.run(act()).told == 32
    for _, client in pairs:
        client.close()


def test_extra_packets_are_waited_for() -> None:
    scene = Scene("tcp")
    scene.server_copy["extra"] = scene.builder.blob(BlobKind.EXTRA, b"extra")
    assert scene.end(scene.view()).told == 0
    scene.rest()
