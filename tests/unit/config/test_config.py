"""The settings that the hanger takes from pgbouncer.ini."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeeper.config import BouncerIni, ConfigError, Database

if TYPE_CHECKING:
    from collections.abc import Callable

Load = "Callable[[str], BouncerIni]"


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], BouncerIni]:
    """Load an ini with this content."""

    def write_and_load(content: str) -> BouncerIni:
        path = tmp_path / "pgbouncer.ini"
        path.write_text(content)
        return BouncerIni.load(path)

    return write_and_load


def test_defaults_are_those_of_pgbouncer(load: Load) -> None:
    ini = load("[pgbouncer]\n")
    # src/main.c, bouncer_params; DEFAULT_UNIX_SOCKET_DIR of include/bouncer.h
    assert (ini.listen_addr, ini.listen_port, ini.listen_backlog) == ("", 6432, 128)
    assert (ini.unix_socket_dir, ini.unix_socket_mode) == ("/tmp", 0o777)
    assert ini.unix_socket_group is None
    assert (ini.tcp_defer_accept, ini.so_reuseport, ini.max_client_conn) == (True, False, 100)
    assert (ini.user, ini.pidfile, ini.logfile, ini.syslog) == (None, None, None, False)
    assert (ini.client_tls_sslmode, ini.server_tls_sslmode) == ("disable", "prefer")
    assert ini.keeper_socket is None
    assert ini.databases == ()


def test_all_settings(load: Load) -> None:
    ini = load(
        """
        ; a usual file
        [databases]
        one = host=127.0.0.1 port=5432 dbname=x
        two = host=/run/postgresql,10.0.0.1 password='a host=/x'
        three =
        * = host=@abstract
        [users]
        joe = pool_mode=session
        [peers]
        1 = host=10.0.0.2
        [pgbouncer]
        keeper_socket = /run/k.sock
        listen_addr = 127.0.0.1, ::1,,*
        listen_port = 0x1900
        listen_backlog = 4096
        unix_socket_dir = @pgb
        unix_socket_mode = 0700
        unix_socket_group = staff
        tcp_defer_accept = 0
        so_reuseport = 1
        max_client_conn = 5000
        user = postgres
        pidfile = /run/p.pid
        logfile = /var/log/p.log
        syslog = 1
        client_tls_sslmode = Require
        server_tls_sslmode = DISABLE
        no_such_setting = is pgbouncer's business
        """
    )
    assert ini.keeper_socket == Path("/run/k.sock")
    assert ini.listen_addresses == ("127.0.0.1", "::1", "*")
    assert (ini.listen_port, ini.listen_backlog, ini.max_client_conn) == (6400, 4096, 5000)
    assert (ini.unix_socket_dir, ini.unix_socket_mode, ini.unix_socket_group) == (
        "@pgb",
        0o700,
        "staff",
    )
    assert (ini.tcp_defer_accept, ini.so_reuseport, ini.syslog) == (False, True, True)
    assert (ini.user, ini.pidfile, ini.logfile) == ("postgres", "/run/p.pid", "/var/log/p.log")
    assert (ini.client_tls_sslmode, ini.server_tls_sslmode) == ("require", "disable")
    assert ini.databases == (
        Database("one", ("127.0.0.1",)),
        Database("two", ("/run/postgresql", "10.0.0.1")),
        Database("three", ()),
        Database("*", ("@abstract",)),
    )


def test_the_last_of_two_counts(load: Load) -> None:
    ini = load("[pgbouncer]\nlisten_port=1\nlisten_port=2\n[databases]\na=host=x\na=host=/y\n")
    assert ini.listen_port == 2
    assert ini.databases == (Database("a", ("/y",)),)


def test_a_second_main_section_starts_anew(load: Load) -> None:
    # cfparser.c, fill_defaults: all but what has no default, and of ours that is `user`
    ini = load("[pgbouncer]\nlisten_port=1\nuser=joe\n[databases]\na=host=x\n[pgbouncer]\n")
    assert (ini.listen_port, ini.user) == (6432, "joe")
    assert ini.databases == (Database("a", ("x",)),)


def test_settings_of_other_sections_are_not_ours(load: Load) -> None:
    ini = load("[pgbouncer]\n[users]\nlisten_port = pool_size=1\n")
    assert ini.listen_port == 6432


@pytest.mark.parametrize("number", ["010", "8", "0x8", "0X8", "+8", " \t8"])
def test_numbers_as_strtol_reads_them(load: Load, number: str) -> None:
    assert load(f"[pgbouncer]\nlisten_backlog = {number}").listen_backlog == 8


@pytest.mark.parametrize(
    "line",
    [
        "listen_port = ",
        "listen_port = 6432 ; comment",
        "listen_port = 65536",
        "listen_port = -1",
        "listen_port = 0o17",
        "listen_port = 08",
        "listen_port = 0x",
        "listen_port = 1_000",
        "listen_port = \u0661",
        "listen_port = 1.5",
        "max_client_conn = -1",
        "max_client_conn = 2147483648",
        "max_client_conn = " + "9" * 5000,
        "unix_socket_mode = 010000",
        "tcp_defer_accept = yes",
        "server_tls_sslmode = maybe",
        "client_tls_sslmode =",
    ],
)
def test_bad_values_name_file_line_and_setting(load: Load, line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"[pgbouncer]\n\n{line}\n")
    assert caught.value.line == 3
    key = line.partition(" ")[0]
    assert str(caught.value).startswith(f"{tmp_path}/pgbouncer.ini:3: {key}: ")
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "pgbouncer.ini: it has no section [pgbouncer]"),
        ("[databases]\n", "pgbouncer.ini: it has no section [pgbouncer]"),
        ("listen_port = 1\n", "pgbouncer.ini:1: setting before the first [section]"),
        ("\n[pgbuncer]\n", "pgbouncer.ini:2: unknown section [pgbuncer]"),
        ("[\x1b[31m]\n", r"pgbouncer.ini:1: unknown section [\x1b[31m]"),
    ],
)
def test_sections(load: Load, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message) + "$"):
        load(content)


def test_an_error_in_a_connection_string_shows_nothing_of_it(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load("[pgbouncer]\n[databases]\nshop = host=h password='hunter2\n")
    assert str(caught.value).endswith(":3: database shop: unterminated quote in connection string")


@given(
    st.lists(
        st.sampled_from(
            [
                "[pgbouncer]",
                "[databases]",
                "listen_port",
                "= 1",
                "= 'x",
                "host=/a",
                "user",
                "\0",
                "\n",
            ]
        )
        | st.text(max_size=6)
    ).map(" ".join)
)
def test_only_config_errors_escape(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ini"
    path.write_bytes(content.encode(errors="surrogatepass"))
    with contextlib.suppress(ConfigError):
        BouncerIni.load(path)


def warnings(ini: BouncerIni) -> list[tuple[str, str]]:
    return [(warning.severity, warning.setting) for warning in ini.warnings()]


TCP = "[databases]\na = host=127.0.0.1\n"


@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
def test_tls_to_servers_is_a_loud_warning(load: Load, mode: str) -> None:
    ini = load(f"[pgbouncer]\nserver_tls_sslmode = {mode}\n{TCP}")
    assert warnings(ini) == [("warning", "server_tls_sslmode")]
    (text,) = (warning.text for warning in ini.warnings())
    assert f"server_tls_sslmode = {mode}" in text
    assert "NOT HELD" in text
    assert str(ini.path) in text
    assert ("if PostgreSQL has ssl=on" in text) == (mode in ("allow", "prefer"))


def test_the_default_warns(load: Load) -> None:
    assert warnings(load(f"[pgbouncer]\n{TCP}")) == [("warning", "server_tls_sslmode")]


@pytest.mark.parametrize("hosts", ["host=/run/a", "host=@a", "", "host=/a,@b"])
def test_servers_on_unix_sockets_need_no_warning(load: Load, hosts: str) -> None:
    # server.c asks for TLS only on TCP; without host it is unix_socket_dir (dns_connect)
    assert warnings(load(f"[pgbouncer]\n[databases]\n* = {hosts}\n")) == []


def test_one_server_on_tcp_is_enough_to_warn(load: Load) -> None:
    ini = load("[pgbouncer]\n[databases]\na = host=/run\nb = host=/run,db.example\n")
    assert warnings(ini) == [("warning", "server_tls_sslmode")]


def test_tls_of_clients_is_a_note(load: Load) -> None:
    ini = load(
        f"[pgbouncer]\nserver_tls_sslmode = disable\nclient_tls_sslmode = allow\n{TCP}",
    )
    assert warnings(ini) == [("note", "client_tls_sslmode")]
