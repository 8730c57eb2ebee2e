"""Commands at the admin console, each in a session of its own."""

from __future__ import annotations

from testbed.pooler import ADMIN
from testbed.rawclient import Message
from tests.sweep.syscall.talker import LostError, Talker, query

CONSOLE = "pgbouncer"


def ask_console(port: int, command: str) -> list[tuple[str | None, ...]]:
    """Run `command`, once; its rows.

    Raises `LostError` if the session is lost or the console answers with an error.
    """
    talker = Talker("console", port)
    try:
        talker.log_in(ADMIN, CONSOLE)
        talker.send(query(command))
        return _rows(talker)
    finally:
        talker.abandon()


def _rows(talker: Talker) -> list[tuple[str | None, ...]]:
    rows = []
    while True:
        kind, body = talker.next_message()
        if kind == b"D":
            rows.append(Message("D", body).row())
        elif kind == b"E":
            raise LostError(f"console: {body.decode(errors='replace')}")
        elif kind == b"Z":
            return rows
