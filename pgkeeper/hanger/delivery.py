"""Sending sockets to a pgbouncer: some that are held, or one new client.

Each message is made when its turn comes, of what is held then: a socket that was closed while it
waited in the queue is left out.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from protocol.control import BATCH, Client, Sockets, encode_client

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pgkeeper.hanger.bouncer_link import BouncerLink
    from pgkeeper.hanger.vault import Held, Vault
    from protocol.control import Message

__all__ = ["send_client", "send_sockets"]


def send_sockets(link: BouncerLink, vault: Vault, tokens: Iterable[int]) -> None:
    """Send those of `tokens` that are held, in messages of as many as one may carry."""
    ordered = sorted(tokens)
    for at in range(0, len(ordered), BATCH):
        link.send_later(functools.partial(_sockets, vault, tuple(ordered[at : at + BATCH])))


def send_client(link: BouncerLink, vault: Vault, held: Held, *, fresh: bool) -> None:
    """Send a client that was accepted: at once as a rule, and then without a queue's overhead.

    `fresh`: nothing was read from it or written to it.
    """
    if not link.send_now(encode_client(held.token, unix=held.unix, fresh=fresh), held.fd):
        link.send_later(functools.partial(_client, vault, held.token))


def _sockets(vault: Vault, tokens: tuple[int, ...]) -> tuple[Message, tuple[int, ...]] | None:
    held, fds = vault.pick(tokens)
    return (Sockets(held), fds) if held else None


def _client(vault: Vault, token: int) -> tuple[Message, tuple[int, ...]] | None:
    held, fds = vault.pick((token,))
    return (Client(held[0]), fds) if held else None
