"""The ledger's writer, killed after every single instruction, never leaves a torn state.

`driver.c` steps a writer (`script.c` on top of `patches/keeper/store.c`) with PTRACE_SINGLESTEP and
compares what `reader.c` reads with the two states between which it was: exactly one of them must
be there, before and after an adoption's own first commit.  Then the order of the stores is broken
on purpose, and each time that must be noticed.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeeper.ledger.check import check
from protocol.ledger import BlobKind, Geometry, LedgerView, SocketRecord
from tests.unit.ledger.headers import KEEPER, compile_c

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
SOURCES = tuple(HERE / name for name in ("driver.c", "reader.c", "script.c"))
SIZES = Geometry(slots=10, iobufs=5, pkt_buf=192, units=128)  # as publish.h says

SMALL_COMMIT = (4, 1, 1)  # seed and commit: one that changes few slots


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Compile the sweep, with options, or with a file of ours in which some text is replaced."""

    def compile_sweep(*options: str, mistake: tuple[str, str, str] | None = None) -> Path:
        store = KEEPER / "store.c"
        includes = [f"-I{HERE}"]
        if mistake:
            name, found, instead = mistake
            text = (KEEPER / name).read_text()
            assert text.count(found) == 1, f"{name} has changed: {found!r}"
            changed = tmp_path / "keeper" / name
            changed.parent.mkdir(exist_ok=True)
            changed.write_text(text.replace(found, instead))
            store = changed if name == store.name else store
            includes += ["-iquote", str(tmp_path)]  # looked at before any -I
        return compile_c(tmp_path / "publish", *SOURCES, store, options=(*includes, *options))

    return compile_sweep


def sweep(program: Path, *arguments: object) -> tuple[int, str]:
    """Run the sweep; give its exit status and what it prints."""
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout.strip()


def counts(text: str) -> dict[str, int]:
    """The numbers of the last line: kills, images, and how many were before or after the word."""
    return {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", text)}


def test_killed_after_every_instruction_of_a_commit(build: Callable[..., Path]) -> None:
    status, text = sweep(build(), "kill", *SMALL_COMMIT)
    assert status == 0, text
    found = counts(text)
    assert found["kills"] == found["before"] + found["after"] > 300
    assert found["before"] > 100
    assert found["after"] > 10


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3"])
def test_no_instruction_of_a_life_leaves_a_torn_ledger(
    build: Callable[..., Path], level: str
) -> None:
    """Also between commits, when blobs are written, freed and handed out again."""
    status, text = sweep(build(level), "walk", 7, 10)
    assert status == 0, text
    assert counts(text)["after"] >= 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_long_lives(build: Callable[..., Path], seed: int) -> None:
    status, text = sweep(build(), "walk", seed, 100)
    assert status == 0, text


@pytest.mark.slow
@pytest.mark.parametrize("commit", range(1, 6))
def test_killed_after_every_instruction_of_more_commits(
    build: Callable[..., Path], commit: int
) -> None:
    status, text = sweep(build(), "kill", 1, commit, commit)
    assert status == 0, text


@pytest.mark.parametrize("switch", ["-DKEEPER_BROKEN_COMMIT_FIRST", "-DKEEPER_BROKEN_OVERWRITE"])
@pytest.mark.parametrize("mode", [("kill", 1, 1, 1), ("walk", 1, 10)])
def test_a_broken_order_is_noticed(
    build: Callable[..., Path], switch: str, mode: tuple[object, ...]
) -> None:
    status, text = sweep(build(switch), *mode)
    assert status == 1, text
    assert text.startswith("torn")


FREE_BLOB = "\tstore->freed_blob[store->n_freed_blob++] = unit;"
FREE_IOBUF = "\tstore->freed_iobuf[store->n_freed_iobuf++] = number;"
MISTAKES = {
    "blob free before the commit": (
        "store.c",
        FREE_BLOB,
        "\trelease_block(store, unit, order_for(keeper_store_blob(store, unit)->units));",
    ),
    "IOBuf free before the commit": (
        "store.h",
        FREE_IOBUF,
        "\tstore->free_iobuf[store->n_free_iobuf++] = number;",
    ),
    "no scrub": ("store.c", "\t\t\t\tcopy[i].epoch = 0;", "\t\t\t\tcontinue;"),
    "act record of the committed state overwritten": (
        "commit.h",
        "*record = &header->act[epoch & 1];",
        "*record = &header->act[store->epoch & 1];",
    ),
    "check not renewed": ("commit.h", "\t\tcopy->check = check;", "\t\tcopy->check = 0;"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_in_the_store_is_noticed(build: Callable[..., Path], name: str) -> None:
    status, text = sweep(build(mistake=MISTAKES[name]), "walk", 1, 100)
    assert status == 1, text
    assert text.startswith("torn")


def logical_state(view: LedgerView) -> list[object]:
    """Everything a ledger says, read in Python."""
    state: list[object] = [view.act()]
    for slot, copy in view.iter_slots():
        record = view.record(copy, slot)
        assert isinstance(record, SocketRecord)
        state += [slot, copy, record, view.catalog(record, slot)]
        state.append(view.iobuf(copy, 0, copy.io_recv))
        if copy.outbox:
            state.append(view.blob(slot, copy.outbox, BlobKind.OUTBOX, copy.outbox_len))
        if copy.extra:
            state.append(view.blob(slot, copy.extra, BlobKind.EXTRA))
    return state


def test_python_reads_the_same_two_states(build: Callable[..., Path]) -> None:
    program = build()
    command = [str(program), "images", "1", "1"]
    data = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    assert len(data) % SIZES.size == 0
    images = [data[at : at + SIZES.size] for at in range(0, len(data), SIZES.size)]
    views = [LedgerView(image) for image in images]
    before, after = logical_state(views[0]), logical_state(views[1])
    assert before != after
    seen = [0, 0]
    for view in views[2:]:
        assert check(view) == []
        state = logical_state(view)
        assert state in (before, after)
        seen[state == after] += 1
    assert min(seen) > 0
