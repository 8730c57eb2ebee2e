"""A ledger format beside ours, and sessions that notice whoever reads one as the other.

The newer pgbouncer is a build with a format of its own, in which two fields mean something else. A
newer pgkeeper is this one, told so: see `tests.fix_formats`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from protocol.ledger import FORMAT_VERSION
from testbed import RawClient, snapshot, wait_until
from testbed.ledgers import ledger_of
from testbed.rawclient import frontend, text
from tests.sweep.controls.mutants import Change

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import Keeper
    from testbed.postgres import Connection

OURS = FORMAT_VERSION
NEWER = OURS + 1
#: Bytes of a value that fills every buffer between PostgreSQL and a client that does not read.
LONG = 30_000_000


def newer(*more: Change, condition: str = f"keeper_store.format >= {NEWER}") -> tuple[Change, ...]:
    """Changes that make a pgbouncer of the next format; it asks `condition` what it writes."""
    turned = f"({condition} ? ~sbuf->pkt_remain : sbuf->pkt_remain)"
    return (
        Change(
            "include/keeper/format.h",
            f"define KEEPER_FORMAT_VERSION\t{OURS}",
            f"define KEEPER_FORMAT_VERSION\t{NEWER}",
        ),
        Change(
            "src/keeper/copy.c",
            "PART(pkt_remain, sbuf->pkt_remain)",
            f"PART(pkt_remain, (uint32_t){turned})",
        ),
        Change(
            "src/keeper/judge.c",
            "if (!a->copy.epoch) {",
            f"if (keeper_store.format >= {NEWER} && keeper_is_socket(&a->copy))"
            " { a->copy.pkt_remain = ~a->copy.pkt_remain;"
            " a->copy.check = keeper_check(&a->copy, slot); } if (!a->copy.epoch) {",
        ),
        Change(
            "src/keeper/record.c",
            "memcpy(record.cancel_key, sk->cancel_key, sizeof(record.cancel_key));",
            "memcpy(record.cancel_key, sk->cancel_key, sizeof(record.cancel_key));"
            f"if ({condition}) record.cancel_key[0] ^= 0xff;",
        ),
        Change(
            "src/keeper/rebuild.c",
            "memcpy(sk->cancel_key, record.cancel_key, sizeof(sk->cancel_key));",
            "memcpy(sk->cancel_key, record.cancel_key, sizeof(sk->cancel_key));"
            f"if (keeper_store.format >= {NEWER}) sk->cancel_key[0] ^= 0xff;",
        ),
        *more,
    )


class Sessions:
    """One that rests, one in a transaction, and one in the middle of a long value."""

    def __init__(self, keeper: Keeper, idle: Connection, busy: Connection, slow: RawClient) -> None:
        self._keeper = keeper
        self._idle, self._busy, self._slow = idle, busy, slow
        self._before = snapshot(idle, pinned=True)
        busy.execute("BEGIN")
        self._transaction = self._transaction_id()
        slow.send(frontend("Q", text(f"SELECT repeat('x', {LONG})")))
        # It does not read: pgbouncer is in the middle of a packet, and stays there.
        self._wait_for("ClientWrite")

    def _wait_for(self, event: str) -> None:
        """Wait until a server process waits for this (`pg_stat_activity.wait_event`)."""
        statement = f"SELECT true FROM pg_stat_activity WHERE wait_event = '{event}'"
        wait_until(lambda: self._keeper.sql(statement), what=f"a session in {event}")

    def _transaction_id(self) -> object:
        return self._busy.execute("SELECT pg_current_xact_id()::text").fetchall()

    def assert_intact(self) -> None:
        assert snapshot(self._idle, pinned=True) == self._before
        assert self._transaction_id() == self._transaction
        assert self._keeper.status().adoptions.sessions_lost == 0

    def finish(self) -> None:
        """The long value is whole, and a request to cancel still finds its session."""
        self.assert_intact()
        messages = list(self._slow.until_ready())
        assert [message.kind for message in messages] == ["T", "D", "C", "Z"]
        assert messages[1].row() == ("x" * LONG,)
        self._slow.send(frontend("Q", text("SELECT pg_sleep(600)")))
        self._wait_for("PgSleep")
        self._slow.cancel()
        (error,) = (message for message in self._slow.until_ready() if message.kind == "E")
        assert error.error_fields()["C"] == "57014"


@contextlib.contextmanager
def sessions_of(keeper: Keeper) -> Iterator[Sessions]:
    with contextlib.ExitStack() as stack:
        idle, busy = (
            stack.enter_context(contextlib.closing(keeper.connect(dbname=mode)))
            for mode in ("session", "transaction")
        )
        slow = stack.enter_context(RawClient(keeper.host, keeper.port))
        yield Sessions(keeper, idle, busy, slow.login(database="session"))


def written_in(keeper: Keeper) -> int:
    """The format of the ledger's committed state."""
    with ledger_of(keeper) as view:
        return view.act().format


def hand_over(keeper: Keeper, program: Path) -> int:
    """To another program; the ledger's format afterwards."""
    done = keeper.run("handoff", "--pgbouncer", program)
    assert done.returncode == 0, done.stderr
    return written_in(keeper)
