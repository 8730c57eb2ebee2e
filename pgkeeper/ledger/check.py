"""Is a ledger consistent as a whole?

Tests ask this after everything they do: no slot, IOBuf or blob may be left over, owned twice or
lost.  Only a ledger into which nobody writes at the moment can be checked: pgbouncer frozen, dead,
or between two event loops.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from protocol.ledger import (
    Act,
    BlobKind,
    Copy,
    Flag,
    Kind,
    LedgerDamaged,
    LedgerView,
    SocketRecord,
    SocketState,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Finding", "Usage", "check", "usage"]

_SERVER_TOKEN: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that cannot be: in which slot (0: the ledger as a whole), and what."""

    slot: int
    what: str

    def __str__(self) -> str:
        return f"slot {self.slot}: {self.what}" if self.slot else self.what


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of a ledger committed slots need: slots by kind, IOBufs, and units of the heap."""

    slots: dict[Kind, int]
    iobufs: int
    units: int


@dataclass(frozen=True, slots=True)
class _Claim:
    """A blob that a slot needs."""

    slot: int
    unit: int
    kind: BlobKind


class _Checker:
    def __init__(self, view: LedgerView) -> None:
        self.view = view
        self.findings: list[Finding] = []
        damaged: list[LedgerDamaged] = []
        self.copies: dict[int, Copy] = dict(view.iter_slots(damaged))
        self.findings += [Finding(damage.slot, damage.what) for damage in damaged]
        self.units: dict[int, _Claim] = {}

    def report(self, slot: int, what: str) -> None:
        self.findings.append(Finding(slot, what))

    def run(self) -> None:
        self.check_epochs()
        self.check_act()
        for slot, copy in self.copies.items():
            self.check_references(slot, copy)
            self.check_state(slot, copy)
        self.check_tokens()
        self.check_iobufs()
        self.check_blobs()

    def check_epochs(self) -> None:
        """A commit stamps its copies with the word plus 1, and never both copies of a slot."""
        commit = self.view.commit
        for slot in range(1, self.view.geometry.slots + 1):
            epochs = self.view.epochs(slot)
            if max(epochs) > commit + 1:
                self.report(slot, "an epoch lies further beyond the commit word than one commit")
            if epochs[0] and epochs[0] == epochs[1]:
                self.report(slot, "both copies have the same epoch")

    def check_act(self) -> None:
        if not self.view.commit:
            return
        try:
            act = self.view.act()
        except LedgerDamaged as damage:
            self.report(0, damage.what)
            return
        if act.act is not Act.NONE and act.slot not in self.copies:
            self.report(act.slot, f"free, but the act record says {act.act.name} of it")

    def check_references(self, slot: int, copy: Copy) -> None:
        if copy.link:
            self.check_link(slot, copy)
        if copy.pool and self.kind_of(copy.pool) is not Kind.POOL:
            self.report(slot, "its pool is no pool")
        if copy.canceled_server and self.kind_of(copy.canceled_server) is not Kind.SERVER:
            self.report(slot, "the server it cancels is no server")

    def check_link(self, slot: int, copy: Copy) -> None:
        """Both sides of a link change in one commit, unless one is being disconnected."""
        other = self.copies.get(copy.link)
        if copy.flags & Flag.DOOMED or (other and other.flags & Flag.DOOMED):
            return
        if other is None:
            self.report(slot, f"linked to slot {copy.link}, which is free")
        elif other.link != slot:
            self.report(slot, f"linked to slot {copy.link}, which is linked to {other.link}")
        elif {copy.kind, other.kind} != {Kind.CLIENT, Kind.SERVER}:
            self.report(slot, f"a {copy.kind.name} linked to a {other.kind.name}")

    def kind_of(self, slot: int) -> Kind:
        copy = self.copies.get(slot)
        return copy.kind if copy else Kind.FREE

    def check_state(self, slot: int, copy: Copy) -> None:
        is_server_state = copy.state >= SocketState.SV_FREE
        if copy.kind is Kind.CLIENT and is_server_state:
            self.report(slot, f"a client in state {copy.state.name}")
        if copy.kind is Kind.SERVER and not is_server_state:
            self.report(slot, f"a server in state {copy.state.name}")
        if copy.outbox_len and not copy.outbox:
            self.report(slot, "it has bytes in an outbox that does not exist")

    def check_tokens(self) -> None:
        sockets = {slot: copy for slot, copy in self.copies.items() if copy.is_socket}
        tokens = Counter(copy.token for copy in sockets.values())
        watermark = self.watermark()
        for slot, copy in sockets.items():
            is_server_token = bool(copy.token & _SERVER_TOKEN)
            if not copy.token or tokens[copy.token] > 1:
                self.report(slot, "its token is not its own")
            if copy.kind is not Kind.CLOSING and is_server_token is not (copy.kind is Kind.SERVER):
                self.report(slot, f"a {copy.kind.name} with a token of the other side")
            if not is_server_token and copy.token > watermark:
                self.report(slot, "its token lies above the watermark")
        if sum(copy.kind is Kind.GLOBAL for copy in self.copies.values()) > 1:
            self.report(0, "more than one slot for the facts of the whole process")

    def watermark(self) -> int:
        try:
            return self.view.act().watermark
        except LedgerDamaged:
            return 0

    def check_iobufs(self) -> None:
        owners: dict[int, int] = {}
        for slot, copy in self.copies.items():
            if copy.own_io:
                if copy.io in owners:
                    self.report(slot, f"IOBuf {copy.io} is also slot {owners[copy.io]}'s")
                owners[copy.io] = slot

    def check_blobs(self) -> None:
        for slot, copy in self.copies.items():
            try:
                for claim in self.claims(slot, copy):
                    self.claim(claim)
            except LedgerDamaged as damage:
                self.report(slot, damage.what)

    def claims(self, slot: int, copy: Copy) -> Iterator[_Claim]:
        """Read all that a slot needs of the heap; LedgerDamaged at the first that is not there."""
        view = self.view
        if copy.outbox:
            view.blob(slot, copy.outbox, BlobKind.OUTBOX, copy.outbox_len)
            yield _Claim(slot, copy.outbox, BlobKind.OUTBOX)
        for unit, kind in ((copy.extra, BlobKind.EXTRA), (copy.doom, BlobKind.DOOM)):
            if unit:
                view.blob(slot, unit, kind)
                yield _Claim(slot, unit, kind)
        statements = {request.statement for request in view.requests(copy, slot)}
        if copy.requests:
            yield _Claim(slot, copy.requests, BlobKind.REQUESTS)
        if copy.record:
            record = view.record(copy, slot)
            yield _Claim(slot, copy.record, BlobKind.RECORD)
            if isinstance(record, SocketRecord):
                yield from self.record_claims(slot, record)
                statements |= {entry.statement for entry in view.catalog(record, slot)}
        for unit in sorted(statements - {0}):
            view.blob(slot, unit, BlobKind.STATEMENT)
            yield _Claim(slot, unit, BlobKind.STATEMENT)

    def record_claims(self, slot: int, record: SocketRecord) -> Iterator[_Claim]:
        if record.packet:
            self.view.blob(slot, record.packet, BlobKind.PACKET, record.packet_used)
            yield _Claim(slot, record.packet, BlobKind.PACKET)
        if record.scram:
            self.view.blob(slot, record.scram, BlobKind.SCRAM)
            yield _Claim(slot, record.scram, BlobKind.SCRAM)
        if record.catalog:
            yield _Claim(slot, record.catalog, BlobKind.CATALOG)

    def claim(self, claim: _Claim) -> None:
        """Take a blob's units for one owner; only a statement's text is shared, and only whole."""
        count = self.view.blob_units(claim.unit, claim.kind)
        if count & (count - 1) or (claim.unit - 1) & (count - 1):
            self.report(claim.slot, f"its {claim.kind.name} blob is not aligned to its size")
        first = self.units.get(claim.unit)
        shared = claim.kind is BlobKind.STATEMENT
        if shared and first and (first.unit, first.kind) == (claim.unit, claim.kind):
            return
        for unit in range(claim.unit, claim.unit + count):
            owner = self.units.setdefault(unit, claim)
            if owner is not claim:
                self.report(
                    claim.slot,
                    f"its {claim.kind.name} blob overlaps the {owner.kind.name} blob of slot "
                    f"{owner.slot}",
                )
                return


def check(view: LedgerView) -> list[Finding]:
    """Find everything in a ledger at rest that cannot be; an empty list means consistent.

    Raises nothing but what reading released memory raises.
    """
    checker = _Checker(view)
    checker.run()
    return checker.findings


def usage(view: LedgerView) -> Usage:
    """Count what committed slots need; everything else is free.

    LedgerDamaged if the ledger has findings: then it cannot be told.
    """
    checker = _Checker(view)
    checker.run()
    if checker.findings:
        first = checker.findings[0]
        raise LedgerDamaged(first.slot, first.what)
    kinds = Counter(copy.kind for copy in checker.copies.values())
    iobufs = {copy.own_io for copy in checker.copies.values()} - {0}
    return Usage(dict(kinds), len(iobufs), len(checker.units))
