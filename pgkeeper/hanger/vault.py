"""The duplicates of client and server sockets that the hanger holds, by token.

Descriptors stay raw numbers: a socket object around one could change O_NONBLOCK, which all
duplicates of a socket share with pgbouncer.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from pgkeeper.hanger.fdstore import socket_name
from pgkeeper.hanger.login_guard import UNIX
from protocol.control import HeldSocket, UnheldReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from pgkeeper.hanger.fdstore import FdStore

__all__ = ["SERVER_BIT", "Held", "TokenTakenError", "Vault", "Watcher", "is_server", "reason_name"]

#: Set in the tokens that pgbouncer makes itself, for its connections to servers (control.h).
SERVER_BIT: Final = 1 << 63


def is_server(token: int) -> bool:
    """Whether `token` names a server socket."""
    return bool(token & SERVER_BIT)


def reason_name(reason: UnheldReason) -> str:
    """`reason` as status and logs spell it: "ledger-full"."""
    return reason.name.lower().replace("_", "-")


class TokenTakenError(Exception):
    """`token` already names a held socket."""

    def __init__(self, token: int) -> None:
        self.token = token
        super().__init__(f"token {token:#x} is taken")


class Held(NamedTuple):
    """One held socket: its name, our descriptor of it, whether it is a Unix-domain one.

    `peer`: the address of a client, None where the kernel does not know it any more.  `born`: the
    incarnation that served when it came.  A tuple, because one is made for each login: a frozen
    dataclass takes five times as long.
    """

    token: int
    fd: int
    unix: bool
    peer: str | None = None
    born: int = 0


class Watcher(Protocol):
    """Who wants to know of what comes and goes."""

    def came(self) -> None:
        """A socket is held."""
        ...

    def went(self, tokens: Iterable[int]) -> None:
        """These are not any more."""
        ...


class Vault:
    """Owns every descriptor put into it and closes each exactly once.

    It also counts the sockets that pgbouncer said it serves without our holding them.
    """

    def __init__(self) -> None:
        self.store: FdStore | None = None
        """Keeps duplicates of all that is held, if there is one."""
        self.watcher: Watcher | None = None
        self.era = 0
        """The incarnation that serves, or has served last."""
        self._held: dict[int, Held] = {}
        self._unheld: dict[int, str] = {}
        self._unheld_peers: dict[int, str] = {}
        self._servers = 0
        self._next_client = 1

    @property
    def clients(self) -> int:
        """How many client sockets are held."""
        return len(self._held) - self._servers

    @property
    def servers(self) -> int:
        """How many server sockets are held."""
        return self._servers

    @property
    def next_client(self) -> int:
        """The token of the next client."""
        return self._next_client

    def __len__(self) -> int:
        return len(self._held)

    @property
    def tokens(self) -> AbstractSet[int]:
        """Of all held sockets, as they come and go."""
        return self._held.keys()

    def new_client(self, fd: int, *, unix: bool, peer: str | None = None) -> Held:
        """Hold a client just accepted, under the next token; `fd` is the vault's from now on."""
        held = Held(self._next_client, fd, unix, peer, self.era)
        self._next_client += 1
        self._hold(held)
        return held

    def add(
        self,
        token: int,
        fd: int,
        *,
        unix: bool,
        peer: str | None = None,
        born: int | None = None,
    ) -> None:
        """Hold a socket that pgbouncer registered; `fd` is the vault's from now on.

        `peer`: a client's address, None if only the kernel knows it.  `born`: None for now.

        Raises `TokenTakenError`; `fd` is closed then, because nobody else would.
        """
        if token in self._held:
            os.close(fd)
            raise TokenTakenError(token)
        if peer is None and not is_server(token):
            peer = _peer(fd)
        self._hold(Held(token, fd, unix, peer, self.era if born is None else born))
        if is_server(token):
            self._servers += 1
        else:
            self.reserve_tokens(token)

    def reserve_tokens(self, last: int) -> None:
        """Never give a client the token `last` or one below it."""
        self._next_client = max(self._next_client, last + 1)

    def get(self, token: int) -> Held | None:
        """The held socket of that token."""
        return self._held.get(token)

    def peer(self, token: int) -> str | None:
        """The address of a client, held or not; None if that is not known."""
        held = self._held.get(token)
        return self._unheld_peers.get(token) if held is None else held.peer

    def held(self) -> Iterator[Held]:
        """All held sockets, by ascending token, so clients in the order they came."""
        return iter(sorted(self._held.values(), key=lambda held: held.token))

    def pick(self, tokens: Iterable[int]) -> tuple[tuple[HeldSocket, ...], tuple[int, ...]]:
        """Those of `tokens` that are still held, for a message, and their descriptors."""
        found = [self._held[token] for token in tokens if token in self._held]
        return (
            tuple([HeldSocket(held.token, held.unix) for held in found]),
            tuple([held.fd for held in found]),
        )

    def release(self, token: int) -> bool:
        """Close the duplicate, or forget that the socket was unheld; False if it is unknown."""
        self._unheld_peers.pop(token, None)
        if self._unheld.pop(token, None) is not None:
            return True
        return self._close(token)

    def mark_unheld(self, token: int, reason: UnheldReason) -> None:
        """pgbouncer serves this socket by itself: close the duplicate, if any, and count it."""
        peer = self.peer(token)
        if peer is not None:
            self._unheld_peers[token] = peer
        self._close(token)
        self._unheld[token] = reason_name(reason)
        if not is_server(token):
            self.reserve_tokens(token)

    def unheld(self) -> dict[str, int]:
        """How many sockets are served unheld, by reason."""
        return dict(sorted(Counter(self._unheld.values()).items()))

    def unheld_tokens(self) -> dict[int, str]:
        """The sockets served unheld: reason by token."""
        return dict(self._unheld)

    def unheld_peers(self) -> dict[int, str]:
        """The addresses of those of them that are known, by token."""
        return dict(self._unheld_peers)

    def inherit_unheld(self, reasons: Mapping[int, str], peers: Mapping[int, str]) -> None:
        """Served unheld are what `unheld_tokens` and `unheld_peers` of another vault gave."""
        self._unheld.update(reasons)
        self._unheld_peers.update(peers)

    def forget_unheld(self) -> int:
        """The pgbouncer that served them is dead, and so are they; returns how many."""
        count = len(self._unheld)
        self._unheld.clear()
        self._unheld_peers.clear()
        return count

    def close_all(self) -> None:
        """Close every duplicate; tokens are never used again."""
        if self.watcher is not None:
            self.watcher.went(self._held)
        for held in self._held.values():
            self._forget(held)
            os.close(held.fd)
        self._held.clear()
        self._servers = 0
        self._unheld.clear()
        self._unheld_peers.clear()

    def _close(self, token: int) -> bool:
        held = self._held.pop(token, None)
        if held is None:
            return False
        if is_server(token):
            self._servers -= 1
        self._forget(held)
        os.close(held.fd)
        if self.watcher is not None:
            self.watcher.went((token,))
        return True

    def _hold(self, held: Held) -> None:
        self._held[held.token] = held
        if self.watcher is not None:
            self.watcher.came()
        if self.store is not None:
            self.store.put(socket_name(held.token, unix=held.unix), held.fd)

    def _forget(self, held: Held) -> None:
        if self.store is not None:
            self.store.drop(socket_name(held.token, unix=held.unix))


def _peer(fd: int) -> str | None:
    """The address of whoever is at the other end; None if it has gone."""
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        if connection.family == socket.AF_UNIX:
            return UNIX
        return str(connection.getpeername()[0])
    except OSError:
        return None
    finally:
        connection.detach()
