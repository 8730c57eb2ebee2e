"""Waiting in the event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until `condition()` is true."""

    async def holds() -> bool:
        return bool(condition())

    await wait_until_async(holds, what="the condition", seconds=15.0, poll_s=0.001)
