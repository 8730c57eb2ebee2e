"""A session that must not notice what happens to others."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from testbed.sessions import snapshot

if TYPE_CHECKING:
    from types import TracebackType

    from testbed.keeper import Keeper


class Bystander:
    """Two sessions, one that keeps its server and one in a transaction; a context manager.

    At its end they are looked at, pgbouncer is killed, and they are looked at again: what was done
    beside them must not have spoiled the ledger either. Raises AssertionError, or what the driver
    raises.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._stack = contextlib.ExitStack()
        self._pinned, self._busy = (
            self._stack.enter_context(
                contextlib.closing(keeper.connect(dbname=mode, sslmode="disable"))
            )
            for mode in ("session", "transaction")
        )
        self._busy.execute("BEGIN")
        self._before = self._facts()

    def __enter__(self) -> Bystander:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if kind is None:
                self.assert_undisturbed()
                self._keeper.kill_bouncer()
                self.assert_undisturbed()

    def assert_undisturbed(self) -> None:
        """The same connections, the same server process, the same transaction."""
        after = self._facts()
        if after != self._before:
            raise AssertionError(f"{self._before} became {after}")

    def _facts(self) -> tuple[object, ...]:
        transaction = self._busy.execute("SELECT pg_current_xact_id()::text, pg_backend_pid()")
        return (snapshot(self._pinned, pinned=True), transaction.fetchall())
