"""Addresses as PgBouncer reads them, and accepting on them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeeper.config import BouncerIni
from pgkeeper.hanger import listeners
from pgkeeper.hanger.addresses import (
    Address,
    AddressUnknownError,
    NowhereToListenError,
    addresses,
)
from pgkeeper.hanger.binding import AddressInUseError, CannotListenError
from pgkeeper.hanger.listeners import Listeners, Pause
from testbed.waiting import free_port
from tests.unit.hanger.until import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("l")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def exists(path: Path | str | None) -> bool:
    return Path(str(path)).exists()


def replace(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.write_text("somebody else's")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def ini(listen: str, port: int = 6432, directory: str = "", **more: object) -> BouncerIni:
    return BouncerIni(
        Path("x.ini"), listen_addr=listen, listen_port=port, unix_socket_dir=directory, **more
    )


V4 = socket.AF_INET
UNIX = socket.AF_UNIX


def test_every_address_once_in_the_order_of_the_ini() -> None:
    found = addresses(ini(" 127.0.0.1 , 127.0.0.2,,127.0.0.1", 5000, "/run"))
    assert found == (
        Address(V4, ("127.0.0.1", 5000)),
        Address(V4, ("127.0.0.2", 5000)),
        Address(UNIX, "/run/.s.PGSQL.5000"),
    )
    assert [str(it) for it in found] == [
        "127.0.0.1:5000",
        "127.0.0.2:5000",
        f"unix:{found[2].path}",
    ]


def test_the_star_is_every_family() -> None:
    found = addresses(ini("*", 5000))
    assert Address(V4, ("0.0.0.0", 5000)) in found
    assert all(it.wildcard for it in found)


def test_the_abstract_namespace() -> None:
    (found,) = addresses(ini("", 5000, "@here"))
    assert found == Address(UNIX, "\0here/.s.PGSQL.5000")
    assert found.path is None
    assert str(found) == "unix:@here/.s.PGSQL.5000"


def test_names_nobody_knows_and_nowhere() -> None:
    with pytest.raises(AddressUnknownError, match=r"listen_addr: cannot resolve 'no\.such\.'"):
        addresses(ini("no.such."))
    with pytest.raises(NowhereToListenError):
        addresses(ini(""))


class Accepted:
    """Collects what `Listeners` accepts."""

    def __init__(self, room: Callable[[int], int] = lambda _: 99) -> None:
        self.clients: list[tuple[int, bool]] = []
        self.listeners = Listeners(
            asyncio.get_running_loop(),
            lambda fd, unix, _peer: self.clients.append((fd, unix)),
            lambda: room(len(self.clients)),
        )

    async def until(self, condition: Callable[[], object]) -> None:
        await until(condition)

    def close(self) -> None:
        self.listeners.close(unlink=True)
        for fd, _ in self.clients:
            os.close(fd)


def run(
    act: Callable[[Accepted], Awaitable[None]], room: Callable[[int], int] = lambda _: 99
) -> None:
    async def body() -> None:
        before = open_descriptors()
        accepted = Accepted(room)
        try:
            await act(accepted)
        finally:
            accepted.close()
        assert open_descriptors() == before

    asyncio.run(body())


def connect(address: Address) -> socket.socket:
    client = socket.socket(address.family)
    client.connect(address.sockaddr)
    client.sendall(b"x")  # TCP_DEFER_ACCEPT waits for it
    return client


@pytest.fixture
def settings(directory: Path) -> Iterator[BouncerIni]:
    return ini("127.0.0.1", free_port(), str(directory), unix_socket_mode=0o750)


def test_accepts_on_all_once_it_may(settings: BouncerIni) -> None:
    async def act(accepted: Accepted) -> None:
        wanted = addresses(settings)
        accepted.listeners.bind(wanted, settings)
        assert accepted.listeners.offer(staged=False)[1] == (False, True)
        clients = [connect(address) for address in wanted]
        await asyncio.sleep(0.01)
        assert not accepted.clients
        accepted.listeners.resume(Pause.NOT_OPEN)
        await accepted.until(lambda: len(accepted.clients) == 2)
        assert sorted(unix for _, unix in accepted.clients) == [False, True]
        assert not any(os.get_inheritable(fd) for fd, _ in accepted.clients)
        for client in clients:
            client.close()

    run(act)


def test_socket_file_mode_and_end(settings: BouncerIni) -> None:
    path = Path(str(addresses(settings)[1].path))

    async def act(accepted: Accepted) -> None:
        accepted.listeners.bind(addresses(settings), settings)
        assert mode(path) == 0o750

    run(act)
    assert not path.exists()


def test_a_file_that_was_replaced_is_not_ours_to_remove(settings: BouncerIni) -> None:
    path = Path(str(addresses(settings)[1].path))

    async def act(accepted: Accepted) -> None:
        accepted.listeners.bind(addresses(settings), settings)
        replace(path)

    run(act)
    assert path.exists()


def test_options_of_the_ini() -> None:
    port = free_port()

    async def act(accepted: Accepted) -> None:
        settings = ini("127.0.0.1", port, so_reuseport=True)
        accepted.listeners.bind(addresses(settings), settings)
        with socket.socket(fileno=os.dup(accepted.listeners.fds[0])) as listener:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
            assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0
            accepted.listeners.set_defer(False)
            assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 0

    run(act)


def test_a_whole_queue_is_accepted_in_one_go(settings: BouncerIni) -> None:
    async def act(accepted: Accepted) -> None:
        address = addresses(settings)[1]
        accepted.listeners.bind([address], settings)
        clients = [connect(address) for _ in range(5)]
        accepted.listeners.resume(Pause.NOT_OPEN)
        # One round of the loop to see that the listener is ready, one to accept.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(accepted.clients) == 5
        for client in clients:
            client.close()

    run(act)


def test_full_pauses_and_room_resumes(settings: BouncerIni) -> None:
    room = [2]

    async def act(accepted: Accepted) -> None:
        address = addresses(settings)[1]
        accepted.listeners.bind([address], settings)
        accepted.listeners.resume(Pause.NOT_OPEN)
        clients = [connect(address) for _ in range(3)]
        await accepted.until(lambda: Pause.FULL in accepted.listeners.pauses)
        assert len(accepted.clients) == 2
        accepted.listeners.retry()
        assert len(accepted.clients) == 2
        room[0] = 9
        accepted.listeners.retry()
        await accepted.until(lambda: len(accepted.clients) == 3)
        for client in clients:
            client.close()

    run(act, lambda count: room[0] - count)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EINVAL])
def test_exhaustion_pauses_and_time_resumes(
    settings: BouncerIni, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("pgkeeper.hanger.listeners._EXHAUSTED_FOR", 0.05)
    calls: list[int] = []
    pauses: list[Pause] = []
    pause = Listeners.pause

    def record(listeners: Listeners, reason: Pause) -> None:
        pauses.append(reason)
        pause(listeners, reason)

    monkeypatch.setattr(Listeners, "pause", record)
    real = listeners.accept

    def accept(listener: socket.socket) -> tuple[int, object]:
        calls.append(number)
        if len(calls) == 1:
            raise OSError(number, os.strerror(number))
        if len(calls) == 2:
            raise OSError(errno.ECONNABORTED, "gave up")
        return real(listener)

    monkeypatch.setattr(listeners, "accept", accept)

    async def act(accepted: Accepted) -> None:
        address = addresses(settings)[1]
        accepted.listeners.bind([address], settings)
        accepted.listeners.resume(Pause.NOT_OPEN)
        client = connect(address)
        await accepted.until(lambda: accepted.clients)
        client.close()

    run(act)
    assert pauses.count(Pause.EXHAUSTED) == 1
    assert len(calls) >= 3


def test_an_address_in_use_leaves_nothing_bound(settings: BouncerIni) -> None:
    async def act(accepted: Accepted) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", settings.listen_port))
            other.listen()
            with pytest.raises(AddressInUseError) as error:
                accepted.listeners.bind(reversed(addresses(settings)), settings)
        assert error.value.address == f"127.0.0.1:{settings.listen_port}"
        assert len(accepted.listeners) == 0
        assert not exists(addresses(settings)[1].path)

    run(act)


def test_addresses_that_overlap_our_own_are_passed_over() -> None:
    port = free_port()

    async def act(accepted: Accepted) -> None:
        settings = ini("0.0.0.0,127.0.0.1", port)
        accepted.listeners.bind(addresses(settings), settings)
        assert len(accepted.listeners) == 1

    run(act)


def test_an_address_that_is_not_ours_is_passed_over_unless_it_is_the_only_one() -> None:
    port = free_port()

    async def act(accepted: Accepted) -> None:
        settings = ini("192.0.2.1,127.0.0.1", port)
        accepted.listeners.bind(addresses(settings), settings)
        assert len(accepted.listeners) == 1
        accepted.listeners.close(unlink=True)
        settings = ini("192.0.2.1", port)
        with pytest.raises(CannotListenError, match=r"192\.0\.2\.1"):
            accepted.listeners.bind(addresses(settings), settings)

    run(act)


@pytest.mark.parametrize("what", ["listener", "datagrams", "file", "lock"])
def test_a_socket_file_in_use(settings: BouncerIni, what: str) -> None:
    address = addresses(settings)[1]
    path = Path(str(address.path))

    async def act(accepted: Accepted) -> None:
        kind = socket.SOCK_SEQPACKET if what == "datagrams" else socket.SOCK_STREAM
        with socket.socket(UNIX, kind) as other:
            if what == "file":
                replace(path)
            elif what == "lock":
                replace(Path(f"{path}.lock"))
            else:
                other.bind(str(path))
                other.listen()
            with pytest.raises(CannotListenError, match="port in use"):
                accepted.listeners.bind([address], settings)
        assert exists(path) == (what != "lock")

    run(act)


def test_a_stale_socket_file_is_replaced(settings: BouncerIni) -> None:
    address = addresses(settings)[1]
    with socket.socket(UNIX) as stale:
        stale.bind(str(address.path))

    async def act(accepted: Accepted) -> None:
        accepted.listeners.bind([address], settings)
        connect(address).close()

    run(act)


def test_an_unknown_group_is_named(settings: BouncerIni, directory: Path) -> None:
    async def act(accepted: Accepted) -> None:
        odd = ini("", settings.listen_port, str(directory), unix_socket_group="no-such-group")
        with pytest.raises(CannotListenError, match="no such group: 'no-such-group'"):
            accepted.listeners.bind(addresses(odd), odd)

    run(act)


def test_listeners_given_back(settings: BouncerIni) -> None:
    async def act(accepted: Accepted) -> None:
        first = Accepted()
        first.listeners.bind(addresses(settings), settings)
        accepted.listeners.take(map(os.dup, first.listeners.fds))
        assert accepted.listeners.offer(staged=False)[1] == (False, True)
        first.listeners.close(unlink=False)
        accepted.listeners.resume(Pause.NOT_OPEN)
        client = connect(addresses(settings)[1])
        await accepted.until(lambda: accepted.clients)
        client.close()

    run(act)
    assert not Path(str(addresses(settings)[1].path)).exists()
