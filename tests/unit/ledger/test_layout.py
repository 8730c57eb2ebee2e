"""C and Python agree on the ledger: every size, offset, constant, check and the signature."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import ledger, ledger_checks, ledger_layouts, ledger_signature
from protocol.layout import U8, U32, Layout, array, record
from tests.unit.ledger.builder import LedgerBuilder
from tests.unit.ledger.headers import KEEPER, Header, Measured, compile_c, measure, run

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[2] / "docs" / "ledger-format.md"

ENUMS = {
    "KeeperKind": ("KEEPER_", ledger.Kind),
    "KeeperAct": ("KEEPER_ACT_", ledger.Act),
    "KeeperFlag": ("KEEPER_F_", ledger.Flag),
    "KeeperBlobKind": ("KEEPER_BLOB_", ledger.BlobKind),
    "KeeperCredentials": ("KEEPER_CRED_", ledger.Credentials),
}
DEFINES = {
    "KEEPER_MAGIC": ledger.MAGIC,
    "KEEPER_FORMAT_VERSION": ledger.FORMAT_VERSION,
    "KEEPER_FORMAT_OLDEST": ledger.FORMAT_OLDEST,
    "KEEPER_FORMAT_LAYOUT": ledger.FORMAT_LAYOUT,
    "KEEPER_FORMAT_HANDED": ledger_layouts.FORMAT_HANDED,
    "KEEPER_HEADER_SIZE": ledger.HEADER_SIZE,
    "KEEPER_UNIT": ledger.UNIT,
    "KEEPER_INLINE_REQUESTS": ledger_layouts.INLINE_REQUESTS,
    "KEEPER_READS": ledger_layouts.READS,
    "KEEPER_HANDLED_TOKEN": ledger_layouts.HANDLED_TOKEN,
    "KEEPER_DIED_SENT": ledger_layouts.DIED_SENT,
    "KEEPER_IOBUF_HEAD": ledger_layouts.IOBUF_HEAD,
}


@pytest.fixture(scope="module")
def header() -> Header:
    return Header.read("format.h")


@pytest.fixture(scope="module")
def measured(header: Header, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measure(header, tmp_path_factory.mktemp("dump"))


def test_every_struct_is_declared(measured: Measured) -> None:
    assert {layout.name: layout.size for layout in ledger.LAYOUTS} == measured.sizes


@pytest.mark.parametrize("layout", ledger.LAYOUTS, ids=lambda layout: layout.name)
def test_every_field_has_its_offset_and_size(layout: Layout, measured: Measured) -> None:
    declared = [(field.name, field.offset, field.size) for field in layout.fields]
    assert declared == measured.fields[layout.name]


def test_no_struct_has_padding_that_nobody_declares(measured: Measured) -> None:
    for name, fields in measured.fields.items():
        assert sum(size for _, _, size in fields) == measured.sizes[name], name


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations_have_the_same_values(name: str, header: Header, measured: Measured) -> None:
    prefix, enum = ENUMS[name]
    in_c = {text.removeprefix(prefix): measured.constants[text] for text in header.enums[name]}
    assert in_c == {member.name: member.value for member in enum}


def test_every_constant_has_the_same_value(header: Header, measured: Measured) -> None:
    values = {
        name: measured.constants[name] for name in header.defines if name != "KEEPER_FORMAT_H"
    }
    assert values == DEFINES
    assert set(header.enums) == set(ENUMS)


def test_signature_h_is_what_the_layout_says() -> None:
    assert (KEEPER / "signature.h").read_text() == ledger_signature.signature_h()


def test_the_signature_covers_every_field() -> None:
    text = ledger_signature.layout_text()
    assert text.startswith("KeeperCopy.epoch=0:8;KeeperCopy.rx=8:8;")
    assert text.count(";") == sum(len(layout.fields) for layout in ledger.LAYOUTS)
    assert ledger_checks.fnv1a64(text.encode()) == ledger.SIGNATURE


def test_checks_agree_on_random_bytes(tmp_path: Path) -> None:
    program = compile_c(tmp_path / "checks", HERE / "print_checks.c")
    rng = random.Random(20250101)
    stdin = bytearray()
    expected = []
    for length in [0, 1, 7, 8, *(rng.randrange(300) for _ in range(300))]:
        slot = rng.getrandbits(32)
        copy = rng.randbytes(ledger_layouts.COPY.size)
        name = rng.randbytes(length)
        units = rng.getrandbits(32)
        entry = ledger_layouts.CATALOG_ENTRY.build(
            query_id=rng.getrandbits(64),
            statement=units,
            name_length=length,
            check=rng.getrandbits(16),
        )
        stdin += slot.to_bytes(4, sys.byteorder) + copy + entry + name
        checks = (
            ledger.copy_check(copy, slot),
            ledger.blob_check(name),
            ledger.entry_check(entry, name),
            ledger.head_check(slot, units, length),
        )
        expected.append(" ".join(map(str, checks)))
    assert run(program, stdin=bytes(stdin)).splitlines() == expected


@pytest.mark.parametrize(
    "sizes", [(16, 4, 256, 256), (1, 1, 1, 1), (1000, 300, 4096, 5000), (9, 3, 4084, 63)]
)
def test_the_store_formats_a_ledger_as_we_do(
    sizes: tuple[int, int, int, int], tmp_path: Path
) -> None:
    program = compile_c(tmp_path / "format", HERE / "print_ledger.c", KEEPER / "store.c")
    arguments = [str(size) for size in sizes]
    written = subprocess.run([program, *arguments], check=True, stdout=subprocess.PIPE).stdout
    builder = LedgerBuilder(ledger.Geometry(*sizes))
    builder.set_header(act=bytes(64), generation=0)
    assert len(written) == len(builder.data)
    assert written == bytes(builder.data)


def test_the_document_names_every_field_and_constant(header: Header) -> None:
    words = set(re.findall(r"\w+", DOCUMENT.read_text()))
    names = set(header.constants)
    names |= set(header.structs) | set(header.enums)
    names |= {member for members in header.structs.values() for member in members}
    assert names - words == set()


@pytest.mark.parametrize("layout", ledger.LAYOUTS, ids=lambda layout: layout.name)
def test_the_document_gives_every_offset_and_size(layout: Layout) -> None:
    section = re.split(rf"^#+ {layout.name}$", DOCUMENT.read_text(), flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", section, flags=re.MULTILINE)
    documented = [(name, int(offset), int(size)) for offset, size, name in rows]
    assert documented == [(field.name, field.offset, field.size) for field in layout.fields]


def test_the_document_gives_every_value(measured: Measured, header: Header) -> None:
    rows = re.findall(r"^\| `(KEEPER_\w+)` \| `?(\w+)`? \|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name: int(value, 0) for name, value in rows}
    for name in header.enums["KeeperFlag"]:
        documented[name] = 1 << documented[name]
    assert documented == {name: measured.constants[name] for name in header.constants}


def test_layouts_build_and_parse_alike() -> None:
    layout = Layout("Example", record(one=U8, three=array(3, U8), four=U32))
    raw = layout.build(one=1, three=(2, 3, 4), four=5)
    assert raw == bytes([1, 2, 3, 4]) + (5).to_bytes(4, sys.byteorder)
    assert layout.parse(b"x" + raw, 1) == {"one": 1, "three": (2, 3, 4), "four": 5}
