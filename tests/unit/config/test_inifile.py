"""The syntax of pgbouncer.ini, as lib/usual/cfparser.c and src/loader.c have it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeeper.inifile import ConfigError, Section, Setting, connection_pairs, read_ini


def entries(path: Path) -> list[tuple[object, ...]]:
    """What `read_ini` finds, without file names: (line, section) or (line, key, value)."""
    return [
        (entry.line, entry.name)
        if isinstance(entry, Section)
        else (entry.line, entry.key, entry.value)
        for entry in read_ini(path)
    ]


@pytest.fixture
def ini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to fill, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pgbouncer.ini"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n\n ; nothing\n# nothing either\n", []),
        ("[pgbouncer]\nlisten_port = 1\n", [(1, "pgbouncer"), (2, "listen_port", "1")]),
        ("[a]", [(1, "a")]),
        # The value is the rest of the line: comment signs and quotes in it are part of it.
        ("k = v ; c # d 'e'\n", [(1, "k", "v ; c # d 'e'")]),
        ("k=\t v \t\r\n", [(1, "k", "v")]),
        ("k =\nother = 2\n", [(1, "k", ""), (2, "other", "2")]),
        ("  \f\v k.a-b_c* = x", [(1, "k.a-b_c*", "x")]),
        ("* = host=h", [(1, "*", "host=h")]),
        # Nothing says that a section has a line of its own, or that it may not be empty.
        ("[a] k = v\n[]x=1", [(1, "a"), (1, "k", "v"), (2, ""), (2, "x", "1")]),
        ("[a b;]", [(1, "a b;")]),
        ("= v", [(1, "", "v")]),
        ("k = a = b", [(1, "k", "a = b")]),
        ("k = %include x", [(1, "k", "%include x")]),
        # A C string ends at its zero.
        ("k = v\0\n][", [(1, "k", "v")]),
    ],
)
def test_syntax(ini: Path, text: str, expected: list[tuple[object, ...]]) -> None:
    ini.write_text(text)
    assert entries(ini) == expected


def test_a_byte_order_mark_is_no_part_of_the_syntax(ini: Path) -> None:
    ini.write_bytes(b"\xef\xbb\xbf[pgbouncer]\n")
    with pytest.raises(ConfigError, match="syntax error"):
        entries(ini)


def test_values_are_the_bytes_of_file_names(ini: Path) -> None:
    ini.write_bytes(b"logfile = /tmp/\xff\xc3\xa9\n")
    assert entries(ini) == [(1, "logfile", os.fsdecode(b"/tmp/\xff\xc3\xa9"))]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("k\n", 1),
        ("\n\n  k v = 1\n", 3),
        ("[a\n]", 1),
        ("[a]\nä = 1", 2),
        ("%includ x", 1),
        ("%include\nx", 1),
        ("k = v\n' = 1", 2),
    ],
)
def test_syntax_errors_name_the_line(ini: Path, text: str, line: int) -> None:
    ini.write_text(text)
    with pytest.raises(ConfigError) as caught:
        entries(ini)
    assert (caught.value.path, caught.value.line) == (ini, line)
    assert caught.value.message == f"{ini}:{line}: {caught.value.reason}"
    assert "syntax error" in caught.value.reason


def test_a_syntax_error_shows_nothing_of_the_line(ini: Path) -> None:
    ini.write_text("[databases]\nx = host=h\n password=hunter2\npassword hunter2\n")
    with pytest.raises(ConfigError) as caught:
        entries(ini)
    assert "hunter2" not in str(caught.value)


def test_include_goes_on_in_the_same_section(ini: Path) -> None:
    ini.write_text("[a]\n%include  more.ini \nlast = 3\n")
    Path("more.ini").write_text("\nfirst = 1\n[b]\nsecond = 2\n")
    found = list(read_ini(ini))
    assert [(entry.path, entry.line) for entry in found] == [
        (ini, 1),
        (Path("more.ini"), 2),
        (Path("more.ini"), 3),
        (Path("more.ini"), 4),
        (ini, 3),
    ]


def test_included_file_is_missing(ini: Path) -> None:
    ini.write_text("[a]\n\n%include missing.ini\n")
    with pytest.raises(ConfigError) as caught:
        entries(ini)
    assert str(caught.value) == (
        f"{ini}:3: %include missing.ini: cannot read it: No such file or directory"
    )


def test_error_in_an_included_file_names_that_file(ini: Path) -> None:
    ini.write_text("%include bad.ini\n")
    Path("bad.ini").write_text("\nbad\n")
    with pytest.raises(ConfigError) as caught:
        entries(ini)
    assert (caught.value.path, caught.value.line) == (Path("bad.ini"), 2)


def test_include_without_a_name(ini: Path) -> None:
    ini.write_text("%include \n")
    with pytest.raises(ConfigError, match="without a file name"):
        entries(ini)


def test_include_nests_ten_deep_and_no_deeper(ini: Path) -> None:
    ini.write_text("%include 1\n")
    for depth in range(1, 10):
        Path(str(depth)).write_text(f"%include {depth + 1}\n")
    Path("10").write_text("k = v\n")
    assert entries(ini) == [(1, "k", "v")]
    Path("10").write_text("%include 1\n")
    with pytest.raises(ConfigError, match="nested more than 10 deep"):
        entries(ini)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "device", "zero"])
def test_files_that_cannot_be_read(ini: Path, kind: str) -> None:
    match kind:
        case "folder":
            ini.mkdir()
        case "fifo":
            os.mkfifo(ini)
        case "device":
            ini = Path("/dev/zero")
        case "zero":
            ini = Path("a\0b")
    with pytest.raises(ConfigError) as caught:
        entries(ini)
    assert caught.value.line is None
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_without_end(ini: Path) -> None:
    with ini.open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(ConfigError, match="larger than 16 MiB"):
        entries(ini)


@given(st.binary(max_size=400) | st.text("[]%#;='\n\t ainclude", max_size=80).map(str.encode))
def test_only_config_errors_escape(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ini"
    path.write_bytes(content)
    lines = []
    with contextlib.suppress(ConfigError):
        lines.extend(entry.line for entry in read_ini(path))
    assert lines == sorted(lines)
    assert all(1 <= line <= content.count(b"\n") + 1 for line in lines)


def test_repr_of_a_setting_hides_its_value() -> None:
    assert "hunter2" not in repr(Setting(Path("x"), 1, "db", "password=hunter2"))


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("   ", []),
        ("host=h port=1", [("host", "h"), ("port", "1")]),
        ("  host = h   port=  1 ", [("host", "h"), ("port", "1")]),
        ("password='it''s a ''test''' user=u", [("password", "it's a 'test'"), ("user", "u")]),
        ("a='x=y z'", [("a", "x=y z")]),
        ("a=b=c", [("a", "b=c")]),
        ("host=\tx", [("host", "\tx")]),
        # loader.c cuts at the character after a quoted value, whatever it is
        ("a='b'xc=d", [("a", "b"), ("c", "d")]),
    ],
)
def test_connection_strings(text: str, pairs: list[tuple[str, str]]) -> None:
    assert list(connection_pairs(text)) == pairs


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "=hunter2",
        "a='hunter2",
        "a='hunter2''",
        "a=''",
        "a=",
        "a=1 hunter2",
        "a= ",
        "hunter2 x=1",
    ],
)
def test_errors_in_connection_strings_show_nothing_of_them(text: str) -> None:
    with pytest.raises(ValueError, match="connection string") as caught:
        list(connection_pairs(text))
    assert "hunter2" not in str(caught.value)


@given(st.dictionaries(st.text("abc_", min_size=1), st.text(" 'x=;", min_size=1)))
def test_quoted_connection_strings_round_trip(pairs: dict[str, str]) -> None:
    text = " ".join(
        f"{key}='{value.replace(chr(39), chr(39) * 2)}'" for key, value in pairs.items()
    )
    assert dict(connection_pairs(text)) == pairs
