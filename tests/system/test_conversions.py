"""What goes wrong while pgbouncer rewrites its ledger in another format, in a handoff."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgkeeper.control.client import RequestFailedError
from pgkeeper.hanger.formats import Formats
from protocol.ledger import FORMAT_OLDEST
from testbed import RawClient
from testbed.errors import BedError
from testbed.ledgers import check_ledger
from tests.sweep.controls.mutants import Change
from tests.system.conversions import NEWER, OURS, hand_over, newer, sessions_of, written_in
from tests.system.wrapping import kept

if TYPE_CHECKING:
    from pathlib import Path

    from testbed import Keeper, Postgres, RunDir
    from tests.fix_keeper import MakeKeeper
    from tests.sweep.controls.mutants import Mutants

pytestmark = pytest.mark.timeout(600)


def deadly(orders: Path, *more: Change) -> tuple[Change, ...]:
    """The newer pgbouncer, which dies in a conversion at the point whose number a file names.

    The points lie between the stores of a conversion: before and after the format, after each slot
    that is marked, within and around each copy, around the act record, and around the commit word.
    The file tells afterwards how many there were if none was the one.
    """
    return newer(
        Change(
            "include/keeper/store.h",
            "#define KEEPER_STORE_H",
            "#define KEEPER_STORE_H\n"
            "#include <signal.h>\n"
            "extern int keeper_points, keeper_deadly;\n"
            "#define POINT if (keeper_deadly && ++keeper_points == keeper_deadly) raise(SIGKILL)",
        ),
        Change(
            "src/keeper/keeper.c",
            "void keeper_write_in_format(uint32_t format)\n{",
            "int keeper_points, keeper_deadly;\n"
            "static void write_in_format(uint32_t format);\n"
            "void keeper_write_in_format(uint32_t format)\n{\n"
            f'FILE *orders = fopen("{orders}", "r+");\n'
            'if (orders && fscanf(orders, "%d", &keeper_deadly) != 1) keeper_deadly = 0;\n'
            "keeper_points = 0;\n"
            "write_in_format(format);\n"
            'if (keeper_deadly) { rewind(orders); fprintf(orders, "done %d\\n", keeper_points); }\n'
            "if (orders) fclose(orders);\n"
            "keeper_deadly = 0;\n"
            "}\n"
            "static void write_in_format(uint32_t format)\n{",
        ),
        Change(
            "src/keeper/keeper.c",
            "\tkeeper_store.format = format;",
            "\tPOINT; keeper_store.format = format; POINT;",
        ),
        Change("src/keeper/keeper.c", "\t\tl->stale = true;", "\t\tl->stale = true; POINT;"),
        Change(
            "include/keeper/commit.h", "copy->epoch = epoch;", "POINT; copy->epoch = epoch; POINT;"
        ),
        Change(
            "include/keeper/commit.h", "copy->check = check;", "POINT; copy->check = check; POINT;"
        ),
        Change(
            "include/keeper/commit.h",
            "record->epoch = epoch;",
            "POINT; record->epoch = epoch; POINT;",
        ),
        Change(
            "include/keeper/commit.h", "record->source = source;", "record->source = source; POINT;"
        ),
        Change("include/keeper/commit.h", "store->n_reads = 0;", "POINT; store->n_reads = 0;"),
        Change(
            "src/keeper/copy.c",
            "check = put(copy, WORD(rx), l->rx);",
            "POINT; check = put(copy, WORD(rx), l->rx); POINT;",
        ),
        *more,
    )


#: A point that no conversion comes to.
NEVER = 1_000_000


def killed_at(keeper: Keeper, point: int, orders: Path, new: Path) -> int:
    """Hand over to `new` while the old one dies at that point; if not, how many there were."""
    orders.write_text(f"{point}\n")
    orders.chmod(0o666)
    before = keeper.status().pgbouncer
    failed = ""
    try:
        keeper.client.handoff(new, None, lambda progress: None)
    except RequestFailedError as error:
        failed = error.message
    keeper.wait_active(after=before.incarnation)
    # What it says is true: the old one is dead.
    assert not failed or failed.endswith("; back on the old one, which has adopted the sessions")
    told = orders.read_text()
    orders.unlink()
    return int(told.removeprefix("done ")) if told.startswith("done") else 0


def make_write(keeper: Keeper, number: int, newest: Path, older: Path) -> None:
    """Let `newest` serve, and write that format."""
    if number == OURS:
        # A handoff between two newer ones would convert.
        hand_over(keeper, older)
    while hand_over(keeper, newest) != number:
        pass


@pytest.fixture(scope="module")
def orders(run_dir: RunDir) -> Path:
    return run_dir.folder("conversion-orders") / "point"


@pytest.fixture(scope="module")
def deadly_binary(format_mutants: Mutants, orders: Path) -> Path:
    return format_mutants.binary(deadly(orders))


#: How far apart the points are at which it is killed.
STRIDES = [15, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("upward", [True, False], ids=["up", "down"])
def test_a_kill_at_any_point(
    make_newer_keeper: MakeKeeper,
    deadly_binary: Path,
    patched_binary: Path,
    orders: Path,
    upward: bool,
    stride: int,
) -> None:
    """Before the commit it is the one format, after it the other, and never something between."""
    found = killed_everywhere(
        make_newer_keeper(), orders, deadly_binary, patched_binary, upward=upward, stride=stride
    )
    # From the last point to the first: there is nothing between the two.
    assert found == sorted(found, reverse=upward)
    assert set(found) == {OURS, NEWER}


def killed_everywhere(
    keeper: Keeper, orders: Path, newest: Path, older: Path, *, upward: bool, stride: int
) -> list[int]:
    """The ledger's format after each kill; the sessions are looked at each time."""
    former, new = (OURS, newest) if upward else (NEWER, older)
    found: list[int] = []
    with sessions_of(keeper) as sessions:
        make_write(keeper, former, newest, older)
        length = killed_at(keeper, NEVER, orders, new)
        assert length > 40
        for point in range(length, 0, -stride):
            make_write(keeper, former, newest, older)
            assert killed_at(keeper, point, orders, new) == 0
            sessions.assert_intact()
            found.append(written_in(keeper))
        sessions.finish()
    print(f"{len(found)} kills, {found.count(former)} before the commit")
    return found


@pytest.mark.slow
def test_a_format_that_is_true_before_its_copies_is_noticed(
    make_newer_keeper: MakeKeeper, format_mutants: Mutants, patched_binary: Path, orders: Path
) -> None:
    """The control: the committed act record is written, not the next one."""
    early = Change(
        "src/keeper/keeper.c",
        "act[(keeper_store.epoch + 1) & 1].format = format;\n\twrite_all_anew(false);",
        "act[0].format = act[1].format = format;\n\twrite_all_anew(false);",
    )
    program = format_mutants.binary(deadly(orders, early))
    with pytest.raises((AssertionError, BedError, psycopg.OperationalError)):
        killed_everywhere(
            make_newer_keeper(), orders, program, patched_binary, upward=True, stride=9
        )


#: The newer pgbouncer with a heap of 64 kB.
SMALL = newer(
    Change(
        "src/keeper/hanger.c", "hello->units = 24 * conns + 128 * 1024;", "hello->units = 1024;"
    ),
    Change(
        "src/keeper/hanger.c",
        "hello->units += conns * catalog_units() / 3 * 4;",
        "(void)catalog_units;",
    ),
)
#: In keeper_write_in_format(): what gives those a second chance who have found no room.
SECOND = Change("src/keeper/keeper.c", "write_all_anew(true);", "(void)0;")


@pytest.mark.parametrize(
    "mended", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["mended", "control"]
)
def test_a_heap_without_room_for_every_record_twice(
    make_newer_keeper: MakeKeeper,
    run_dir: RunDir,
    postgres: Postgres,
    format_mutants: Mutants,
    patched_binary: Path,
    mended: bool,
) -> None:
    """Who was held is held on, in the place of the former records."""
    program = format_mutants.binary(SMALL if mended else (*SMALL, SECOND))
    with (
        kept(run_dir, postgres, program, f"small-heap-{mended}") as keeper,
        contextlib.ExitStack() as stack,
    ):
        assert written_in(keeper) == NEWER
        clients = [stack.enter_context(RawClient(keeper.host, keeper.port)) for _ in range(150)]
        for client in clients:
            client.login()
        assert check_ledger(keeper).units > 512
        assert hand_over(keeper, patched_binary) == OURS
        if mended:
            assert [client.query("SELECT 1") for client in clients] == [[("1",)]] * len(clients)
            assert keeper.status().adoptions.sessions_lost == 0
        else:
            assert keeper.status().adoptions.sessions_lost > 50


def test_prepared_statements_go_through_it(
    make_newer_keeper: MakeKeeper, newer_binary: Path, patched_binary: Path
) -> None:
    """Those of before, and those that came in each format; looked up after a kill in each."""
    keeper = make_newer_keeper(settings={"max_prepared_statements": 50})
    with contextlib.ExitStack() as stack:
        sessions = [
            stack.enter_context(contextlib.closing(keeper.connect(dbname=mode)))
            for mode in ("session", "transaction", "transaction")
        ]
        known: list[int] = []

        def ask() -> None:
            known.append(len(known))
            for number, session in enumerate(sessions):
                for addend in known:
                    # The text is shared, what it is called is each session's own.
                    found = session.execute(f"SELECT %s::int + {addend}", (number,), prepare=True)
                    assert found.fetchall() == [(number + addend,)]
                    assert session.info.transaction_status is TransactionStatus.IDLE

        ask()
        for program, expected in (
            (newer_binary, OURS),
            (newer_binary, NEWER),
            (patched_binary, OURS),
        ):
            assert hand_over(keeper, program) == expected
            ask()
            keeper.kill_bouncer()
            ask()
        assert keeper.status().adoptions.sessions_lost == 0


def test_an_older_pgkeeper_cannot_take_over(
    make_newer_keeper: MakeKeeper, newer_binary: Path, patched_binary: Path
) -> None:
    """It says which formats those are, and the newer one goes on; after a handoff back it can."""
    keeper = make_newer_keeper()
    with sessions_of(keeper) as sessions:
        make_write(keeper, NEWER, newer_binary, patched_binary)
        before = (keeper.hanger.pid, keeper.bouncer_pid)
        older = keeper.begin_takeover(env={"PYTHONPATH": ""})
        assert older.wait(30) == 1
        told = [line for line in keeper.output.read().splitlines() if "takeover failed" in line]
        (line,) = told
        assert line.startswith(
            f"pgkeeper: takeover failed: the ledger is written in format {NEWER},"
            f" we know {Formats(FORMAT_OLDEST, OURS)}"
        )
        assert line.endswith("; the old hanger goes on")
        assert line.count("goes on") == 1
        assert (keeper.status().hanger.pid, keeper.bouncer_pid) == before
        sessions.assert_intact()

        assert hand_over(keeper, patched_binary) == OURS
        keeper.take_over(env={"PYTHONPATH": ""})
        sessions.finish()
