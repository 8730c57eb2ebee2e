"""A relay that counts the cancel requests that pass, for who gets them does not, or tells lies."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from testbed.pooler import Pooler
    from testbed.postgres import Postgres

_CANCEL_REQUEST = struct.pack("!ii", 16, 80877102)
_CHUNK = 65536


class Relay:
    """Listens on `port` of 127.0.0.1 and hands everything on. Use it as a context manager.

    `spoil` changes what comes from the target, a part at a time: what a bad pooler would do.
    """

    def __init__(
        self, target: Postgres | Pooler, spoil: Callable[[bytes], bytes] | None = None
    ) -> None:
        self._spoil = spoil or bytes
        self._target = (target.host, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._cancels = 0
        self._thread = threading.Thread(target=self._accept, name="relay", daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # shutdown() wakes accept(), close() would not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def take_cancels(self) -> int:
        """How many cancel requests have passed since the last call."""
        with self._lock:
            taken, self._cancels = self._cancels, 0
        return taken

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            first = client.recv(_CHUNK)
            if first.startswith(_CANCEL_REQUEST):
                with self._lock:
                    self._cancels += 1
            with socket.create_connection(self._target) as server:
                server.sendall(first)
                _copy_both_ways(client, server, self._spoil)


def _copy_both_ways(
    client: socket.socket, server: socket.socket, spoil: Callable[[bytes], bytes]
) -> None:
    """Until both sides have said that they are done."""
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, server)
        selector.register(server, selectors.EVENT_READ, client)
        while selector.get_map():
            for key, _ in selector.select():
                source, target = cast("socket.socket", key.fileobj), key.data
                data = source.recv(_CHUNK)
                if data:
                    target.sendall(spoil(data) if source is server else data)
                else:
                    selector.unregister(source)
                    target.shutdown(socket.SHUT_WR)
