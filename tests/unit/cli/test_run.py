"""`pgkeeper run`: options become `RunOptions`, mistakes one line; no hanger is started here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from pgkeeper import daemon as real_daemon
from pgkeeper.bouncer.base import BaseFileError
from pgkeeper.cli import main
from pgkeeper.config import ConfigError
from pgkeeper.options import Endpoint, RunOptions
from pgkeeper.takeover.messages import Offer


class FakeDaemon(ModuleType):
    """`pgkeeper.daemon` with nothing behind it."""

    def __init__(self) -> None:
        super().__init__("pgkeeper.daemon")
        self.options: RunOptions | None = None
        self.exit_code = 0
        self.error: BaseException | None = None

    def run_daemon(self, options: RunOptions, heir: object = None) -> int:
        self.options = options
        if self.error is not None:
            raise self.error
        return self.exit_code


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDaemon:
    """What `run` calls, in a folder with a pgbouncer.ini and a pgbouncer."""
    for name in os.environ:
        if name.startswith("PGKEEPER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    Path("pgbouncer.ini").write_text("[pgbouncer]\nkeeper_socket = k\n")
    Path("pgbouncer").write_text("#!/bin/sh\n")
    Path("pgbouncer").chmod(0o755)
    fake = FakeDaemon()
    monkeypatch.setitem(sys.modules, "pgkeeper.daemon", fake)
    return fake


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["run", *arguments], prog_name="pgkeeper")
    assert result.stdout == ""
    return result.exit_code, result.stderr


MINIMUM = ("--ini", "pgbouncer.ini", "--pgbouncer", "./pgbouncer")


def test_defaults(daemon: FakeDaemon) -> None:
    assert run(*MINIMUM) == (0, "")
    here = Path.cwd()
    assert daemon.options == RunOptions(ini=here / "pgbouncer.ini", pgbouncer=here / "pgbouncer")


EVERYTHING = RunOptions(
    ini=Path("/x/pgbouncer.ini"),
    pgbouncer=Path("/x/pgbouncer"),
    socket=Path("/x/keeper.sock"),
    standby=True,
    supervise=False,
    allow_users=("root", "70"),
    hold_timeout=0.0,
    hang_timeout=2.5,
    log_json=True,
    log_level="debug",
)


@pytest.fixture
def everything(daemon: FakeDaemon) -> RunOptions:
    """`EVERYTHING`, with names in the present folder."""
    here = Path.cwd()
    return RunOptions(
        **{
            name: here / value.name if isinstance(value, Path) else value
            for name in RunOptions.__dataclass_fields__
            for value in [getattr(EVERYTHING, name)]
        }
    )


def test_all_options(daemon: FakeDaemon, everything: RunOptions) -> None:
    arguments = "--socket keeper.sock --standby --no-supervise --allow-user root --allow-user 70"
    more = "--hold-timeout 0 --hang-timeout 2.5 --log-json --log-level debug"
    assert run(*MINIMUM, *arguments.split(), *more.split()) == (0, "")
    assert daemon.options == everything


def test_all_options_from_the_environment(
    daemon: FakeDaemon, everything: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "INI": "pgbouncer.ini",
        "PGBOUNCER": "pgbouncer",
        "SOCKET": "keeper.sock",
        "STANDBY": "1",
        "SUPERVISE": "0",
        "ALLOW_USER": "root 70",
        "HOLD_TIMEOUT": "0",
        "HANG_TIMEOUT": "2.5",
        "LOG_JSON": "true",
        "LOG_LEVEL": "debug",
    }.items():
        monkeypatch.setenv(f"PGKEEPER_{name}", value)
    assert run() == (0, "")
    assert daemon.options == everything


def test_the_exit_status_is_the_daemons(daemon: FakeDaemon) -> None:
    daemon.exit_code = 1
    assert run(*MINIMUM)[0] == 1


def test_errors_of_the_daemon_are_one_line(daemon: FakeDaemon) -> None:
    daemon.error = ConfigError("x.ini", 3, "nonsense")
    assert run(*MINIMUM) == (1, "pgkeeper: x.ini:3: nonsense\n")


def test_the_built_binary_is_the_default(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Path("/cache/pgbouncer")
    monkeypatch.setattr("pgkeeper.bouncer.build.cached_binary", lambda: built)
    assert run("--ini", "pgbouncer.ini") == (0, "")
    assert daemon.options is not None
    assert daemon.options.pgbouncer == built


def test_nothing_is_built_yet(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeeper.bouncer.build.cached_binary", lambda: None)
    assert run("--ini", "pgbouncer.ini") == (
        1,
        "pgkeeper: there is no pgbouncer yet: run `pgkeeper build`, or name one with --pgbouncer\n",
    )
    # Whoever starts it elsewhere needs none here.
    assert run("--ini", "pgbouncer.ini", "--no-supervise") == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--ini missing.ini", "missing.ini: cannot read it: No such file or directory"),
        ("--ini pgbouncer", "pgbouncer: it has no section [pgbouncer]"),
        ("--ini pgbouncer.ini --pgbouncer ./none", "none: no such pgbouncer"),
        ("--ini pgbouncer.ini --pgbouncer .", ".: no such pgbouncer"),
        ("--ini pgbouncer.ini --pgbouncer ./pgbouncer.ini", "pgbouncer.ini is not executable"),
    ],
)
def test_mistakes_are_one_line(daemon: FakeDaemon, arguments: str, message: str) -> None:
    assert run(*arguments.split()) == (1, f"pgkeeper: {message}\n")
    assert daemon.options is None


@pytest.mark.parametrize(
    "arguments",
    [
        "--hang-timeout -1",
        "--hang-timeout 0.9",
        "--hang-timeout inf",
        "--hold-timeout -1",
        "--hold-timeout nan",
        "--hold-timeout inf",
        "--hold-timeout soon",
        "--allow-user no/such/user",
        "--log-level loud",
        "surplus",
    ],
)
def test_bad_options_are_wrong_usage(daemon: FakeDaemon, arguments: str) -> None:
    exit_code, stderr = run(*MINIMUM, *arguments.split())
    assert exit_code == 64
    assert "Error: " in stderr.splitlines()[-1]
    assert daemon.options is None


class FakeHeir:
    """The hanger that runs has other settings than the defaults."""

    offer = Offer("0", 1, "/old/pgbouncer", "/old/x.ini", True, True, 5.0, 7.0, [0, 70], "[::1]:1")

    @classmethod
    def ask(cls, keeper_socket: Path) -> FakeHeir:
        assert keeper_socket == Path("/x/k")
        return cls()


def test_a_takeover_has_the_old_settings_but_for_what_is_said(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgkeeper.takeover.heir.Heir", FakeHeir)
    arguments = ("--takeover", "--socket", "/x/k", "--ini", "pgbouncer.ini")
    assert run(*arguments, "--no-supervise", "--hold-timeout", "60") == (0, "")
    assert daemon.options == RunOptions(
        ini=Path.cwd() / "pgbouncer.ini",
        pgbouncer=Path("/old/pgbouncer"),
        socket=Path("/x/k"),
        standby=True,
        supervise=False,
        allow_users=("0", "70"),
        hold_timeout=60.0,
        hang_timeout=7.0,
        metrics=Endpoint("::1", 1),
    )
    assert run(*arguments, "--no-supervise", "--metrics", "off") == (0, "")
    assert daemon.options is not None
    assert daemon.options.metrics is None


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("9632", Endpoint("127.0.0.1", 9632)),
        ("0.0.0.0:1", Endpoint("0.0.0.0", 1)),
        ("[::]:65535", Endpoint("::", 65535)),
        ("db.example:80", Endpoint("db.example", 80)),
        ("off", None),
        ("", None),
    ],
)
def test_where_metrics_are_served(daemon: FakeDaemon, text: str, endpoint: Endpoint | None) -> None:
    assert run(*MINIMUM, "--metrics", text) == (0, "")
    assert daemon.options is not None
    assert daemon.options.metrics == endpoint
    assert endpoint is None or Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize("text", ["x", "0", "65536", ":80", "::1:80", "127.0.0.1:", "1.2.3.4:-1"])
def test_where_they_cannot_be(daemon: FakeDaemon, text: str) -> None:
    status, error = run(*MINIMUM, "--metrics", text)
    assert status == 64
    assert "not ADDRESS:PORT or PORT" in error
    assert daemon.options is None


def test_a_takeover_needs_to_know_of_whom(daemon: FakeDaemon) -> None:
    status, text = run("--takeover")
    assert status == 64
    assert "--takeover needs --socket, or an --ini with keeper_socket" in text


def test_whoever_starts_nothing_needs_no_patches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGKEEPER_PATCHES", str(tmp_path))  # as in a container, or with a wheel
    assert real_daemon._binary(RunOptions(Path("pgbouncer.ini"), supervise=False)) == Path(
        "pgbouncer"
    )
    with pytest.raises(BaseFileError):
        real_daemon._binary(RunOptions(Path("pgbouncer.ini")))
