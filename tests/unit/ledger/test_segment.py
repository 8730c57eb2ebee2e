"""The ledger's memory: sealed, whole, and given back to the last descriptor."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeeper.ledger.segment import MAX_SIZE, LedgerFormatError, Segment, SegmentError
from protocol import ledger_layouts as layouts
from protocol.ledger import MAGIC, SIGNATURE, Geometry, LedgerView
from tests.unit.ledger.builder import SMALL, LedgerBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    """Neither a descriptor nor a mapping of a ledger may be left over."""
    before = _open_files()
    yield
    assert _open_files() == before
    assert "pgkeeper-ledger" not in Path("/proc/self/maps").read_text()


def test_a_new_ledger_is_empty_and_ours() -> None:
    with Segment.create(SMALL, generation=3) as segment:
        header = segment.view().header
        assert (header.magic, header.signature, header.generation) == (MAGIC, SIGNATURE, 3)
        assert (header.commit, header.incarnation) == (0, 0)
        assert list(segment.view().iter_slots()) == []
        assert segment.size == os.fstat(segment.fd).st_size == SMALL.size


def test_it_is_what_the_tests_take_for_a_ledger() -> None:
    with Segment.create(SMALL) as segment:
        builder = LedgerBuilder()
        builder.set_header(act=bytes(64))
        assert os.pread(segment.fd, segment.size, 0) == bytes(builder.data)


def test_every_page_exists_from_the_start() -> None:
    with Segment.create(Geometry(200, 50, 4096, 2000)) as segment:
        assert os.fstat(segment.fd).st_blocks * 512 >= segment.size


def test_it_cannot_shrink_but_can_grow() -> None:
    with Segment.create(SMALL) as segment:
        assert fcntl.fcntl(segment.fd, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, SMALL.size - 4096)
        os.ftruncate(segment.fd, SMALL.size + 4096)


def test_the_descriptor_is_not_inherited() -> None:
    with Segment.create(SMALL) as segment:
        assert not os.get_inheritable(segment.fd)


def test_the_incarnation_fences() -> None:
    with Segment.create(SMALL) as segment:
        view = segment.view()
        segment.set_incarnation(7)
        assert view.header.incarnation == 7
        at = layouts.HEADER.field("incarnation").offset
        assert os.pread(segment.fd, 8, at) == (7).to_bytes(8, "little")


def test_what_the_last_incarnation_died_of_is_not_the_next_ones() -> None:
    with Segment.create(SMALL) as segment:
        for name, size in (("handled", 8), ("died_of", 4)):
            at = layouts.HEADER.field(name).offset
            os.pwrite(segment.fd, (11).to_bytes(size, "little"), at)
        assert (segment.handled, segment.died_of) == (11, 11)
        assert not segment.crash_was_sent
        os.pwrite(segment.fd, (layouts.DIED_SENT | 6).to_bytes(4, "little"), at)
        assert (segment.died_of, segment.crash_was_sent) == (6, True)
        segment.set_incarnation(7)
        assert (segment.handled, segment.died_of, segment.crash_was_sent) == (0, 0, False)


def test_two_mappings_see_each_other() -> None:
    with Segment.create(SMALL) as ours, Segment.from_fd(os.dup(ours.fd)) as theirs:
        theirs.set_incarnation(5)
        assert ours.view().header.incarnation == 5
        assert theirs.view().geometry == SMALL


def test_closing_twice_is_once() -> None:
    segment = Segment.create(SMALL)
    fd = segment.fd
    segment.close()
    os.fstat(0)
    segment.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    "sizes",
    [
        Geometry(0, 4, 256, 256),
        Geometry(16, 0, 256, 256),
        Geometry(16, 4, 0, 256),
        Geometry(16, 4, 256, 0),
        Geometry(1 << 32, 4, 256, 256),
        Geometry(16, 1 << 20, 4096, 256),
    ],
)
def test_impossible_sizes_are_refused(sizes: Geometry) -> None:
    with pytest.raises(SegmentError) as caught:
        Segment.create(sizes)
    assert "\n" not in str(caught.value)


def test_the_limit_is_above_what_ten_thousand_clients_need() -> None:
    assert Geometry(30_000, 20_000, 4096, 1_000_000).size < MAX_SIZE


def _memfd(data: bytes, flags: int = os.MFD_ALLOW_SEALING) -> int:
    fd = os.memfd_create("brought", os.MFD_CLOEXEC | flags)
    os.write(fd, data)
    return fd


@pytest.mark.parametrize("field", ["layout", "signature", "magic"])
def test_a_ledger_of_another_format_is_refused_with_both_named(field: str) -> None:
    builder = LedgerBuilder()
    ours = builder.header[field]
    builder.set_header(**{field: 99})
    with pytest.raises(LedgerFormatError) as caught:
        Segment.from_fd(_memfd(bytes(builder.data)))
    assert (caught.value.field, caught.value.found, caught.value.expected) == (field, 99, ours)
    assert "0x63" in str(caught.value)
    assert f"{ours:#x}" in str(caught.value)


@pytest.mark.parametrize("length", [0, 100, 4096, SMALL.size - 4096])
def test_a_ledger_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(LedgerFormatError):
        Segment.from_fd(_memfd(bytes(LedgerBuilder().data[:length])))


def test_what_cannot_be_sealed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    file.write_bytes(LedgerBuilder().data)
    with pytest.raises(SegmentError):
        Segment.from_fd(os.open(file, os.O_RDWR | os.O_CLOEXEC))
    with pytest.raises(SegmentError):
        Segment.from_fd(_memfd(bytes(LedgerBuilder().data), 0))


def test_a_ledger_that_is_brought_gets_its_seal() -> None:
    with Segment.from_fd(_memfd(bytes(LedgerBuilder().data))) as segment:
        assert fcntl.fcntl(segment.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        assert isinstance(segment.view(), LedgerView)
