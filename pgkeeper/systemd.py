"""sd_notify(3) and sd_listen_fds(3) without libsystemd."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

__all__ = ["listen_fds", "manager_address", "manager_identity", "notify"]

_ENVIRONMENT = "NOTIFY_SOCKET"
_FIRST_FD = 3  # SD_LISTEN_FDS_START


def manager_address(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where the service manager listens, as an AF_UNIX address; None if it does not.

    `environ["NOTIFY_SOCKET"]` is a path, or "@name" in the abstract namespace.
    """
    address = environ.get(_ENVIRONMENT, "")
    if address.startswith("@"):
        return "\0" + address[1:]
    # Else not set, or "vsock:", which is for virtual machines' own managers.
    return address if address.startswith("/") else None


def manager_identity(environ: Mapping[str, str] = os.environ) -> str | None:
    """The same for all processes to which the manager listens in the same way; None without one."""
    address = environ.get(_ENVIRONMENT)
    return None if not address else f"{address} FDSTORE={environ.get('FDSTORE', '0')}"


def listen_fds(environ: MutableMapping[str, str] = os.environ) -> list[tuple[str, int]]:
    """The descriptors that the service manager has started us with, by name; ours from now on.

    To be called once: the variables are taken out of `environ`, and CLOEXEC is set.
    """
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return []
    found = []
    for number in range(int(count)):
        fd = _FIRST_FD + number
        os.set_inheritable(fd, False)
        found.append((names[number] if number < len(names) else "unknown", fd))
    return found


def notify(*assignments: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send `assignments` ("READY=1", "STATUS=serving 12 sessions") in one datagram.

    Returns False if there is none or the manager cannot be reached: a hanger outside systemd is
    nothing unusual, and one inside it must not end because of a report.  Never blocks or raises.
    A line break in a value would begin another assignment, so it becomes a space.
    """
    address = manager_address(environ)
    if address is None:
        return False
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
