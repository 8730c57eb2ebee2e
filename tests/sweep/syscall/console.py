"""The admin console, whose sessions do not outlive pgbouncer: who asks there asks again."""

from __future__ import annotations

from testbed.pooler import ADMIN
from testbed.rawclient import Message
from tests.sweep.syscall.talker import LostError, Talker, query

_DATABASE = "pgbouncer"
_LOST = b"C57P01\0Mpgbouncer was restarted\0"
# One loss a kill.
_TRIES = 4


class RefusedError(LostError):
    """The console answered with an error."""


def ask_console(port: int, command: str) -> list[tuple[str | None, ...]]:
    """Run `command` in a session of its own, again if that was lost; its rows.

    Raises `RefusedError`, but not when it may have been obeyed before. Raises `LostError` if it
    is lost too often.
    """
    for attempt in range(_TRIES):
        talker = Talker("console", port)
        try:
            talker.log_in(ADMIN, _DATABASE)
            talker.send(query(command))
            return _rows(talker)
        except RefusedError:
            if attempt == 0:
                raise
            return []
        except LostError:
            continue
        finally:
            talker.abandon()
    raise LostError(f"console: {command}: lost {_TRIES} times")


def _rows(talker: Talker) -> list[tuple[str | None, ...]]:
    rows = []
    while True:
        kind, body = talker.next_message()
        if kind == b"D":
            rows.append(Message("D", body).row())
        elif kind == b"E":
            if _LOST in body:
                raise LostError("console: pgbouncer was restarted")
            raise RefusedError(body.decode(errors="replace"))
        elif kind == b"Z":
            return rows
