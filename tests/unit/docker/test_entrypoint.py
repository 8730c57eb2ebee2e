"""docker/entrypoint.sh: which configuration is made, what is refused, and that secrets stay so."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from pgkeeper.bouncer.build import VANILLA, source_dir
from pgkeeper.config import BouncerIni
from pgkeeper.inifile import Setting, connection_pairs, read_ini

ROOT = Path(__file__).resolve().parents[3]
ENTRYPOINT = ROOT / "docker" / "entrypoint.sh"
SECRET = "s3cr3t"

#: Says what it was given; stands for pgbouncer and pgkeeper.
FAKE = '#!/bin/sh\necho "args: $*"\nenv\n'


@dataclass(frozen=True)
class Container:
    """Folders as a container has them."""

    etc: Path
    run: Path
    programs: Path

    def start(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PGBOUNCER_ETC": str(self.etc),
            "PGBOUNCER_RUN": str(self.run),
            **variables,
        }
        return subprocess.run(
            ["sh", ENTRYPOINT, *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def settings(self, *command: str, **variables: str) -> dict[str, str]:
        """Start, and read what was made: [pgbouncer] and [databases] in one."""
        done = self.start(*command, **variables)
        assert (done.returncode, done.stderr) == (0, "")
        return {
            entry.key: entry.value
            for entry in read_ini(self.run / "pgbouncer.ini")
            if isinstance(entry, Setting)
        }

    @property
    def userlist(self) -> str:
        return (self.run / "userlist.txt").read_text()


@pytest.fixture
def container(tmp_path: Path) -> Container:
    made = Container(tmp_path / "etc", tmp_path / "run", tmp_path / "bin")
    for folder in (made.etc, made.run, made.programs):
        folder.mkdir()
    for name in ("pgbouncer", "pgkeeper"):
        (made.programs / name).write_text(FAKE)
        (made.programs / name).chmod(0o755)
    return made


def test_a_mounted_ini_wins_and_nothing_is_made(container: Container) -> None:
    (container.etc / "pgbouncer.ini").write_text("[pgbouncer]\n")
    done = container.start(DB_HOST="db", POOL_MODE="nonsense that nobody reads")
    assert f"args: {container.etc}/pgbouncer.ini\n" in done.stdout
    assert list(container.run.iterdir()) == []


def test_a_mounted_userlist_wins(container: Container) -> None:
    (container.etc / "userlist.txt").write_text('"a" "b"\n')
    made = container.settings(DB_HOST="db", DB_PASSWORD=SECRET)
    assert made["auth_file"] == str(container.etc / "userlist.txt")
    assert not (container.run / "userlist.txt").exists()


def test_a_database_url_makes_database_and_user(container: Container) -> None:
    url = "postgres://al%20ice:p%40ss%2Fw%22o%25rd@db.example:5433/sales?sslmode=require"
    made = container.settings(DATABASE_URL=url, POOL_MODE="transaction")
    assert made["sales"] == "host='db.example' port=5433 auth_user='al ice'"
    assert container.userlist == '"al ice" "p@ss/w""o%rd"\n'
    assert made["pool_mode"] == "transaction"
    assert made["server_tls_sslmode"] == "require"
    assert (made["listen_addr"], made["listen_port"]) == ("0.0.0.0", "5432")
    assert (made["auth_type"], made["admin_users"]) == ("md5", "postgres")


def test_a_database_url_may_have_an_ipv6_address_commas_and_no_user(container: Container) -> None:
    made = container.settings(DATABASE_URL="postgresql://u:a,b@[::1]:7000/x")
    assert made["x"] == "host='::1' port=7000 auth_user='u'"
    assert container.userlist == '"u" "a,b"\n'
    assert container.settings(DATABASE_URL="postgres://h")["*"] == "host='h' port=5432"


def test_several_urls_make_several_databases(container: Container) -> None:
    made = container.settings(DATABASE_URLS="postgres://u:p@a/one,postgres://v:q@b/two")
    assert made["one"] == "host='a' port=5432 auth_user='u'"
    assert made["two"] == "host='b' port=5432 auth_user='v'"
    assert container.userlist == '"u" "p"\n"v" "q"\n'


def test_db_variables_make_database_and_user(container: Container) -> None:
    made = container.settings(
        DB_HOST="db", DB_PORT="5433", DB_USER="o'neil", DB_PASSWORD=SECRET, DB_NAME="my-db"
    )
    assert dict(connection_pairs(made["my-db"])) == {
        "host": "db",
        "port": "5433",
        "auth_user": "o'neil",
    }
    assert container.userlist == f'"o\'neil" "{SECRET}"\n'
    assert container.settings(DB_HOST="db")["*"] == "host='db' port=5432 auth_user='postgres'"


def test_postgresql_variables_make_database_and_user(container: Container) -> None:
    made = container.settings(
        POSTGRESQL_HOST="pg",
        POSTGRESQL_PORT="5433",
        POSTGRESQL_USERNAME="app",
        POSTGRESQL_PASSWORD=SECRET,
        POSTGRESQL_DATABASE="real",
        PGBOUNCER_DATABASE="shown",
        PGBOUNCER_POOL_MODE="transaction",
        PGBOUNCER_SET_DATABASE_USER="yes",
        PGBOUNCER_DSN_0="other=host=x port=1",
        PGBOUNCER_USERLIST='"b" "c"\n"d" "e"',
    )
    assert made["shown"] == "host='pg' port=5433 dbname='real' user='app'"
    assert made["other"] == "host=x port=1"
    assert container.userlist == f'"app" "{SECRET}"\n"b" "c"\n"d" "e"\n'
    assert made["pool_mode"] == "transaction"
    assert (made["listen_port"], made["auth_type"]) == ("6432", "scram-sha-256")
    assert (made["admin_users"], made["server_tls_sslmode"]) == ("app", "disable")


def test_every_setting_of_pgbouncer_has_its_variable(container: Container) -> None:
    made = container.settings(
        DB_HOST="db",
        MAX_CLIENT_CONN="500",
        PGBOUNCER_QUERY_WAIT_TIMEOUT="9",
        PGBOUNCER_LISTEN_ADDRESS="*",
        PGBOUNCER_PORT="7000",
        TRACK_EXTRA_PARAMETERS="a, b",
        VERBOSE="1",
    )
    assert {name: made[name] for name in ("max_client_conn", "query_wait_timeout", "verbose")} == {
        "max_client_conn": "500",
        "query_wait_timeout": "9",
        "verbose": "1",
    }
    assert (made["listen_addr"], made["listen_port"]) == ("*", "7000")
    assert made["track_extra_parameters"] == "a, b"


def test_the_settings_are_those_that_pgbouncer_knows() -> None:
    text = ENTRYPOINT.read_text()
    listed = set(text.partition("settings='")[2].partition("'")[0].split())
    source = (source_dir(VANILLA) / "src" / "main.c").read_text()
    known = set(re.findall(r'^\s*CF_ABS\("(\w+)"', source, re.MULTILINE))
    decided_by_the_container = {"conffile", "job_name", "pidfile", "service_name", "user"}
    assert known - listed == decided_by_the_container | {
        name for name in known if name.startswith("syslog")
    }
    assert listed <= known


def test_secrets_come_from_files(container: Container, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    container.settings(DB_HOST="db", DB_PASSWORD_FILE=str(secret))
    assert container.userlist == f'"postgres" "{SECRET}"\n'
    container.settings(POSTGRESQL_HOST="db", POSTGRESQL_PASSWORD_FILE=str(secret))
    assert container.userlist == f'"postgres" "{SECRET}"\n'


def test_users_of_the_console_get_their_passwords(container: Container) -> None:
    made = container.settings(
        DB_HOST="db", ADMIN_USERS="a,b", ADMIN_PASSWORDS="x,y", STATS_USERS="s", STATS_PASSWORDS="z"
    )
    assert (made["admin_users"], made["stats_users"]) == ("a,b", "s")
    assert container.userlist == '"a" "x"\n"b" "y"\n"s" "z"\n'


def test_secrets_are_not_world_readable_and_not_handed_on(container: Container) -> None:
    done = container.start(DB_HOST="db", DB_PASSWORD=SECRET, ADMIN_PASSWORDS=SECRET)
    assert done.returncode == 0
    assert SECRET not in done.stdout + done.stderr
    for path in container.run.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET not in (container.run / "pgbouncer.ini").read_text()


def test_pgkeeper_reads_the_same_ini_and_needs_no_secret(container: Container) -> None:
    variables = {"DB_HOST": "db", "LISTEN_PORT": "7000", "DB_PASSWORD_FILE": "/nowhere"}
    done = container.start("pgkeeper", "run", "--no-supervise", **variables)
    assert "args: run --no-supervise\n" in done.stdout
    assert f"PGKEEPER_INI={container.run}/pgbouncer.ini\n" in done.stdout
    assert BouncerIni.load(container.run / "pgbouncer.ini").listen_port == 7000
    assert not (container.run / "userlist.txt").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("pgkeeper", "status"),
        ("pgkeeper", "run", "--ini", "/elsewhere.ini"),
        ("pgkeeper", "run", "--ini=/elsewhere.ini"),
        ("echo", "hello"),
        ("pgbouncer", "/elsewhere.ini"),
    ],
)
def test_other_commands_run_as_they_are(container: Container, command: tuple[str, ...]) -> None:
    done = container.start(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert " ".join(command[1:]) in done.stdout


@pytest.mark.parametrize(
    "command",
    [(), ("pgbouncer",), ("pgbouncer", "{etc}/pgbouncer.ini"), ("{bin}/pgbouncer", "-v"), ("-v",)],
)
def test_the_place_of_the_ini_stands_for_the_one_that_is_made(
    container: Container, command: tuple[str, ...]
) -> None:
    if command[-1:] == ("-v",) and len(command) == 2:
        command = (*command, "{etc}/pgbouncer.ini")
    words = [word.format(etc=container.etc, bin=container.programs) for word in command]
    done = container.start(*words, DB_HOST="db")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("args:"))
    assert line.endswith(f"{container.run}/pgbouncer.ini")
    assert ("-v" in line) == ("-v" in words)


def test_a_kubernetes_service_called_pgbouncer_is_no_port(container: Container) -> None:
    made = container.settings(DB_HOST="db", PGBOUNCER_PORT="tcp://10.0.0.1:6432")
    assert made["listen_port"] == "5432"


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({}, "no configuration: mount"),
        ({"DB_HOST": "db", "POOL_MODE": "both"}, "POOL_MODE must be session"),
        ({"DB_HOST": "db", "AUTH_TYPE": "password"}, "AUTH_TYPE must be"),
        ({"DB_HOST": "db", "DB_PORT": "x"}, "DB_PORT must be a port number"),
        ({"DB_HOST": "db", "LISTEN_PORT": "65536"}, "LISTEN_PORT must be a port number"),
        ({"DB_HOST": "db", "LISTEN_PORT": "0"}, "LISTEN_PORT must be a port number"),
        ({"DB_HOST": "db", "LISTEN_PORT": "99999999999999999999"}, "must be a port number"),
        ({"DB_HOST": "db\n[users]"}, "DB_HOST contains a control character"),
        ({"DB_HOST": "db", "TIMEZONE": "a\nb"}, "TIMEZONE contains a control character"),
        (
            {"DB_HOST": "db", "POOL_MODE": "session", "PGBOUNCER_POOL_MODE": "transaction"},
            "POOL_MODE and PGBOUNCER_POOL_MODE disagree",
        ),
        ({"DB_HOST": "db", "DB_PASSWORD_FILE": "/nowhere"}, "DB_PASSWORD_FILE: cannot read"),
        (
            {"DB_HOST": "db", "DB_PASSWORD": SECRET, "DB_PASSWORD_FILE": "/dev/null"},
            "DB_PASSWORD and DB_PASSWORD_FILE are both set",
        ),
        ({"DB_HOST": "db", "AUTH_HBA_FILE": "/nowhere"}, "AUTH_HBA_FILE: cannot read"),
        ({"DATABASE_URL": "mysql://u:p@h/d"}, "must begin with postgres://"),
        ({"DATABASE_URL": "postgres:///d"}, "names no host"),
        ({"DATABASE_URL": f"postgres://u:{SECRET}%zz@h/d"}, "broken percent sign"),
        ({"DATABASE_URL": f"postgres://u:{SECRET}%00@h/d"}, "broken percent sign"),
        ({"DATABASE_URL": f"postgres://u:{SECRET}%0a@h/d"}, "control character"),
        ({"DATABASE_URL": f"postgres://u:{SECRET}@h:x/d"}, "the port of DATABASE_URL"),
        ({"DATABASE_URL": f"postgres://u:{SECRET}@::1/d"}, "stands in brackets"),
        ({"DATABASE_URL": "postgres://h/d?a=b"}, "options other than sslmode"),
        (
            {"DB_HOST": "db", "ADMIN_USERS": "a,b", "ADMIN_PASSWORDS": SECRET},
            "ADMIN_USERS and ADMIN_PASSWORDS differ in length",
        ),
        (
            {"DB_HOST": "db", "STATS_PASSWORDS": SECRET},
            "STATS_PASSWORDS is set, but not STATS_USERS",
        ),
        ({"DB_HOST": "h", "DB_NAME": "a b"}, "cannot name this database: a b"),
        ({"POSTGRESQL_HOST": "h", "PGBOUNCER_DSN_0": "x"}, "PGBOUNCER_DSN_0 must be"),
        (
            {"POSTGRESQL_HOST": "h", "PGBOUNCER_SET_DATABASE_USER": "maybe"},
            "PGBOUNCER_SET_DATABASE_USER must be yes or no",
        ),
    ],
)
def test_nonsense_is_refused_in_one_line_without_secrets(
    container: Container, variables: dict[str, str], complaint: str
) -> None:
    done = container.start(**variables)
    assert done.returncode == 64
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("entrypoint: ")
    assert complaint in line
    assert SECRET not in line
    assert list(container.run.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(container: Container) -> None:
    container.run.rmdir()
    container.run.write_text("a file, where the folder should be")
    done = container.start(DB_HOST="db")
    assert done.returncode == 64
    assert f"cannot write to {container.run}" in done.stderr
