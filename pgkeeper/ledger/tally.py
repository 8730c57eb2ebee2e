"""How many sockets a ledger has, by database and user: cheap enough to be asked all the time.

`reader.sessions` tells more of each, at a hundred times the cost.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pgkeeper.ledger.scan import Scan
from protocol.ledger import Flag, Kind, LedgerDamaged, PoolRecord

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from protocol.ledger import LedgerView

__all__ = ["Pool", "PoolNames", "Tally", "count"]

_SCAN: Final = Scan("kind", "flags", "token", "pool")
_SOCKETS: Final = frozenset({Kind.CLIENT, Kind.SERVER, Kind.CLOSING})


@dataclass(frozen=True, slots=True)
class Pool:
    """Database and user, as SHOW POOLS has them; empty while nobody has logged in."""

    database: str = ""
    user: str = ""


@dataclass(slots=True)
class Tally:
    """How many sockets there are.

    - `clients`, `servers`: those that are held, by pool.
    - `unheld`: those that would not outlive pgbouncer at the moment, by reason.
    - `tokens`: of all of them.
    """

    clients: Counter[Pool] = field(default_factory=Counter)
    servers: Counter[Pool] = field(default_factory=Counter)
    unheld: Counter[str] = field(default_factory=Counter)
    tokens: set[int] = field(default_factory=set)


def count(view: LedgerView, held: Container[int], tally: Tally, budget: float) -> Iterator[None]:
    """Count into `tally` what a ledger has; gives others their turn after each `budget` seconds.

    `held` are the tokens that the hanger holds.  Each slot is true for a moment of its own, and
    checks of copies are left out: numbers for a graph are not what anything is decided by.  Raises
    nothing as long as the view may be read.
    """
    names = PoolNames(view)
    until = time.perf_counter() + budget
    for batch in _SCAN.batches(view):
        for _, (_, kind, flags, token, pool) in batch:
            if kind in _SOCKETS:
                tally.tokens.add(token)
                _add(tally, kind, flags, token in held, names[pool])
        if time.perf_counter() > until:
            yield
            until = time.perf_counter() + budget


def _add(tally: Tally, kind: int, flags: int, held: bool, pool: Pool) -> None:
    if kind == Kind.CLOSING:
        return
    if flags & Flag.VOLATILE:
        tally.unheld["in-flight"] += 1
    elif flags & Flag.CONSOLE:
        tally.unheld["console"] += 1
    elif not held:
        tally.unheld["not-registered"] += 1
    elif kind == Kind.CLIENT:
        tally.clients[pool] += 1
    else:
        tally.servers[pool] += 1


class PoolNames(dict[int, Pool]):
    """Database and user of a pool, by its slot; read when they are first asked for."""

    def __init__(self, view: LedgerView) -> None:
        super().__init__({0: Pool()})
        self._view = view

    def __missing__(self, slot: int) -> Pool:
        name = self[slot] = _name(self._view, slot)
        return name


def _name(view: LedgerView, slot: int) -> Pool:
    try:
        copy = view.committed_copy(slot)
        if copy is not None and copy.kind is Kind.POOL:
            record = view.record(copy, slot)
            if isinstance(record, PoolRecord) and not record.peer_id:
                return Pool(_text(record.database), _text(record.user))
    except LedgerDamaged:
        pass
    return Pool()


def _text(name: str | None) -> str:
    """As it can be shown: names may be any bytes."""
    return "" if name is None else name.encode(errors="surrogateescape").decode(errors="replace")
