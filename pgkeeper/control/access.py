"""Who may connect to a Unix socket of the hanger."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["Peer", "peer_of", "set_access"]

_UCRED: Final = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel saw it at connect(): SO_PEERCRED, unix(7).

    `pid` is 0 if the process lives in a PID namespace that ours cannot see.
    """

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket | TransportSocket) -> Peer:
    """The peer of a connected Unix socket.  Raises `OSError`."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Peer(*_UCRED.unpack(raw))


def set_access(path: Path, allowed_uids: Collection[int]) -> None:
    """Give the socket file `path` the narrowest mode with which `allowed_uids` can connect.

    0600 if they are we and root; root's hanger gives the file to the one other user there is.
    Only with more users than that the file has to be open (0666), and SO_PEERCRED, which is
    checked in any case, is all that keeps others out.  Raises `OSError`.
    """
    own = os.geteuid()
    others = frozenset(allowed_uids) - {0, own}
    mode = 0o600
    if len(others) == 1 and own == 0:
        (owner,) = others
        os.chown(path, owner, -1)
    elif others:
        mode = 0o666
    path.chmod(mode)
