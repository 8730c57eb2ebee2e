"""What the hanger has to know from pgbouncer.ini.

The hanger listens and accepts in pgbouncer's place, so it reads the same settings with the same
defaults (PgBouncer 1.24, src/main.c: `bouncer_params`); everything else is pgbouncer's business,
and so are the errors in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pgkeeper.inifile import (
    ConfigError,
    Section,
    Setting,
    connection_pairs,
    printable,
    read_ini,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["BouncerIni", "ConfigError", "ConfigWarning", "Database"]

_SECTIONS = frozenset({"pgbouncer", "databases", "users", "peers"})  # main.c: config_sects
_SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

# strtol() with base 0, of which nothing may remain: lib/usual/cfparser.c, cf_set_int
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")
_INT_DIGITS = 64  # more than any int has in any base; Python refuses thousands
_INT_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ConfigWarning:
    """Something in the ini that the operator should know.

    `severity` is "warning" if sessions may silently lack protection, else "note"; `setting` is
    the ini's key, `text` one line that names it and says what to do.
    """

    setting: str
    severity: Literal["warning", "note"]
    text: str


@dataclass(frozen=True, slots=True)
class Database:
    """A line of [databases]: its name ("*": the fallback) and the hosts of its servers.

    An empty `hosts` means a Unix socket in `unix_socket_dir` (src/objects.c: `dns_connect`).
    """

    name: str
    hosts: tuple[str, ...]

    @property
    def only_unix(self) -> bool:
        """True if no server of it is reached by TCP."""
        return all(host.startswith(("/", "@")) for host in self.hosts)


@dataclass(frozen=True, slots=True)
class BouncerIni:
    """pgbouncer.ini, as far as the hanger needs it.  Defaults are PgBouncer's own.

    `path` is the file; the other names are those of the settings in [pgbouncer].  Empty strings
    in the file become None where the setting names a file, a user or a group.
    """

    path: Path
    keeper_socket: Path | None = None
    listen_addr: str = ""
    listen_port: int = 6432
    listen_backlog: int = 128
    unix_socket_dir: str = "/tmp"  # noqa: S108 - DEFAULT_UNIX_SOCKET_DIR of bouncer.h
    unix_socket_mode: int = 0o777
    unix_socket_group: str | None = None
    tcp_defer_accept: bool = True
    so_reuseport: bool = False
    max_client_conn: int = 100
    user: str | None = None
    pidfile: str | None = None
    logfile: str | None = None
    syslog: bool = False
    client_tls_sslmode: str = "disable"
    server_tls_sslmode: str = "prefer"
    databases: tuple[Database, ...] = field(default=())

    @classmethod
    def load(cls, path: Path | str) -> BouncerIni:
        """Read `path` as PgBouncer would.  Raises `ConfigError`."""
        path = Path(path)
        reader = _Reader(path)
        for entry in read_ini(path):
            reader.take(entry)
        return reader.finish()

    @property
    def listen_addresses(self) -> tuple[str, ...]:
        """The words of `listen_addr` (lib/usual/string.c: `parse_word_list`); "*" is any."""
        words = (word.strip(" \t\n\v\f\r") for word in self.listen_addr.split(","))
        return tuple(word for word in words if word)

    def warnings(self) -> tuple[ConfigWarning, ...]:
        """What leaves sessions without protection, the loudest first (DESIGN section 7)."""
        found = []
        tcp = [database.name for database in self.databases if not database.only_unix]
        mode = self.server_tls_sslmode
        if mode != "disable" and tcp:
            # server.c: every mode but disable asks the server for TLS first.
            optional = "if PostgreSQL has ssl=on, " if mode in ("allow", "prefer") else ""
            text = (
                f"server_tls_sslmode = {mode}: {optional}server connections use TLS, and sessions"
                " over TLS are NOT HELD: they end when pgbouncer dies."
                f" Set server_tls_sslmode = disable in {printable(str(self.path))} to hold them."
            )
            found.append(ConfigWarning("server_tls_sslmode", "warning", text))
        if self.client_tls_sslmode != "disable":
            text = (
                f"client_tls_sslmode = {self.client_tls_sslmode}: clients that connect with TLS"
                " are served but not held."
            )
            found.append(ConfigWarning("client_tls_sslmode", "note", text))
        return tuple(found)


class _Reader:
    """Applies sections and settings in order, as cfparser.c's `load_handler` does."""

    def __init__(self, path: Path) -> None:
        self._ini = BouncerIni(path)
        self._databases: dict[str, Database] = {}
        self._section: str | None = None
        self._found_main = False

    def take(self, entry: Section | Setting) -> None:
        if isinstance(entry, Section):
            self._enter(entry)
        elif self._section is None:
            raise ConfigError(entry.path, entry.line, "setting before the first [section]")
        elif self._section == "pgbouncer":
            self._set(entry)
        elif self._section == "databases":
            self._add_database(entry)

    def finish(self) -> BouncerIni:
        if not self._found_main:
            raise ConfigError(self._ini.path, None, "it has no section [pgbouncer]")
        return replace(self._ini, databases=tuple(self._databases.values()))

    def _enter(self, section: Section) -> None:
        if section.name not in _SECTIONS:
            name = printable(section.name)
            raise ConfigError(section.path, section.line, f"unknown section [{name}]")
        self._section = section.name
        if section.name == "pgbouncer":
            # `fill_defaults`: every [pgbouncer] starts anew; only what has no default remains.
            self._found_main = True
            self._ini = BouncerIni(self._ini.path, user=self._ini.user)

    def _set(self, setting: Setting) -> None:
        convert = _CONVERT.get(setting.key)
        if convert is None:
            return
        try:
            value = convert(setting.value)
        except ValueError as error:
            reason = f"{setting.key}: {error}"
            raise ConfigError(setting.path, setting.line, reason) from None
        self._ini = replace(self._ini, **{setting.key: value})

    def _add_database(self, setting: Setting) -> None:
        hosts: tuple[str, ...] = ()
        try:
            for key, value in connection_pairs(setting.value):
                if key == "host":
                    hosts = tuple(host for host in value.split(",") if host)
        except ValueError as error:
            reason = f"database {printable(setting.key)}: {error}"
            raise ConfigError(setting.path, setting.line, reason) from None
        self._databases[setting.key] = Database(setting.key, hosts)


def _text(value: str) -> str:
    return value


def _optional(value: str) -> str | None:
    return value or None


def _optional_path(value: str) -> Path | None:
    return Path(value) if value else None


def _integer(value: str, low: int = -_INT_MAX - 1, high: int = _INT_MAX) -> int:
    match = _INTEGER.fullmatch(value) if len(value) <= _INT_DIGITS else None
    if match is None:
        raise ValueError(f"not a number: {value[:_INT_DIGITS]!a}")
    sign, hexadecimal, octal, decimal = match.groups()
    number = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    number = -number if sign == "-" else number
    if not low <= number <= high:
        raise ValueError(f"{number} is not between {low} and {high}")
    return number


def _count(value: str) -> int:
    return _integer(value, 0)


def _port(value: str) -> int:
    return _integer(value, 0, 65535)


def _mode(value: str) -> int:
    return _integer(value, 0, 0o7777)


def _switch(value: str) -> bool:
    return _integer(value) != 0


def _sslmode(value: str) -> str:
    if value.lower() not in _SSLMODES:
        raise ValueError(f"must be one of {', '.join(_SSLMODES)}, not {value[:_INT_DIGITS]!a}")
    return value.lower()


_CONVERT: Final[Mapping[str, Callable[[str], Any]]] = {
    "keeper_socket": _optional_path,
    "listen_addr": _text,
    "listen_port": _port,
    "listen_backlog": _integer,
    "unix_socket_dir": _text,
    "unix_socket_mode": _mode,
    "unix_socket_group": _optional,
    "tcp_defer_accept": _switch,
    "so_reuseport": _switch,
    "max_client_conn": _count,
    "user": _optional,
    "pidfile": _optional,
    "logfile": _optional,
    "syslog": _switch,
    "client_tls_sslmode": _sslmode,
    "server_tls_sslmode": _sslmode,
}
