"""How many descriptors we may have, and so how many clients."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Final

from pgkeeper.errors import PgkeeperError
from pgkeeper.hanger.events import HangerEvent
from pgkeeper.log import get_logger

if TYPE_CHECKING:
    from pgkeeper.hanger.vault import Vault

__all__ = ["RESERVE", "Room", "TooFewDescriptorsError", "raise_descriptor_limit"]

log = get_logger()

#: Descriptors that are not for held sockets: our own, and those of two batches under way.
RESERVE: Final = 192
_LEAST_SPARE: Final = 64


class TooFewDescriptorsError(PgkeeperError):
    """RLIMIT_NOFILE's hard limit `hard` is too low for `max_client_conn`."""

    def __init__(self, hard: int, max_client_conn: int) -> None:
        self.hard = hard
        self.max_client_conn = max_client_conn
        super().__init__(
            f"at most {hard} descriptors (RLIMIT_NOFILE) are too few for max_client_conn ="
            f" {max_client_conn}: raise the limit to {2 * max_client_conn + RESERVE}"
        )


def raise_descriptor_limit(max_client_conn: int) -> int:
    """Use all descriptors that we may have; returns how many.

    The hanger holds clients and servers, so twice `max_client_conn` should be possible; less is
    logged.  Raises `TooFewDescriptorsError` if not even the clients have room.
    """
    wanted = 2 * max_client_conn + RESERVE
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(wanted, 1 << 20)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.RLIM_INFINITY))
        return hard
    if hard < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        except (OSError, ValueError):
            pass  # only root may
        else:
            return wanted
    if hard < max_client_conn + _LEAST_SPARE:
        raise TooFewDescriptorsError(hard, max_client_conn)
    if hard < wanted:
        log.warning(
            HangerEvent.DESCRIPTOR_LIMIT, limit=hard, max_client_conn=max_client_conn, wanted=wanted
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Room:
    """How many more clients can be held."""

    def __init__(self, max_client_conn: int) -> None:
        self.max_client_conn = max_client_conn

    def for_clients(self, vault: Vault, *, down: bool) -> int:
        """How many `vault` may take; 0 or less: none.

        pgbouncer itself refuses clients beyond max_client_conn; while it is `down` we keep those
        waiting in the kernel's queue.  Descriptors for what pgbouncer registers are kept free.
        """
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = soft - min(RESERVE, soft // 4) - len(vault)
        return min(room, self.max_client_conn - vault.clients) if down else room
