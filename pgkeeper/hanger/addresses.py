"""Where to listen: the ini's settings as socket addresses, exactly as PgBouncer reads them.

Source: PgBouncer's src/pooler.c (`parse_addr`, `create_unix_socket`).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from pgkeeper.config import BouncerIni

__all__ = ["Address", "AddressUnknownError", "NowhereToListenError", "addresses"]


class AddressUnknownError(PgkeeperError):
    """getaddrinfo(3) knows nothing about `name` of listen_addr; `reason` is what it says."""

    def __init__(self, name: str, port: int, reason: str) -> None:
        self.name = name
        self.port = port
        self.reason = reason
        super().__init__(f"listen_addr: cannot resolve {name!a}, port {port}: {reason}")


class NowhereToListenError(PgkeeperError):
    """Neither listen_addr nor unix_socket_dir is set."""

    def __init__(self) -> None:
        super().__init__("nowhere to listen on: set listen_addr or unix_socket_dir")


@dataclass(frozen=True, slots=True)
class Address:
    """An address to bind: of AF_INET, AF_INET6 or AF_UNIX.

    `sockaddr` is Python's form of it; a str for AF_UNIX, with a leading zero if abstract.
    """

    family: socket.AddressFamily
    sockaddr: tuple[str | int, ...] | str

    @property
    def unix(self) -> bool:
        """Whether it is a Unix-domain socket."""
        return self.family == socket.AF_UNIX

    @property
    def path(self) -> str | None:
        """The socket's file; None for TCP and for the abstract namespace."""
        if isinstance(self.sockaddr, str) and not self.sockaddr.startswith("\0"):
            return self.sockaddr
        return None

    @property
    def wildcard(self) -> bool:
        """Whether it stands for every address of its family."""
        return not self.unix and self.sockaddr[0] in ("0.0.0.0", "::")  # noqa: S104 - compared

    def overlaps(self, other: Address) -> bool:
        """Whether one of two addresses makes the other impossible to bind, without SO_REUSEPORT."""
        if self.family != other.family or self.unix:
            return self == other
        same_port = self.sockaddr[1] == other.sockaddr[1]
        return same_port and (self == other or self.wildcard or other.wildcard)

    def __str__(self) -> str:
        if isinstance(self.sockaddr, str):
            return f"unix:{self.sockaddr}".replace("\0", "@")
        host, port = self.sockaddr[:2]
        return f"[{host}]:{port}" if self.family == socket.AF_INET6 else f"{host}:{port}"


def addresses(ini: BouncerIni) -> tuple[Address, ...]:
    """Every address that `ini` tells pgbouncer to listen on, each once.

    Resolves names, which may block: only called before anything is served.  Raises
    `AddressUnknownError`, `NowhereToListenError`.
    """
    found: dict[Address, None] = {}
    for name in ini.listen_addresses:
        for address in _resolve(name, ini.listen_port):
            found[address] = None
    if ini.unix_socket_dir:
        path = f"{ini.unix_socket_dir}/.s.PGSQL.{ini.listen_port}"
        if path.startswith("@"):
            path = "\0" + path[1:]
        found[Address(socket.AF_UNIX, path)] = None
    if not found:
        raise NowhereToListenError
    return tuple(found)


def _resolve(name: str, port: int) -> list[Address]:
    try:
        answers = socket.getaddrinfo(
            None if name == "*" else name,
            port,
            socket.AF_UNSPEC,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            socket.AI_PASSIVE,
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise AddressUnknownError(name, port, str(reason)) from None
    return [
        # (int, bytes) stands in the types for a Python without IPv6
        Address(family, tuple(part for part in sockaddr if not isinstance(part, bytes)))
        for family, _, _, _, sockaddr in answers
    ]
