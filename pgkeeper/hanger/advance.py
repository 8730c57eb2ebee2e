"""The held sockets go to who stands by before he is needed, and he is told which have ended.

So an activation sends what has changed in the last moment, and a pgbouncer that has died is
succeeded sooner.  What begins is sent in batches, for most connections live longer than that or end
before it; what ends is said at once: a duplicate keeps the kernel's socket open, and with a session
that is not held any more, its peer from hearing of its end.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import TYPE_CHECKING, Final

from pgkeeper.hanger.delivery import send_sockets
from pgkeeper.states import ProcessState
from protocol.control import BATCH, Forget

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Iterator

    from pgkeeper.hanger.census import Census
    from pgkeeper.hanger.process import Process
    from pgkeeper.hanger.vault import Vault

__all__ = ["Advance", "Given"]

#: Seconds until new sockets are sent on.
_GIVE_AFTER: Final = 0.25
#: Seconds between two looks at whether what has ended was let go of, and how many are too many.
_LOOK_AFTER: Final = 1.0
_LOOKS: Final = 5
_UNREAD: Final = struct.Struct("i")


class Given:
    """What one that stands by has: the tokens of its sockets, and those it has yet to hear of."""

    def __init__(self) -> None:
        self.tokens: set[int] = set()
        self.ended: list[int] = []
        self.looks = 0


class Advance:
    """Of the sockets in the vault, to all in the census who stand by and say that they can."""

    def __init__(self, loop: asyncio.AbstractEventLoop, census: Census, vault: Vault) -> None:
        self._loop = loop
        self._census = census
        self._vault = vault
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Handle | None = None
        self._looking: asyncio.TimerHandle | None = None
        vault.watcher = self

    def inherited(self, process: Process) -> None:
        """It stands by, and another hanger knew what it has."""
        if process.given is not None and process.link is not None:
            process.link.send(Forget(()))
            self.came()

    def complete(self, process: Process) -> None:
        """It is to adopt: send it what it has not got."""
        link, given = process.link, process.given
        process.given = None
        if link is None:
            return
        if given is None:
            send_sockets(link, self._vault, self._vault.tokens)
            return
        self._tell(process, given)
        if len(given.tokens) < len(self._vault):
            send_sockets(link, self._vault, self._vault.tokens - given.tokens)

    # of the vault

    def came(self) -> None:
        """Watcher: a socket is held."""
        if self._timer is None:
            self._timer = self._loop.call_later(_GIVE_AFTER, self._give)

    def went(self, tokens: Iterable[int]) -> None:
        """Watcher: sockets are not held any more."""
        for _, given in self._standing_by():
            gone = given.tokens.intersection(tokens)
            given.tokens -= gone
            given.ended += gone
            if gone and self._telling is None:
                # Those that end in the same turn are said together.
                self._telling = self._loop.call_soon(self._tell_all)

    def _standing_by(self) -> Iterator[tuple[Process, Given]]:
        for process in self._census:
            if process.given is not None and process.state is ProcessState.STANDBY:
                yield process, process.given

    def _give(self) -> None:
        self._timer = None
        for process, given in self._standing_by():
            missing = self._vault.tokens - given.tokens
            if missing and process.link is not None:
                given.tokens |= missing
                send_sockets(process.link, self._vault, missing)

    def _tell_all(self) -> None:
        self._telling = None
        for process, given in self._standing_by():
            self._tell(process, given)
            if self._looking is None:
                self._looking = self._loop.call_later(_LOOK_AFTER, self._look)

    def _tell(self, process: Process, given: Given) -> None:
        ended, given.ended = given.ended, []
        if process.link is not None:
            for at in range(0, len(ended), BATCH):
                process.link.send(Forget(tuple(ended[at : at + BATCH])))

    def _look(self) -> None:
        """One that does not read does not let go either: it is ended."""
        self._looking = None
        for process, given in self._standing_by():
            given.looks = given.looks + 1 if _unread(process) else 0
            if given.looks == _LOOKS:
                process.kill("it stands by, and does not let go of sockets that have ended")
            elif given.looks and self._looking is None:
                self._looking = self._loop.call_later(_LOOK_AFTER, self._look)


def _unread(process: Process) -> bool:
    link = process.link
    if link is None:
        return False
    (unread,) = _UNREAD.unpack(fcntl.ioctl(link.fileno(), termios.TIOCOUTQ, _UNREAD.pack(0)))
    return bool(unread or link.queued)
