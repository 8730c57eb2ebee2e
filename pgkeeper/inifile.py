"""The syntax of pgbouncer.ini: lines, sections, %include, and connection strings.

Follows PgBouncer 1.24's `parse_ini_file` (lib/usual/cfparser.c) and `cstr_get_pair`
(src/loader.c) to the byte, so that the hanger and pgbouncer cannot read the same file differently.
Only the wording of errors is our own.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ConfigError", "Section", "Setting", "connection_pairs", "read_ini"]

_MAX_INCLUDE = 10  # cfparser.c: MAX_INCLUDE
_MAX_SIZE = 16 << 20  # bytes; ours: far beyond any real file, so that a device cannot fill memory

_C_SPACE = b" \t\n\v\f\r"  # isspace() in the C locale, which PgBouncer never leaves
_BLANK_LINES = re.compile(rb"[ \t\n\v\f\r]*")
_INCLUDE = re.compile(rb"%include[ \t]+([^\n]*)")
_COMMENT = re.compile(rb"[#;][^\n]*")
_SECTION = re.compile(rb"\[([^\]\n]*)\]")
_SETTING = re.compile(rb"([A-Za-z0-9_.*-]*)[ \t]*=[ \t]*([^\n]*)")

_PAIR_KEY = re.compile(r" *([^= ]+) *= *")
_QUOTED = re.compile(r"'((?:[^']|'')*)'(?!')")
_UNQUOTED = re.compile(r"[^ ]*")


class ConfigError(PgkeeperError):
    """A configuration file cannot be used.

    `path` names the file, `line` the line in it (from 1; None: the file as a whole) and `reason`
    what is wrong, without any value that may be a secret.
    """

    def __init__(self, path: Path | str, line: int | None, reason: str) -> None:
        self.path = Path(path)
        self.line = line
        self.reason = reason
        place = f"{printable(str(path))}:{line}" if line is not None else printable(str(path))
        super().__init__(f"{place}: {reason}")


def printable(text: str) -> str:
    """`text` with everything that could confuse a terminal or a log written as an escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@dataclass(frozen=True, slots=True)
class Section:
    """`[name]`, at `line` of the file `path`."""

    path: Path
    line: int
    name: str


@dataclass(frozen=True, slots=True, repr=False)
class Setting:
    """`key = value`, at `line` of the file `path`.  No repr: a value may hold a password."""

    path: Path
    line: int
    key: str
    value: str


def read_ini(path: Path) -> Iterator[Section | Setting]:
    """The sections and settings of `path` and of what it includes, in PgBouncer's reading order.

    A section goes on through an included file and after it, as in PgBouncer; relative names of
    included files are looked up from the working directory, as in PgBouncer.
    Raises `ConfigError`.
    """
    return _parse(path, _load(path), 0)


def _load(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # also keeps open() from waiting at a FIFO
            raise ConfigError(path, None, "not a regular file")
        with path.open("rb") as file:
            content = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError(path, None, f"cannot read it: {error.strerror}") from None
    except ValueError:
        raise ConfigError(path, None, "not a file name") from None
    if len(content) > _MAX_SIZE:
        raise ConfigError(path, None, f"larger than {_MAX_SIZE >> 20} MiB")
    return content.partition(b"\0")[0]  # PgBouncer handles the file as one C string


def _parse(path: Path, content: bytes, depth: int) -> Iterator[Section | Setting]:
    def skip_space(start: int) -> int:
        match = _BLANK_LINES.match(content, start)
        return match.end() if match else start

    # The line number is carried along: counting from the start each time would be quadratic.
    line, counted = 1, 0
    position = skip_space(0)
    while position < len(content):
        line, counted = line + content.count(b"\n", counted, position), position
        if match := _INCLUDE.match(content, position):
            yield from _include(path, line, match[1].rstrip(_C_SPACE), depth)
        elif match := _COMMENT.match(content, position):
            pass
        elif match := _SECTION.match(content, position):
            yield Section(path, line, os.fsdecode(match[1]))
        elif match := _SETTING.match(content, position):
            value = match[2].rstrip(_C_SPACE)
            yield Setting(path, line, os.fsdecode(match[1]), os.fsdecode(value))
        else:
            # The text itself is not quoted: it may be the rest of a connection string.
            raise ConfigError(path, line, 'syntax error: expected "key = value" or "[section]"')
        position = skip_space(match.end())


def _include(path: Path, line: int, name: bytes, depth: int) -> Iterator[Section | Setting]:
    if depth >= _MAX_INCLUDE:
        raise ConfigError(path, line, f"%include nested more than {_MAX_INCLUDE} deep")
    if not name:
        raise ConfigError(path, line, "%include without a file name")
    included = Path(os.fsdecode(name))
    try:
        content = _load(included)
    except ConfigError as error:
        shown = printable(str(included))
        raise ConfigError(path, line, f"%include {shown}: {error.reason}") from None
    yield from _parse(included, content, depth + 1)


def connection_pairs(text: str) -> Iterator[tuple[str, str]]:
    """The `key=value` pairs of a connection string, unquoted ('' inside quotes is a quote).

    Raises `ValueError` without any part of `text`, which may hold a password.
    """
    position = _end_of_spaces(text, 0)
    while position < len(text):
        key = _PAIR_KEY.match(text, position)
        if key is None:
            raise ValueError("syntax error in connection string")
        if text.startswith("'", key.end()):
            quoted = _QUOTED.match(text, key.end())
            if quoted is None:
                raise ValueError("unterminated quote in connection string")
            value, end = quoted[1].replace("''", "'"), quoted.end()
        else:
            plain = _UNQUOTED.match(text, key.end())
            value, end = (plain[0], plain.end()) if plain else ("", key.end())
        if not value:
            raise ValueError("empty value in connection string")
        yield key[1], value
        # cstr_get_value cuts at the character after the value, whatever it is
        position = _end_of_spaces(text, end + 1)


def _end_of_spaces(text: str, start: int) -> int:
    while start < len(text) and text[start] == " ":
        start += 1
    return start
