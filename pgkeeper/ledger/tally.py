"""How many sockets a ledger has, by database and user: cheap enough to be asked all the time.

`reader.sessions` tells more of each, at a hundred times the cost.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from protocol.ledger import Flag, Kind, LedgerDamaged, PoolRecord
from protocol.ledger_layouts import COPY, SLOT

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from protocol.ledger import LedgerView

__all__ = ["Pool", "Tally", "count"]

#: Slots read in one go.
_BATCH: Final = 256
_READ: Final = ("epoch", "kind", "flags", "token", "pool")


def _codec() -> struct.Struct:
    """Reads `_READ` of both copies of a slot, and passes over the rest."""
    codes, at = "", 0
    for copy in range(2):
        for name in _READ:
            field_ = COPY.field(name)
            offset = copy * COPY.size + field_.offset
            codes += f"{offset - at}x{ {1: 'B', 4: 'I', 8: 'Q'}[field_.size] }"
            at = offset + field_.size
    return struct.Struct(f"={codes}{SLOT.size - at}x")


_SLOTS: Final = _codec()
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
    names: dict[int, Pool] = {0: Pool()}
    until = time.perf_counter() + budget
    for first in range(1, view.geometry.slots + 1, _BATCH):
        commit = view.commit
        for one in _SLOTS.iter_unpack(view.raw_slots(first, _BATCH)):
            epoch, kind, flags, token, pool = one[: len(_READ)]
            other = one[len(_READ)]
            if other <= commit and (other > epoch or epoch > commit):
                epoch, kind, flags, token, pool = one[len(_READ) :]
            if not 0 < epoch <= commit or kind not in _SOCKETS:
                continue
            if pool not in names:
                names[pool] = _name(view, pool)
                if time.perf_counter() > until:
                    yield
                    until = time.perf_counter() + budget
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
