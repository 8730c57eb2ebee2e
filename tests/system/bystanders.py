"""Sessions that rest while others crash pgbouncer."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from testbed import RawClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Keeper

_COUNT = 200


@contextlib.contextmanager
def bystanders(keeper: Keeper) -> Iterator[None]:
    """Two hundred of them; at the end each is still itself, on its old connection.

    Raises AssertionError.
    """
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(keeper.host, keeper.port)) for _ in range(_COUNT)]
        for number, client in enumerate(clients):
            client.login(parameters={"application_name": f"idle-{number}"})
        ports = [client.client_port for client in clients]
        yield
        for number, client in enumerate(clients):
            name = client.query("SHOW application_name")
            assert name == [(f"idle-{number}",)]
        assert [client.client_port for client in clients] == ports
