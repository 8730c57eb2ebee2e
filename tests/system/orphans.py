"""Sessions of three kinds that deaths around them must leave as they are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg

from testbed import snapshot
from testbed.ledgers import check_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed import Keeper, Postgres
    from testbed.postgres import Connection

__all__ = ["Orphan", "assert_intact", "make_orphans_table", "open_three", "three_held"]


def make_orphans_table(postgres: Postgres) -> None:
    """The table into which the sessions with a transaction write."""
    postgres.sql("DROP TABLE IF EXISTS orphans")
    postgres.sql("CREATE TABLE orphans (who text)")


class Orphan:
    """A session and what it must keep."""

    def __init__(self, connection: Connection, *, pinned: bool, in_transaction: bool) -> None:
        self.connection = connection
        self.pinned = pinned
        self.in_transaction = in_transaction
        self.before = snapshot(connection, pinned=pinned)

    def assert_intact(self) -> None:
        """It is the same connection, and the transaction is where it was."""
        assert snapshot(self.connection, pinned=self.pinned) == self.before
        inside = self.connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert inside is self.in_transaction

    def finish(self) -> None:
        """Commit what is to be committed."""
        if self.in_transaction:
            self.connection.execute("COMMIT")


def open_three(stack: contextlib.ExitStack, keeper: Keeper, who: str) -> list[Orphan]:
    """A session at rest, one in a transaction and one that keeps its server."""
    rest, busy, pinned = (
        stack.enter_context(
            contextlib.closing(keeper.connect(dbname=mode, application_name=f"{who} {mode}"))
        )
        for mode in ("transaction", "transaction", "session")
    )
    busy.execute("BEGIN")
    busy.execute("INSERT INTO orphans VALUES (%s)", (who,))
    return [
        Orphan(rest, pinned=False, in_transaction=False),
        Orphan(busy, pinned=False, in_transaction=True),
        Orphan(pinned, pinned=True, in_transaction=False),
    ]


def assert_intact(orphans: Sequence[Orphan]) -> None:
    """All of them."""
    for one in orphans:
        one.assert_intact()


@contextlib.contextmanager
def three_held(keeper: Keeper, postgres: Postgres) -> Iterator[list[Orphan]]:
    """Three sessions; at the end each must be what it was, after a kill too.

    Then the transaction is committed, and counts once.
    """
    make_orphans_table(postgres)
    with contextlib.ExitStack() as stack:
        opened = open_three(stack, keeper, "here")
        yield opened
        assert_intact(opened)
        keeper.kill_bouncer()
        assert_intact(opened)
        for one in opened:
            one.finish()
        assert keeper.status().adoptions.sessions_lost == 0
        check_ledger(keeper)
    assert postgres.sql("SELECT who FROM orphans") == [("here",)]
