"""Drivers that share no code with libpq: a program of each works on, whatever becomes of pgbouncer.

Each program checks what it reads and counts what it writes; its work is a line of its output a
turn, after some of which pgbouncer is killed. pg8000 comes with the tests' own environment. For
the others, where they are there:

    npm install pg pg-cursor pg-copy-streams    (NODE_PATH tells where, if not here)
    apt-get install default-jdk-headless libpostgresql-jdbc-java    (or CLASSPATH=FILE)
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from testbed.ledgers import check_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from testbed import Postgres
    from testbed.pooler import Pooler
    from tests.fix_bouncer import MakeBouncer
    from tests.fix_keeper import MakeKeeper

HERE: Final = Path(__file__).parent
SETTINGS: Final[Mapping[str, str | int | None]] = {
    "max_prepared_statements": 20,
    "ignore_startup_parameters": "extra_float_digits",
}
CLASSPATH: Final = os.environ.get("CLASSPATH", "/usr/share/java/postgresql.jar")


@dataclass(frozen=True, slots=True)
class Driver:
    """A program of `turns` turns a client, and how to find out whether it can run here."""

    name: str
    command: tuple[str | Path, ...]
    turns: int
    probe: tuple[str, ...] = ()

    def skip_unless_there(self) -> None:
        """Skip the test that asks, with the reason."""
        if not self.probe:
            return
        if shutil.which(self.probe[0]) is None:
            pytest.skip(f"{self.probe[0]} is not installed")
        done = subprocess.run(self.probe, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no {self.name} here: {' '.join(self.probe)} fails")


PG8000: Final = Driver("pg8000", (sys.executable, HERE / "pure_python.py"), 60)
NODE_PG: Final = Driver(
    "node-postgres",
    ("node", HERE / "node_pg.js"),
    400,
    ("node", "-e", "require('pg'); require('pg-cursor'); require('pg-copy-streams')"),
)
JDBC: Final = Driver(
    "JDBC",
    ("java", "-cp", CLASSPATH, HERE / "Jdbc.java"),
    400,
    ("javap", "-cp", CLASSPATH, "org.postgresql.Driver"),
)


@pytest.mark.parametrize(
    ("driver", "standby"),
    [
        pytest.param(PG8000, True, id="pg8000"),
        pytest.param(NODE_PG, True, id="node-postgres", marks=pytest.mark.slow),
        pytest.param(NODE_PG, False, id="node-postgres-no-standby", marks=pytest.mark.slow),
        pytest.param(JDBC, True, id="JDBC", marks=pytest.mark.slow),
        pytest.param(JDBC, False, id="JDBC-no-standby", marks=pytest.mark.slow),
    ],
)
def test_a_driver_notices_no_kill(
    make_keeper: MakeKeeper, postgres: Postgres, driver: Driver, standby: bool
) -> None:
    driver.skip_unless_there()
    keeper = make_keeper(settings=SETTINGS, databases=databases_of(postgres), standby=standby)

    status, kills = run_under_kills(driver, keeper, postgres, keeper.kill_bouncer)

    assert status == 0
    assert kills >= 10
    after = keeper.status()
    assert (after.adoptions.sessions_lost, after.sessions.unheld) == (0, {})
    check_ledger(keeper)
    print(f"{driver.name}: {kills} kills")


def test_a_driver_notices_a_kill_of_an_unpatched_pgbouncer(
    make_vanilla_bouncer: MakeBouncer, postgres: Postgres
) -> None:
    """The control: its sessions are lost, and it says so."""
    bouncer = make_vanilla_bouncer(settings=SETTINGS, databases=databases_of(postgres))

    def kill() -> None:
        bouncer.kill()
        bouncer.start()

    status, kills = run_under_kills(PG8000, bouncer, postgres, kill)

    assert (status, kills > 0) == (1, True)


def databases_of(postgres: Postgres) -> dict[str, str]:
    """A server of its own for each client; fewer servers than clients; one for all."""
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    return {
        "session": f"{target} pool_mode=session",
        "transaction": f"{target} pool_mode=transaction pool_size=2",
        "one": f"{target} pool_mode=transaction pool_size=1",
    }


def run_under_kills(
    driver: Driver, pooler: Pooler, postgres: Postgres, kill: Callable[[], object]
) -> tuple[int, int]:
    """The program's exit status, and how often pgbouncer was killed while it worked."""
    postgres.sql("DROP TABLE IF EXISTS books")
    postgres.sql("CREATE TABLE books (client int)")
    chance = random.Random(driver.name)
    kills = 0
    with subprocess.Popen(
        driver.command, env=environment(driver, pooler), stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        try:
            until = chance.randint(1, 40)
            for _ in program.stdout:
                until -= 1
                if until == 0:
                    kill()
                    kills += 1
                    until = chance.randint(1, 40)
            return program.wait(60), kills
        finally:
            program.kill()


def environment(driver: Driver, pooler: Pooler) -> dict[str, str]:
    """Where to connect, and how much to do."""
    return {
        **os.environ,
        "PGHOST": pooler.host,
        "PGPORT": str(pooler.port),
        "TURNS": str(driver.turns),
    }
