"""The inserts that were told to have happened, compared with the rows that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeeper.trial.figures import Books

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pgkeeper.trial.questions import Tables
    from pgkeeper.trial.wire import Wire

__all__ = ["balance", "read_rows"]


async def read_rows(wire: Wire, tables: Tables, sessions: range) -> dict[tuple[int, int], int]:
    """How often each (session, turn) of these sessions is there. Raises what `Wire.rows` raises."""
    rows = await wire.rows(
        f"SELECT session, turn, count(*) FROM {tables.counted}"  # noqa: S608 (our name)
        f" WHERE session BETWEEN {sessions.start} AND {sessions.stop - 1} GROUP BY session, turn"
    )
    return {(int(one or 0), int(turn or 0)): int(count or 0) for one, turn, count in rows}


def balance(
    rows: Mapping[tuple[int, int], int],
    told: Collection[tuple[int, int]],
    doubtful: Collection[tuple[int, int]],
) -> Books:
    """What is told must be there once, what is doubtful at most once, and nothing else at all."""
    known = {*told, *doubtful}
    return Books(
        told=len(told),
        doubtful=len(doubtful),
        missing=sum(entry not in rows for entry in told),
        duplicates=sum(count - 1 for entry, count in rows.items() if entry in known),
        foreign=sum(count for entry, count in rows.items() if entry not in known),
    )
