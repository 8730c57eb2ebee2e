"""How many bytes of a TCP stream have been written, as the kernel counts them.

The same figure as `keeper_figures()` in patches/keeper/figures.c; see tcp(7), linux/tcp.h.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import Final

__all__ = ["bytes_written"]

_BYTES_ACKED: Final = 120  # offset of tcpi_bytes_acked in struct tcp_info
_INFO_SIZE: Final = 136
_SIOCOUTQ: Final = 0x5411
_U64: Final = struct.Struct("=Q")
_INT: Final = struct.Struct("=i")

# include/net/tcp_states.h: a FIN was sent or queued, and counts 1.
_FIN_SENT: Final = frozenset({4, 5, 6, 9, 11})  # FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING


def bytes_written(connection: socket.socket) -> int:
    """Bytes that anybody has ever written to this socket; raises OSError.

    Counter and queue are two calls: they are read until the counter stands still.
    """
    while True:
        before = _acked(connection)
        unsent = _INT.unpack(fcntl.ioctl(connection, _SIOCOUTQ, bytes(_INT.size)))[0]
        state, acked = _acked(connection)
        if (state, acked) == before:
            return int(acked + unsent - (state in _FIN_SENT))


def _acked(connection: socket.socket) -> tuple[int, int]:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
    return info[0], _U64.unpack_from(info, _BYTES_ACKED)[0]
