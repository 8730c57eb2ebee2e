"""Waiting for a condition instead of for a time, and finding a free port."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from typing import TYPE_CHECKING

from pgkeeper.trial.errors import NotFoundError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_POLL_S = 0.005

# Below the kernel's range of ephemeral ports (net.ipv4.ip_local_port_range begins at 32768), so
# that no outgoing connection takes the port between the look and the bind.
_PORTS = range(10200, 32000)


def wait_until(
    condition: Callable[[], bool], *, what: str, seconds: float = 10.0, poll_s: float = _POLL_S
) -> None:
    """Return as soon as `condition()` is true, looking every `poll_s` seconds.

    Raises `WaitTimeoutError`, which says `what`, after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(what, seconds)
        time.sleep(poll_s)


async def wait_until_async(
    condition: Callable[[], Awaitable[bool]],
    *,
    what: str,
    seconds: float = 10.0,
    poll_s: float = _POLL_S,
) -> None:
    """`wait_until` for a coroutine, leaving the event loop free between two looks."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(what, seconds)
        await asyncio.sleep(poll_s)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on. Raises `NotFoundError` if there is none."""
    for port in random.sample(_PORTS, 200):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As the servers do: a port in TIME_WAIT is free for a listener.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen(1)
            except OSError:
                continue
            return port
    raise NotFoundError("a free TCP port on 127.0.0.1", "200 ports tried")
