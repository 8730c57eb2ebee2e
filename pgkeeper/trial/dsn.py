"""Where a session logs in: a connection string of either kind that libpq knows."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from pgkeeper.trial.errors import TrialError

__all__ = ["Address", "BadDsnError", "parse_dsn"]

_PAIR: Final = re.compile(r"\s*(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|[^\s']*)(?=\s|$)")
_SCHEMES: Final = ("postgresql", "postgres")
_NAMES: Final = frozenset({"host", "port", "user", "password", "dbname", "sslmode"})
_PASSED_OVER: Final = frozenset({"connect_timeout", "application_name"})
_CLEAR: Final = frozenset({"", "disable", "allow", "prefer"})


class BadDsnError(TrialError):
    """A connection string that cannot be used; the text shows no value, for one is a password."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server or pooler, who logs in, and to which database. An absolute `host` is a folder."""

    host: str
    port: int
    user: str
    database: str
    password: str = field(default="", repr=False)


def parse_dsn(text: str) -> Address:
    """Read a URL or `name=value` pairs; the password may come from PGPASSWORD.

    Knows host, port, user, password, dbname, and sslmode as long as it allows clear text;
    connect_timeout and application_name are passed over.
    Raises `BadDsnError`.
    """
    scheme, separator, _ = text.partition("://")
    values = _url(text) if separator and scheme in _SCHEMES else _pairs(text)
    unknown = sorted(values.keys() - _NAMES - _PASSED_OVER)
    if unknown:
        raise BadDsnError(f"connection string: {', '.join(unknown)} is not known")
    if values.get("sslmode", "") not in _CLEAR:
        raise BadDsnError("connection string: sessions over TLS are not tried; sslmode=disable")
    user = values.get("user") or os.environ.get("PGUSER") or "postgres"
    return Address(
        host=values.get("host") or "127.0.0.1",
        port=_port(values.get("port") or "5432"),
        user=user,
        database=values.get("dbname") or user,
        password=values.get("password") or os.environ.get("PGPASSWORD", ""),
    )


def _url(text: str) -> dict[str, str]:
    try:
        parts = urlsplit(text)
        values = {
            "host": unquote(parts.hostname or ""),
            "port": str(parts.port or ""),
            "user": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            "dbname": unquote(parts.path.removeprefix("/")),
        }
    except ValueError:
        raise BadDsnError("connection string: not a URL") from None
    return {
        **{name: value for name, value in values.items() if value},
        **dict(parse_qsl(parts.query)),
    }


def _pairs(text: str) -> dict[str, str]:
    values = {}
    at = 0
    stripped = text.rstrip()
    while at < len(stripped):
        found = _PAIR.match(stripped, at)
        if found is None:
            raise BadDsnError("connection string: neither a URL nor name=value pairs")
        word = found[2]
        if word.startswith("'"):
            word = re.sub(r"\\(.)", r"\1", word[1:-1])
        values[found[1]] = word
        at = found.end()
    return values


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise BadDsnError("connection string: port is no number from 1 to 65535")
    return int(text)
