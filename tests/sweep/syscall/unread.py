"""How much of what was sent on a loopback socket its peer has not read yet.

Asked for one socket by netlink (man sock_diag): /proc/net/tcp lists all of the machine's.
"""

from __future__ import annotations

import fcntl
import socket
import struct

# linux/sockios.h; TIOCOUTQ would count what is only not acknowledged yet.
_SIOCOUTQNSD = 0x894B
# linux/netlink.h, linux/sock_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
# linux/inet_diag.h: inet_diag_req_v2, then its inet_diag_sockid in network byte order
_REQUEST = struct.Struct("=BBBxI")
_SOCKET_ID = struct.Struct("!HH4s12x4s12x12x")
_NO_COOKIE = b"\xff" * 8
# inet_diag_msg up to idiag_rqueue
_REPLY = struct.Struct("=4x48xII")


def unread(sender: socket.socket) -> bool:
    """Whether bytes that `sender` sent still lie in a kernel buffer of it or of its peer.

    Raises OSError if it is not connected any more.
    """
    if struct.unpack("i", fcntl.ioctl(sender, _SIOCOUTQNSD, b"\0" * 4))[0]:
        return True
    (host, port), (own_host, own_port) = sender.getpeername(), sender.getsockname()
    name = _SOCKET_ID.pack(port, own_port, socket.inet_aton(host), socket.inet_aton(own_host))
    body = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
    body += name[:-8] + _NO_COOKIE
    head = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
        netlink.send(head + body)
        answer = netlink.recv(4096)
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        raise OSError(-code, "the peer's socket is gone")
    _, queue = _REPLY.unpack_from(answer, _HEADER.size)
    return bool(queue)
