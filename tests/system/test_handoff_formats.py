"""Handing over between pgbouncers that write the ledger in different formats, both ways.

The newer one is a build with a format of its own, in which two fields mean something else: whoever
reads one of the formats as the other gets these wrong. A newer pgkeeper is this one, told so.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer.build import binary, source_dir
from protocol.ledger import FORMAT_VERSION
from testbed import RawClient, snapshot, wait_until
from testbed.errors import BedError
from testbed.ledgers import ledger_of
from testbed.rawclient import frontend, text
from tests.sweep.controls.mutants import Change, Mutants
from tests.system.wrapping import expect_fatal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import Keeper, RunDir
    from testbed.postgres import Connection
    from tests.fix_keeper import MakeKeeper

pytestmark = pytest.mark.timeout(300)

OURS = FORMAT_VERSION
NEWER = OURS + 1
#: Bytes of a value that fills every buffer between PostgreSQL and a client that does not read.
LONG = 30_000_000


def _newer(*more: Change, condition: str = f"keeper_store.format >= {NEWER}") -> tuple[Change, ...]:
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


@pytest.fixture(scope="module")
def mutants(run_dir: RunDir) -> Mutants:
    binary()
    return Mutants(source_dir(), run_dir.folder("formats"))


@pytest.fixture(scope="module")
def newer_binary(mutants: Mutants) -> Path:
    return mutants.binary(_newer())


@pytest.fixture
def make_newer_keeper(
    make_keeper: MakeKeeper, monkeypatch: pytest.MonkeyPatch, run_dir: RunDir, request: object
) -> MakeKeeper:
    """Hangers of a pgkeeper that knows the next format as well."""
    folder = run_dir.folder(f"newer-{id(request)}")
    (folder / "sitecustomize.py").write_text(
        f"import protocol.ledger_layouts\nprotocol.ledger_layouts.FORMAT_VERSION = {NEWER}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return make_keeper


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


def test_up_and_down_again(
    make_newer_keeper: MakeKeeper, newer_binary: Path, patched_binary: Path
) -> None:
    """With a kill in each format; the first newer one leaves the way back open."""
    keeper = make_newer_keeper()
    with sessions_of(keeper) as sessions:
        assert written_in(keeper) == OURS
        for program, expected in (
            (newer_binary, OURS),
            (newer_binary, NEWER),
            (patched_binary, OURS),
        ):
            assert hand_over(keeper, program) == expected
            sessions.assert_intact()
            keeper.kill_bouncer()
            sessions.assert_intact()
            assert written_in(keeper) == expected
        sessions.finish()


def test_an_older_pgkeeper_keeps_its_format(
    make_keeper: MakeKeeper, newer_binary: Path, patched_binary: Path
) -> None:
    """A newer pgbouncer writes what its hanger can read."""
    keeper = make_keeper()
    with sessions_of(keeper) as sessions:
        for program in (newer_binary, newer_binary, patched_binary):
            assert hand_over(keeper, program) == OURS
            keeper.kill_bouncer()
        sessions.finish()


@pytest.mark.slow
def test_to_one_that_no_longer_knows_the_format(make_keeper: MakeKeeper, mutants: Mutants) -> None:
    """It is refused before anything happens to the one that serves."""
    forgetful = Change(
        "include/keeper/format.h",
        f"define KEEPER_FORMAT_OLDEST\t{OURS}",
        f"define KEEPER_FORMAT_OLDEST\t{NEWER}",
    )
    keeper = make_keeper()
    with sessions_of(keeper) as sessions:
        pid = keeper.bouncer_pid
        done = keeper.run("handoff", "--pgbouncer", mutants.binary(_newer(forgetful)))
        assert done.returncode == 1
        assert f"pgbouncer knows ledger format {NEWER} " in done.stderr
        assert f"this pgkeeper ledger format {OURS} " in done.stderr
        assert done.stderr.endswith("; the old pgbouncer goes on, untouched\n")
        assert keeper.bouncer_pid == pid
        sessions.finish()
    expect_fatal(keeper, "refused by the hanger: pgbouncer knows ledger format")


@pytest.mark.slow
def test_from_one_that_does_not_write_the_older_format(
    make_newer_keeper: MakeKeeper, mutants: Mutants, patched_binary: Path
) -> None:
    """The handoff ends before the one that serves does."""
    stiff = Change(
        "src/keeper/hanger.c",
        "keeper_write_in_format(wish->format);",
        f"if (wish->format >= {NEWER}) keeper_write_in_format(wish->format);",
    )
    program = mutants.binary(_newer(stiff))
    keeper = make_newer_keeper()
    with sessions_of(keeper) as sessions:
        hand_over(keeper, program)
        assert hand_over(keeper, program) == NEWER
        pid = keeper.bouncer_pid
        done = keeper.run("handoff", "--pgbouncer", patched_binary)
        assert done.returncode == 1
        assert f"the ledger is written in format {NEWER}, which it does not know" in done.stderr
        assert done.stderr.endswith("; the old pgbouncer goes on, untouched\n")
        assert keeper.bouncer_pid == pid
        sessions.finish()


@pytest.mark.slow
def test_from_one_that_writes_another_format_than_it_says(
    make_newer_keeper: MakeKeeper, mutants: Mutants, patched_binary: Path
) -> None:
    """A control: sessions notice, so the other tests would."""
    program = mutants.binary(_newer(condition="keeper_store.epoch"))
    keeper = make_newer_keeper()
    with sessions_of(keeper) as sessions:
        assert hand_over(keeper, program) == OURS
        assert hand_over(keeper, patched_binary) == OURS
        with pytest.raises((AssertionError, BedError, TimeoutError)):
            sessions.finish()
