"""What sessions ask, and the answers of a session that nobody kills under.

Each question has many variants whose answers differ in every row, so that an answer that is lost,
repeated, or somebody else's is noticed by its first byte that differs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from protocol import Bind, CopyData, CopyDone, Describe, Execute, Parse, Query, Sync, Target

if TYPE_CHECKING:
    from pgkeeper.trial.answer import Answer
    from pgkeeper.trial.wire import Wire

__all__ = ["Bulk", "Exchange", "Questions", "Tables", "execute", "extended", "prepare", "query"]

_VARIANTS: Final = 24
_SYNC: Final = Sync().build()
# The text of row n has a length of its own, so that nothing is aligned with anything.
_ROW: Final = "md5((n)::text) || repeat(chr((97 + (n) % 26)::int), (20 + (n) % 97)::int)"
# Long rows cost the server less for each byte.
_LARGE: Final = _ROW.replace("(20 +", "(900 +")
_LARGE_BYTES: Final = 1000
_COPY_PIECE: Final = 60_000
_PREPARED: Final = "trial"
_PREPARED_TEXT: Final = f"SELECT $1::bigint, {_ROW.replace('(n)', '$1::bigint')}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and the one right answer to it."""

    request: bytes = field(repr=False)
    answer: Answer


@dataclass(frozen=True, slots=True)
class Tables:
    """The trial's own table and the class of its advisory locks: no other trial has the same."""

    counted: str
    lock: int

    @classmethod
    def named(cls, run_id: str) -> Tables:
        """Names with `run_id`, a word of hexadecimal digits."""
        return cls(f"pgkeeper_trial_{run_id}", int(run_id[:7], 16))

    async def make(self, wire: Wire) -> None:
        """Create the table. It has no key: nothing may hide a double."""
        await wire.rows(f"CREATE TABLE {self.counted} (session int, turn int)")

    async def drop(self, wire: Wire) -> None:
        """Drop it, also if it is not there."""
        await wire.rows(f"DROP TABLE IF EXISTS {self.counted}")


def query(statement: str) -> bytes:
    """A simple query."""
    return Query(statement).build()


def extended(statement: str, *values: str) -> bytes:
    """A query of the extended protocol, without a name."""
    bound = Bind(parameters=tuple(value.encode() for value in values)).build()
    portal = Describe(Target.PORTAL, "").build()
    return Parse("", statement).build() + bound + portal + Execute().build() + _SYNC


def prepare(name: str, statement: str) -> bytes:
    """Prepare a statement under a name."""
    return Parse(name, statement).build() + _SYNC


def execute(name: str, *values: str) -> bytes:
    """Execute a prepared statement."""
    bound = Bind(statement=name, parameters=tuple(value.encode() for value in values)).build()
    return bound + Execute().build() + _SYNC


def _rows(variant: int, count: int, text: str = _ROW) -> str:
    source = f"generate_series({variant * 1000 + 1}, {variant * 1000 + count}) AS n"
    return f"SELECT n, {text} FROM {source}"  # noqa: S608 (numbers of ours)


@dataclass(frozen=True, slots=True)
class Questions:
    """Small questions with their answers, recorded from `wire` by `record`."""

    small: tuple[Exchange, ...]
    prepare: Exchange
    prepared: tuple[Exchange, ...]
    begin: Exchange
    inserted: Answer
    inserted_within: Answer
    within: tuple[Exchange, ...]
    commit: Exchange

    @classmethod
    async def record(cls, wire: Wire, tables: Tables) -> Questions:
        """Ask everything once. Raises what `Wire.record` raises."""
        simple = [query(_rows(n, 1 + 7 * n % 40)) for n in range(_VARIANTS)]
        nameless = [extended(_rows(n + 100, 1 + 5 * n % 30)) for n in range(_VARIANTS)]
        small = [
            await _recorded(wire, one)
            for pair in zip(simple, nameless, strict=True)
            for one in pair
        ]
        prepared = await _recorded(wire, prepare(_PREPARED, _PREPARED_TEXT))
        executions = [
            await _recorded(wire, execute(_PREPARED, str(n * n + 1))) for n in range(_VARIANTS)
        ]
        # Session 0 is nobody: these rows are not counted.
        inserted = await wire.record(query(cls.insert(tables, 0, 0)))
        begin = await _recorded(wire, query("BEGIN"))
        within = await wire.record(query(cls.insert(tables, 0, 1)))
        reads = [await _recorded(wire, query(_rows(n + 200, 1 + n % 9))) for n in range(_VARIANTS)]
        commit = await _recorded(wire, query("COMMIT"))
        return cls(
            tuple(small),
            prepared,
            tuple(executions),
            begin,
            inserted,
            within,
            tuple(reads),
            commit,
        )

    @staticmethod
    def insert(tables: Tables, session: int, turn: int) -> str:
        """The statement that counts a turn."""
        return f"INSERT INTO {tables.counted} VALUES ({session}, {turn})"  # noqa: S608 (numbers)


@dataclass(frozen=True, slots=True)
class Bulk:
    """Large answers and a large COPY, with what must come of them; see `record`."""

    results: tuple[Exchange, ...]
    copies_out: tuple[Exchange, ...]
    begin: Exchange
    table: Exchange
    copy_in: Exchange
    pieces: tuple[bytes, ...] = field(repr=False)
    copied: Answer
    check: Exchange
    rollback: Exchange

    @classmethod
    async def record(cls, wire: Wire, size: int) -> Bulk:
        """Ask everything once; `size` is the bytes of an answer, about."""
        count = max(1, size // _LARGE_BYTES)
        results = [await _recorded(wire, query(_rows(n, count, _LARGE))) for n in (1, 2)]
        copies = [f"COPY ({_rows(n, count, _LARGE)}) TO STDOUT" for n in (3, 4)]
        out = [await _recorded(wire, query(copy)) for copy in copies]
        begin = await _recorded(wire, query("BEGIN"))
        # A temporary one leaves no dead rows behind, which the next look would have to pass.
        statement = "CREATE TEMP TABLE pgkeeper_copied (n int, value text) ON COMMIT DROP"
        table = await _recorded(wire, query(statement))
        copy_in = await _recorded(wire, query("COPY pgkeeper_copied FROM STDIN"))
        pieces = _copy_pieces(count)
        for piece in pieces[:-1]:
            await wire.send(piece)
        copied = await wire.record(pieces[-1])
        digest = "md5(string_agg(value, ',' ORDER BY n))"
        look = f"SELECT count(*), {digest} FROM pgkeeper_copied"  # noqa: S608 (no value)
        check = await _recorded(wire, query(look))
        rollback = await _recorded(wire, query("ROLLBACK"))
        return cls(
            tuple(results), tuple(out), begin, table, copy_in, pieces, copied, check, rollback
        )


def _copy_pieces(count: int) -> tuple[bytes, ...]:
    """Messages of a COPY of so many rows; the last piece ends it."""
    pieces, lines, size = [], [], 0
    for n in range(1, count + 1):
        digest = hashlib.md5(str(n).encode(), usedforsecurity=False).hexdigest()
        lines.append(f"{n}\t{digest}{chr(97 + n % 26) * (900 + n % 97)}\n".encode())
        size += len(lines[-1])
        if size >= _COPY_PIECE:
            pieces.append(CopyData(b"".join(lines)).build())
            lines, size = [], 0
    return (*pieces, CopyData(b"".join(lines)).build() + CopyDone().build())


async def _recorded(wire: Wire, request: bytes) -> Exchange:
    return Exchange(request, await wire.record(request))
