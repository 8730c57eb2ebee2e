"""Looking into the ledger of a running hanger from outside, while its pgbouncer stands still."""

from __future__ import annotations

import contextlib
import mmap
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeeper.ledger.check import Usage, check, usage
from protocol.ledger import Kind, LedgerView
from testbed.errors import NotFoundError
from testbed.process import descriptors, send, state
from testbed.rawclient import RawClient
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.keeper import Keeper

_NAME = "/memfd:pgkeeper-ledger"


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop the process `pid` (SIGSTOP) during the `with` block."""
    send(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: state(pid) == "T", what=f"{pid} is stopped")
        yield
    finally:
        send(pid, signal.SIGCONT)


@contextlib.contextmanager
def ledger_of(keeper: Keeper) -> Iterator[LedgerView]:
    """The hanger's ledger, read-only; whoever writes into it goes on.

    Raises `NotFoundError` if the hanger has none.
    """
    with ledger_path(keeper).open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        view = LedgerView(memory)
        try:
            yield view
        finally:
            # Rows and findings hold no part of it, but a traceback may.
            del view
            with contextlib.suppress(BufferError):
                memory.close()


def ledger_path(keeper: Keeper) -> Path:
    """Where the hanger's ledger can be opened. Raises `NotFoundError` if it has none."""
    for link in Path(f"/proc/{keeper.hanger.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(link.readlink()).startswith(_NAME):
                return link
    raise NotFoundError("the ledger", "the hanger has none now")


def check_ledger(keeper: Keeper) -> Usage:
    """Stop pgbouncer for a moment and check its ledger; what committed slots need of it.

    Raises AssertionError with the findings.
    """
    # The watchdog allows no more than a moment, and to check many sessions takes longer.
    with stopped(keeper.bouncer_pid):
        view = LedgerView(ledger_path(keeper).read_bytes())
    findings = check(view)
    if findings:
        raise AssertionError("; ".join(map(str, findings)))
    return usage(view)


def at_rest(keeper: Keeper) -> tuple[tuple[int, ...], Usage]:
    """Descriptors of hanger and pgbouncer, and what the ledger needs, with no session left.

    Pools and learnt users stay, so each must have been there before the first call; servers go.
    """
    with RawClient(keeper.host, keeper.port).login() as client:
        client.query("SELECT 1")
    keeper.admin("RECONNECT")

    def gone() -> bool:
        sessions = keeper.status().sessions
        return (sessions.clients_held, sessions.servers_held) == (0, 0)

    wait_until(gone, what="no session is left", poll_s=0.05)
    pids = (keeper.hanger.pid, keeper.bouncer_pid)
    counts: list[tuple[int, ...]] = []

    def settled() -> bool:
        # Our own question's connection, too, has gone when nothing changes any more.
        counts.append(tuple(len(descriptors(pid)) for pid in pids))
        return len(counts) > 2 and counts[-1] == counts[-2] == counts[-3]

    wait_until(settled, what="the descriptors are at rest", poll_s=0.02)

    def committed() -> bool:
        # What no act depends on is committed a little later.
        return not {Kind.CLIENT, Kind.CLOSING, Kind.SERVER} & set(check_ledger(keeper).slots)

    wait_until(committed, what="the ledger knows that all have gone", poll_s=0.05)
    return counts[-1], check_ledger(keeper)
