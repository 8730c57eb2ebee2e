"""The listening sockets: bound here or given back by a serving pgbouncer, and accepting."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pgkeeper.hanger.binding import address_of, bind_all, discard, tune_accept
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.hanger.fdstore import listener_name
from pgkeeper.hanger.login_guard import UNIX
from pgkeeper.log import Event, get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from pgkeeper.config import BouncerIni
    from pgkeeper.hanger.addresses import Address
    from pgkeeper.hanger.fdstore import FdStore

    _Waiting = Callable[[int], list[tuple[int, int]]]

__all__ = ["Listeners", "Pause"]

log = get_logger()

#: Clients accepted in one go before other events of the loop get their turn.
_BURST: Final = 64
#: Seconds without accepting after the kernel had no descriptor or memory for a client.
_EXHAUSTED_FOR: Final = 0.25
#: Bursts accepted from a listener that is left: the longest backlog there is.
_DRAIN: Final = 4096 // _BURST + 1

# accept(2): errors of the client that was to be accepted, not of the listener.
_CLIENT_GONE: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    }
)


class Pause(Enum):
    """Why no client is accepted at the moment; several may hold at once."""

    NOT_OPEN = "not open"
    """Nothing has told us to accept yet."""
    FULL = "full"
    """As many clients are held as may be."""
    EXHAUSTED = "exhausted"
    """The kernel has no descriptor or memory to spare; lifted by a timer."""
    STOPPING = "stopping"
    """The service ends."""


class Listeners:
    """Accepts clients and gives each to `on_client`: raw descriptor, whether it is Unix, address.

    `room_left` says how many it may accept, and is asked before each burst; when it says none,
    accepting pauses until `retry`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_client: Callable[[int, bool, str], None],
        room_left: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._on_client = on_client
        self._room_left = room_left
        self._sockets: list[socket.socket] = []
        self._files: dict[str, tuple[int, int]] = {}
        self._pauses = {Pause.NOT_OPEN}
        self._timer: asyncio.TimerHandle | None = None
        self._given_up = False
        self._staged: list[socket.socket] | None = None
        self._backlog = 0
        self.store: FdStore | None = None
        """Keeps duplicates of the listening sockets, if there is one."""

    def __len__(self) -> int:
        return len(self._sockets)

    @property
    def given_up(self) -> bool:
        """Whether nobody is to listen until `bind` is called again."""
        return self._given_up

    @property
    def pauses(self) -> frozenset[Pause]:
        """Why nothing is accepted; empty while accepting."""
        return frozenset(self._pauses)

    @property
    def names(self) -> set[str]:
        """Their names in the service manager's store."""
        return {listener_name(number) for number in range(len(self._sockets))}

    @property
    def fds(self) -> tuple[int, ...]:
        """The listening descriptors."""
        return tuple(listener.fileno() for listener in self._sockets)

    def bind(
        self, addresses: Iterable[Address], ini: BouncerIni, *, owner: int | None = None
    ) -> None:
        """Listen on all of `addresses`, without accepting yet.

        As in PgBouncer a TCP address that cannot be bound is passed over with a warning, while a
        Unix socket must work and one address must remain.  An address that another process uses is
        an error though, and then nothing is bound: `AddressInUseError`, `CannotListenError`.
        """
        bound = bind_all(addresses, ini, owner=owner)
        for address, listener in bound.items():
            self._add(listener)
            log.info(Event.LISTENING, address=str(address))
        self._given_up = False

    def stage(
        self, addresses: Iterable[Address], ini: BouncerIni, *, owner: int | None = None
    ) -> None:
        """Listen on those of `addresses` where we do not yet, without accepting there.

        The sockets for all of them are what `offer` gives to one that is to serve there; then
        follows `take_stage`, or `drop_stage`.  Raises as `bind`: then nothing has been done.
        """
        if self._given_up:
            return
        here = {address_of(listener): listener for listener in self._sockets}
        self._staged = list(bind_all(addresses, ini, owner=owner, bound=here).values())
        self._backlog = ini.listen_backlog

    def take_stage(self) -> None:
        """From now on these are the listeners; who waits at the others is accepted first."""
        staged, self._staged = self._staged, None
        if staged is None:
            return
        before = self._sockets
        for listener in before:
            if listener not in staged:
                for _ in range(_DRAIN):
                    self._accept(*_watched(listener))
                self._leave(listener)
        for number in range(len(before)):
            if self.store is not None:
                self.store.drop(listener_name(number))
        self._sockets = [listener for listener in before if listener in staged]
        for number, listener in enumerate(self._sockets):
            listener.listen(self._backlog)
            if self.store is not None:
                self.store.put(listener_name(number), listener.fileno(), urgent=True)
        for listener in staged:
            if listener not in before:
                self._add(listener)
                log.info(Event.LISTENING, address=str(address_of(listener)))

    def drop_stage(self) -> None:
        """Nobody is to serve there after all."""
        staged, self._staged = self._staged, None
        for listener in staged or ():
            if listener not in self._sockets:
                discard(listener)

    def offer(self, *, staged: bool) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """The listening descriptors for a pgbouncer, and whether each is a Unix-domain socket."""
        listeners = self._sockets if self._staged is None or not staged else self._staged
        return (
            tuple(listener.fileno() for listener in listeners),
            tuple(listener.family == socket.AF_UNIX for listener in listeners),
        )

    def take(self, fds: Iterable[int], *, given_up: bool = False) -> None:
        """Own listening descriptors that somebody else has bound, without accepting yet.

        `given_up`: there are none, because nobody is to listen.
        """
        self._given_up = given_up
        for fd in fds:
            listener = socket.socket(fileno=fd)
            listener.setblocking(False)
            self._add(listener)
            log.info(Event.LISTENING, address=_name(listener), given_back=True)

    def _add(self, listener: socket.socket) -> None:
        if self.store is not None:
            self.store.put(listener_name(len(self._sockets)), listener.fileno(), urgent=True)
        self._sockets.append(listener)
        if not self._pauses:
            self._watch(listener)
        name = listener.getsockname() if listener.family == socket.AF_UNIX else b""
        if isinstance(name, str) and name:
            with contextlib.suppress(OSError):
                facts = os.lstat(name)
                self._files[name] = (facts.st_dev, facts.st_ino)

    def set_defer(self, defer: bool) -> None:
        """Follow the ini's tcp_defer_accept, which PgBouncer may change while it runs."""
        for listener in self._sockets:
            if listener.family != socket.AF_UNIX:
                tune_accept(listener, defer)

    def pause(self, reason: Pause) -> None:
        """Stop accepting, for `reason`; clients wait in the kernel's queue."""
        if not self._pauses:
            for listener in self._sockets:
                self._loop.remove_reader(listener)
        self._pauses.add(reason)

    def resume(self, reason: Pause) -> None:
        """`reason` holds no more: accept, unless another one does."""
        if reason not in self._pauses:
            return
        self._pauses.discard(reason)
        if not self._pauses:
            for listener in self._sockets:
                self._watch(listener)

    def retry(self) -> None:
        """A place may have become free."""
        if Pause.FULL in self._pauses and self._room_left() > 0:
            self.resume(Pause.FULL)

    def give_up(self) -> None:
        """Listen no more: new clients are refused, or go to whoever else has our address."""
        if not self._given_up:
            log.info(HangerEvent.LISTENING_ENDED)
        self._given_up = True
        self.close(unlink=True)

    def close(self, *, unlink: bool) -> None:
        """Stop, until `bind` and `resume`.

        `unlink` removes our socket files, unless somebody has replaced them.
        """
        self.pause(Pause.NOT_OPEN)
        self.drop_stage()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for number, listener in enumerate(self._sockets):
            if self.store is not None:
                self.store.drop(listener_name(number))
            listener.close()
        self._sockets.clear()
        if unlink:
            for name in self._files:
                self._unlink(name)
        self._files.clear()

    def _leave(self, listener: socket.socket) -> None:
        """Listen there no more."""
        name = str(address_of(listener))
        if not self._pauses:
            self._loop.remove_reader(listener)
        path = address_of(listener).path
        listener.close()
        if path is not None and path in self._files:
            self._unlink(path)
            del self._files[path]
        log.info(HangerEvent.LISTENING_ENDED, address=name)

    def _unlink(self, name: str) -> None:
        """Remove our socket file, unless somebody has replaced it."""
        with contextlib.suppress(OSError):
            facts = os.lstat(name)
            same = (facts.st_dev, facts.st_ino) == self._files[name]
            if same and stat.S_ISSOCK(facts.st_mode):
                Path(name).unlink()

    def _watch(self, listener: socket.socket) -> None:
        self._loop.add_reader(listener, self._accept, *_watched(listener))

    def _accept(self, listener: socket.socket, unix: bool, waiting: _Waiting) -> None:
        if self._pauses:
            return
        room = self._room_left()
        if room <= 0:
            log.warning(HangerEvent.ACCEPT_PAUSED, reason=Pause.FULL.value)
            self.pause(Pause.FULL)
            return
        for number in range(min(room, _BURST)):
            # An accept(2) that finds nobody costs as much as one that does, a poll(2) a tenth.
            if number and (self._pauses or not waiting(0)):
                return
            try:
                client, address = accept(listener)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _CLIENT_GONE:
                    continue
                self._exhausted(error)
                return
            self._on_client(client, unix, UNIX if unix else address[0])

    def _exhausted(self, error: OSError) -> None:
        if error.errno != errno.EINVAL:  # pgbouncer has shut it down, and says so next: DRAINING
            log.error(HangerEvent.ACCEPT_PAUSED, reason=os.strerror(error.errno or 0))
        self.pause(Pause.EXHAUSTED)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_EXHAUSTED_FOR, self.resume, Pause.EXHAUSTED)


def _watched(listener: socket.socket) -> tuple[socket.socket, bool, _Waiting]:
    """It, whether it is a Unix-domain socket, and what tells, given 0, whether somebody waits."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return listener, listener.family == socket.AF_UNIX, poll.poll


def accept(listener: socket.socket) -> tuple[int, Any]:
    """A client's descriptor and address. Raises OSError as accept(2) does.

    What `socket.accept` calls itself: it then makes an object of the descriptor, with another
    system call, which costs more than the rest.
    """
    taken: tuple[int, Any] = listener._accept()  # type: ignore[attr-defined]
    return taken


def _name(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, tuple):
        return f"{name[0]}:{name[1]}"
    return "unix:" + (name if isinstance(name, str) else os.fsdecode(name).replace("\0", "@"))
