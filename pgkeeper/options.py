"""What `pgkeeper run` was asked to do: the boundary between the command line and the daemon."""

from __future__ import annotations

import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "DEFAULT_HANG_TIMEOUT",
    "DEFAULT_HOLD_TIMEOUT",
    "LEAST_HANG_TIMEOUT",
    "BadEndpointError",
    "Endpoint",
    "RunOptions",
    "UnknownUserError",
    "uid_of",
]

#: Seconds that sessions are held while no pgbouncer serves them.
DEFAULT_HOLD_TIMEOUT = 60.0
#: Seconds that the heartbeat of a pgbouncer that serves may stand still; one that has nothing to do
#: shows three in a second, so that less than a second would be no sign.
DEFAULT_HANG_TIMEOUT = 5.0
LEAST_HANG_TIMEOUT = 1.0

_LOOPBACK = "127.0.0.1"
_PORT_MAX = 65535
_PORT_DIGITS = len(str(_PORT_MAX))
_UID_MAX = 2**32 - 2  # (uid_t)-1 means "no user" to the kernel


class UnknownUserError(PgkeeperError):
    """`name` is neither a user of this machine nor a numeric uid."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"no such user: {name!a}")


def uid_of(name: str) -> int:
    """The uid that `name` stands for: a user name, or the uid itself in decimal.

    Numbers need not be known to this machine, because a container's users usually are not.
    Raises `UnknownUserError`.
    """
    if name.isascii() and name.isdigit():
        uid = int(name) if len(name) <= len(str(_UID_MAX)) else _UID_MAX + 1
        if uid <= _UID_MAX:
            return uid
        raise UnknownUserError(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError, UnicodeError):
        raise UnknownUserError(name) from None


class BadEndpointError(PgkeeperError):
    """`text` does not name an address and a port."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(f"not ADDRESS:PORT or PORT: {text!a}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where metrics are served: an address or a host's name, and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`ADDRESS:PORT`, `[IPV6]:PORT`, or `PORT` of this machine's loopback address.

        Raises `BadEndpointError`.
        """
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise BadEndpointError(text)  # of an IPv6 address nobody knows where it ends
        digits = port.isascii() and port.isdigit() and len(port) <= _PORT_DIGITS
        if not digits or not 0 < int(port) <= _PORT_MAX or (colon and not host):
            raise BadEndpointError(text)
        return cls(host if colon else _LOOPBACK, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of `pgkeeper run`, checked for shape but not against the machine.

    - `ini`: PgBouncer's configuration file.
    - `pgbouncer`: the binary to run; None means the one `pgkeeper build` made.
    - `socket`: where pgbouncer finds the hanger; None means the ini's `keeper_socket`.
    - `standby`: keep a second pgbouncer started and waiting for adoption.
    - `supervise`: start pgbouncer, and start it again when it dies.
    - `allow_users`: names or uids, besides root, our own and pgbouncer's, that may connect.
    - `hold_timeout`: seconds to hold sessions while nobody serves them; 0 means for ever.
    - `hang_timeout`: seconds without a heartbeat after which pgbouncer is replaced; 0 means never.
    - `metrics`: where to serve metrics over HTTP; None means nowhere.
    - `log_json`, `log_level`: see `pgkeeper.log.configure`.
    """

    ini: Path
    pgbouncer: Path | None = None
    socket: Path | None = None
    standby: bool = True
    supervise: bool = True
    allow_users: tuple[str, ...] = ()
    hold_timeout: float = DEFAULT_HOLD_TIMEOUT
    hang_timeout: float = DEFAULT_HANG_TIMEOUT
    metrics: Endpoint | None = None
    log_json: bool = False
    log_level: str = "info"

    @property
    def allow_uids(self) -> frozenset[int]:
        """`allow_users` as uids.  Raises `UnknownUserError`."""
        return frozenset(map(uid_of, self.allow_users))
