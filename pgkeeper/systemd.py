"""sd_notify(3) without libsystemd: tell the service manager how the hanger is."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["notify"]

_ENVIRONMENT = "NOTIFY_SOCKET"


def notify(*assignments: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send `assignments` ("READY=1", "STATUS=serving 12 sessions") in one datagram.

    The socket is `environ["NOTIFY_SOCKET"]`: a path, or "@name" in the abstract namespace.
    Returns False if there is none or the manager cannot be reached: a hanger outside systemd is
    nothing unusual, and one inside it must not end because of a report.  Never blocks or raises.
    A line break in a value would begin another assignment, so it becomes a space.
    """
    address = environ.get(_ENVIRONMENT, "")
    if address.startswith("@"):
        address = "\0" + address[1:]
    elif not address.startswith("/"):
        return False  # not set, or "vsock:", which is for virtual machines' own managers
    message = "\n".join(" ".join(line.splitlines()) for line in assignments)
    try:
        with socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        ) as connection:
            connection.connect(address)
            connection.send(message.encode(errors="backslashreplace"))
    except (OSError, ValueError):
        return False
    return True
