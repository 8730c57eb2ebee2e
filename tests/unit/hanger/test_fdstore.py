"""Names in the service manager's store, what it is told, and what it gives back."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeeper.hanger.fdstore import FdStore, owner_incarnation, parse_socket, socket_name
from pgkeeper.hanger.recovery import Kept
from pgkeeper.systemd import listen_fds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@given(st.integers(1, 2**63 - 1), st.booleans(), st.booleans())
def test_names_say_token_and_family(number: int, server: bool, unix: bool) -> None:
    token = number | (1 << 63 if server else 0)
    name = socket_name(token, unix=unix)
    assert parse_socket(name) == (token, unix)
    # sd_notify(3): at most 255 printable characters, no colon
    assert len(name) < 255
    assert ":" not in name
    assert name.isascii()


@given(st.text())
def test_other_names_are_none(name: str) -> None:
    assert parse_socket(f"pgkeeper-{name}") is None
    assert owner_incarnation(name) is None


def test_a_token_of_zero_is_none() -> None:
    assert parse_socket("pgkeeper-client-0-tcp") is None
    assert parse_socket(f"pgkeeper-client-{1 << 63}-tcp") is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "/n"},
        {"FDSTORE": "9"},
        {"NOTIFY_SOCKET": "/n", "FDSTORE": "0"},
        {"NOTIFY_SOCKET": "/n", "FDSTORE": "many"},
        {"NOTIFY_SOCKET": "vsock:1", "FDSTORE": "9"},
    ],
)
def test_no_store_without_both(environ: dict[str, str]) -> None:
    loop = asyncio.new_event_loop()
    try:
        assert FdStore.offered(loop, environ) is None
    finally:
        loop.close()


class Peer:
    """A manager's socket whose queue is short; messages are read when a test wants."""

    def __init__(self, path: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(os.fspath(path))
        self.store = FdStore(self.loop, os.fspath(path), 10_000)

    def read(self) -> list[str]:
        """All that has been sent up to now."""
        texts = []
        while True:
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, 4096, 4)
            except BlockingIOError:
                return texts
            for fd in fds:
                os.close(fd)
            name = data.decode().rpartition("FDNAME=")[2]
            texts.append(("-" if b"REMOVE" in data else "+") + name)

    def close(self) -> None:
        self.store.close()
        self._socket.close()
        self.loop.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    made = Peer(tmp_path / "notify")
    yield made
    made.close()


def test_all_arrives_in_its_order_however_slow_it_reads(peer: Peer) -> None:
    names = [f"n{number}" for number in range(2000)]
    for name in names:
        peer.store.put(name, 0)
    assert peer.store.queued > 0
    assert peer.read() == [f"+{name}" for name in names]
    assert peer.store.queued == 0


def test_what_is_dropped_before_it_was_sent_never_is(peer: Peer) -> None:
    """Its descriptor's number may be another's by then."""
    for number in range(2000):
        peer.store.put(f"n{number}", 0)
    peer.store.drop("n1999")
    peer.store.drop("n0")
    sent = peer.read()
    assert "+n1999" not in sent
    assert sent[-1] == "-n0"


def test_what_is_urgent_comes_first_but_not_before_its_own_removal(peer: Peer) -> None:
    peer.store.put("ledger", 0)
    for number in range(2000):
        peer.store.put(f"n{number}", 0)
    peer.store.drop("ledger")
    peer.store.put("ledger", 0, urgent=True)
    peer.store.put("owner", 0, urgent=True)
    sent = peer.read()
    assert [text for text in sent if "ledger" in text] == ["+ledger", "-ledger", "+ledger"]
    assert sent.index("+owner") < sent.index("+n1999")


def test_descriptors_are_sorted_by_name() -> None:
    fds = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(6)]
    names = ["pgkeeper-ledger", "pgkeeper-client-7-tcp", "pgkeeper-server-7-unix"]
    names += ["pgkeeper-listener-0", "pgkeeper-client-7-tcp", "somebody-else"]
    kept = Kept.sort(zip(names, fds, strict=True))
    assert kept is not None
    assert kept.ledger == fds[0]
    assert kept.sockets == {7: (fds[1], False), 7 | 1 << 63: (fds[2], True)}
    assert kept.listeners == [fds[3]]
    kept.close()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_only_who_is_meant_listens() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDNAMES": "x"}
    assert listen_fds(environ) == []
    assert environ == {}
    assert Kept.sort([]) is None
