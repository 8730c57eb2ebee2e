"""Making a listening socket as PgBouncer would, and seeing who is in the way.

Source: PgBouncer's src/pooler.c (`add_listen`, `create_unix_socket`, `tune_accept`), src/main.c
(`check_old_process_unix`).
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeeper.errors import PgkeeperError
from pgkeeper.hanger.addresses import Address
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pgkeeper.config import BouncerIni

__all__ = [
    "AddressInUseError",
    "CannotListenError",
    "address_of",
    "bind",
    "bind_all",
    "bind_path",
    "discard",
    "tune_accept",
]

log = get_logger()


class CannotListenError(PgkeeperError):
    """Listening on `address` failed; `reason` says why."""

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        self.reason = reason
        super().__init__(f"cannot listen on {address}: {reason}")


class AddressInUseError(CannotListenError):
    """Another process listens on `address`."""

    def __init__(self, address: str) -> None:
        super().__init__(address, "another process is listening there (port in use)")


def bind(address: Address, ini: BouncerIni, *, owner: int | None = None) -> socket.socket:
    """A non-blocking socket that listens on `address`, with the options of `ini`.

    `owner` is the uid that a socket file is to belong to, if not our own.  Raises
    `AddressInUseError`, `CannotListenError`.
    """
    try:
        return _bind(address, ini, owner)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(str(address)) from None
        raise CannotListenError(str(address), os.strerror(error.errno or 0)) from None


def bind_all(
    addresses: Iterable[Address],
    ini: BouncerIni,
    *,
    owner: int | None = None,
    bound: Mapping[Address, socket.socket] | None = None,
) -> dict[Address, socket.socket]:
    """Sockets that listen on all of `addresses`; those of `bound` do already, and are taken.

    As in PgBouncer a TCP address that cannot be bound is passed over with a warning, while a Unix
    socket must work and one address must remain.  An address that another process uses is an error
    though, and then nothing is bound: `AddressInUseError`, `CannotListenError`.
    """
    before = bound or {}
    made: dict[Address, socket.socket] = {}
    failed: CannotListenError | None = None
    try:
        for address in addresses:
            if address in before:
                made[address] = before[address]
                continue
            try:
                made[address] = bind(address, ini, owner=owner)
            except CannotListenError as error:
                for other in before:
                    if address.overlaps(other):
                        reason = (
                            f"until the handoff is done we listen on {other}: take another port"
                        )
                        raise CannotListenError(str(address), reason) from None
                ours = any(address.overlaps(other) for other in made)
                if address.unix or (isinstance(error, AddressInUseError) and not ours):
                    raise
                log.warning(HangerEvent.LISTEN_FAILED, address=str(address), reason=error.reason)
                failed = error
        if failed is not None and not made:
            raise failed
    except BaseException:
        for address, listener in made.items():
            if address not in before:
                discard(listener)
        raise
    return made


def discard(listener: socket.socket) -> None:
    """Close one that was bound in vain, with its file."""
    path = address_of(listener).path
    listener.close()
    if path is not None:
        with contextlib.suppress(OSError):
            Path(path).unlink()


def address_of(listener: socket.socket) -> Address:
    """Where it listens."""
    name = listener.getsockname()
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    return Address(socket.AddressFamily(listener.family), name)


def _bind(address: Address, ini: BouncerIni, owner: int | None) -> socket.socket:
    listener = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if not address.unix:
            _tcp_options(listener, ini)
            listener.bind(address.sockaddr)
            tune_accept(listener, ini.tcp_defer_accept)
        elif address.path is None:
            listener.bind(address.sockaddr)
        else:
            if Path(f"{address.path}.lock").exists():
                raise CannotListenError(str(address), f"{address.path}.lock exists (port in use)")
            bind_path(listener, address.path)
            _file_mode(address.path, ini, owner)
        listener.listen(ini.listen_backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def _tcp_options(listener: socket.socket, ini: BouncerIni) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if ini.so_reuseport:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def tune_accept(listener: socket.socket, defer: bool) -> None:
    """Let the kernel report a TCP client only when its first bytes are here (tcp_defer_accept)."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, int(defer))


def bind_path(listener: socket.socket, path: str) -> None:
    """Bind a Unix socket to `path`, in place of a file that nobody listens on any more.

    Raises OSError: EADDRINUSE if somebody does, or if the file is no socket.
    """
    kind = listener.type & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode) or _answers(path, kind):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
        Path(path).unlink()
    listener.bind(path)


def _answers(path: str, kind: int) -> bool:
    """Whether a living process listens on `path`; only a refused connection proves the contrary."""
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError as error:
            # EAGAIN: its queue of connections is full.  EPROTOTYPE: it listens for another kind.
            if error.errno in (errno.EAGAIN, errno.EPROTOTYPE):
                return True
            raise
        return True


def _file_mode(path: str, ini: BouncerIni, owner: int | None) -> None:
    """Give a socket file mode, group and owner (lib/usual: `change_file_mode`)."""
    group = -1
    if ini.unix_socket_group is not None:
        try:
            group = grp.getgrnam(ini.unix_socket_group).gr_gid
        except KeyError:
            reason = f"no such group: {ini.unix_socket_group!a} (unix_socket_group)"
            raise CannotListenError(f"unix:{path}", reason) from None
    if owner is not None or group != -1:
        os.chown(path, -1 if owner is None else owner, group)
    Path(path).chmod(ini.unix_socket_mode)
