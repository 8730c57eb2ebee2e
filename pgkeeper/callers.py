"""Those who connect to one of the hanger's small servers, each served by a task of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

    from pgkeeper.log import Event, Logger

__all__ = ["Callers"]

_PAUSE: Final = 1.0  # seconds


class Callers:
    """Accepts on a listening socket and has `serve(connection)` answer each who comes.

    Connections do not block; who serves one closes it.  `serve` gives None for one that it has
    turned away.  `paused` is logged when there are no descriptors or memory left for another.
    """

    def __init__(
        self,
        serve: Callable[[socket.socket], Coroutine[Any, Any, None] | None],
        log: Logger,
        paused: Event,
    ) -> None:
        self._serve = serve
        self._log = log
        self._paused = paused
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many are being served."""
        return len(self._tasks)

    @property
    def listening(self) -> bool:
        """Whether others may come."""
        return self._listener is not None

    def listen(self, listener: socket.socket) -> None:
        """Accept on `listener`, which is ours from now on."""
        listener.setblocking(False)
        self._listener = listener
        # Not asyncio's own server: a connection that it accepts while it closes is lost to both.
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def fileno(self) -> int:
        """The listening descriptor; -1 if there is none."""
        return -1 if self._listener is None else self._listener.fileno()

    def leave(self) -> None:
        """Listen no more; those who are being served have until `end`."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def end(self, grace: float = 0.0) -> None:
        """Give those who are being served `grace` seconds, then cancel their tasks."""
        if self._tasks and grace:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it left before we came
        except OSError as error:
            self._pause(listener, error)
            return
        connection.setblocking(False)
        serving = self._serve(connection)
        if serving is not None:
            task = asyncio.create_task(serving)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        """No descriptor or memory is left: leave it to those who wait to try again."""
        self._log.error(self._paused, error=error.strerror, seconds=_PAUSE)
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)

        def go_on() -> None:
            if self._listener is listener:
                loop.add_reader(listener, self._accept, listener)

        loop.call_later(_PAUSE, go_on)
