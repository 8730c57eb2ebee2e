"""sd_notify: what arrives, and that nothing can go wrong."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from pgkeeper.systemd import notify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    address = str(tmp_path / "notify") if request.param == "path" else f"\0pgkeeper-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
        end.bind(address)
        yield end


def address_of(manager: socket.socket) -> str:
    name = manager.getsockname()
    return name if isinstance(name, str) else "@" + name[1:].decode()


def test_assignments_arrive_in_one_datagram(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": address_of(manager)}
    assert notify("READY=1", "STATUS=serving 12 sessions", environ=environ)
    assert manager.recv(4096) == b"READY=1\nSTATUS=serving 12 sessions"


def test_a_line_break_makes_no_assignment(manager: socket.socket) -> None:
    assert notify("STATUS=a\nSTOPPING=1", environ={"NOTIFY_SOCKET": address_of(manager)})
    assert manager.recv(4096) == b"STATUS=a STOPPING=1"


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": address_of(manager)}
    for _ in range(100_000):
        if not notify("STATUS=" + "x" * 1000, environ=environ):
            return
    pytest.fail("the queue of the socket never filled")


@pytest.mark.parametrize(
    "address", ["", "relative", "vsock:2:1", "/nonexistent/notify", "@nobody", "/" + "x" * 200]
)
def test_nobody_to_tell(address: str) -> None:
    assert not notify("READY=1", environ={"NOTIFY_SOCKET": address})


def test_not_under_systemd() -> None:
    assert not notify("READY=1", environ={})


def test_the_environment_is_read_at_each_call(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address_of(manager))
    assert notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify("READY=1")
