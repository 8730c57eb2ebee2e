"""An unpatched and a kept pgbouncer side by side, which benchmarks load in turns."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.instructions import SETTINGS
from testbed import binaries
from testbed.bouncer import Bouncer
from testbed.keeper import Keeper
from testbed.postgres import Auth, Postgres
from testbed.process import Process
from testbed.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SCRAM_USER = "scram"
SCRAM_SECRET = "wellknown"  # noqa: S105 (of servers that live for one benchmark)


@dataclass(frozen=True, slots=True)
class Pair:
    """Both of them, with the PostgreSQL that they share."""

    run_dir: RunDir
    postgres: Postgres
    unpatched: Bouncer
    kept: Keeper


@contextlib.contextmanager
def pair(
    patched: Path | None,
    *,
    clients: int = 100,
    settings: Mapping[str, str | int | None] | None = None,
    databases: tuple[Mapping[str, str], Mapping[str, str]] | None = None,
) -> Iterator[Pair]:
    """Start both the same way. `patched` is another patched binary than the built one.

    `clients`: how many there will be at a time. The user `SCRAM_USER` logs in by SCRAM, all
    others without a password. `settings`: more of them. `databases`: others than `Pooler`'s, of the
    unpatched and of the kept one.
    """
    plain_databases, kept_databases = databases or (None, None)
    with (
        RunDir() as run_dir,
        Postgres(run_dir, max_connections=min(clients, 600) + 100) as postgres,
    ):
        postgres.add_user(SCRAM_USER, SCRAM_SECRET, Auth.SCRAM)
        rules = run_dir.path / "pooler-hba.conf"
        rules.write_text(
            f"host all {SCRAM_USER} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
        )
        settings = {
            **SETTINGS,
            "auth_type": "hba",
            "auth_hba_file": str(rules),
            "max_client_conn": clients + 100,
            **(settings or {}),
        }
        users = {SCRAM_USER: postgres.verifier(SCRAM_USER)}
        with (
            Bouncer(
                run_dir,
                postgres,
                binaries.vanilla(),
                name="unpatched",
                settings=settings,
                databases=plain_databases,
                users=users,
            ) as bouncer,
            _kept(
                run_dir,
                postgres,
                patched or binaries.patched(),
                settings,
                kept_databases,
                users,
            ) as keeper,
        ):
            yield Pair(run_dir, postgres, bouncer, keeper)


@contextlib.contextmanager
def _kept(
    run_dir: RunDir,
    postgres: Postgres,
    binary: Path,
    settings: Mapping[str, str | int | None],
    databases: Mapping[str, str] | None,
    users: Mapping[str, str],
) -> Iterator[Keeper]:
    """A kept pgbouncer that is started as the unpatched one is, not by the hanger."""
    keeper = Keeper(
        run_dir,
        postgres,
        binary,
        name="kept",
        settings=settings,
        databases=databases,
        users=users,
        options=["--no-supervise"],
    )
    command = [run_dir.usable(binary), keeper.ini_path]
    process = Process(run_dir, "kept-pgbouncer", command, output=keeper.output.path)
    try:
        keeper.start()
        yield keeper
        process.stop(signal.SIGKILL)
    finally:
        keeper.close(check_descriptors=False)
