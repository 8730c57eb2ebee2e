"""The units of docker/systemd, with the real systemd: it kills and restarts, sessions go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeeper.control.client import ControlClient, NoHangerError
from pgkeeper.states import ServiceState
from testbed import Keeper, wait_until
from testbed.errors import NotFoundError
from testbed.load import EVERY_KIND, check_books, make_tables, work
from testbed.process import alive, send
from testbed.systemd import UNITS, Systemd, unit_text
from tests.system.orphans import assert_intact, make_orphans_table, open_three

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeeper.control.report import Status
    from testbed import Postgres, RunDir
    from testbed.load import Progress

HANGER, TEMPLATE, SUPERVISED = (
    "pgkeeper.service",
    "pgkeeper-pgbouncer@.service",
    "pgkeeper-supervised.service",
)
BOUNCERS = ("pgkeeper-pgbouncer@1.service", "pgkeeper-pgbouncer@2.service")
SOCKET = Path("/run/pgkeeper/keeper.sock")

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="NOT TESTED: there is no systemd-analyze (Debian's package systemd)",
)


# what systemd-analyze says of them


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture
def verifiable(tmp_path: Path) -> Path:
    """All units, with programs that this machine has."""
    for name in (HANGER, TEMPLATE, SUPERVISED):
        text = unit_text(
            name, user="root", ini=Path("/etc/passwd"), pgkeeper=Path("/bin/true"),
            pgbouncer=Path("/bin/true"),
        )  # fmt: skip
        (tmp_path / name).write_text(text)
    shutil.copyfile(tmp_path / TEMPLATE, tmp_path / BOUNCERS[0])
    return tmp_path


@needs_analyze
@pytest.mark.parametrize("name", [HANGER, BOUNCERS[0], SUPERVISED])
def test_systemd_finds_nothing_wrong(verifiable: Path, name: str) -> None:
    done = analyze("verify", "--man=no", verifiable / name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
def test_it_would_find_what_is_wrong(verifiable: Path) -> None:
    """The control."""
    unit = verifiable / HANGER
    unit.write_text(unit.read_text().replace("LimitNOFILE=65536", "LimitNOFILES=65536"))
    assert "LimitNOFILES" in analyze("verify", "--man=no", unit).stderr


@needs_analyze
@pytest.mark.parametrize("name", [HANGER, TEMPLATE, SUPERVISED])
def test_exposure_is_no_more_than_documented(name: str) -> None:
    """docs/systemd.md says 1.4 of 10."""
    done = analyze("security", "--offline=yes", "--threshold=14", UNITS / name)
    assert done.returncode == 0, done.stdout


def test_its_user_is_made(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None or os.geteuid() != 0:
        pytest.skip("NOT TESTED: there is no systemd-sysusers, or we are not root")
    (tmp_path / "etc").mkdir()
    rules = UNITS / "pgkeeper.sysusers"
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", rules], check=True)
    made = (tmp_path / "etc" / "passwd").read_text()
    for name in (HANGER, TEMPLATE, SUPERVISED):
        (user,) = re.findall(r"^User=(.*)$", (UNITS / name).read_text(), re.M)
        assert re.search(rf"^{user}:.*nologin$", made, re.M)


# the real systemd


@pytest.fixture
def systemd(run_dir: RunDir, request: pytest.FixtureRequest) -> Iterator[Systemd]:
    try:
        made = Systemd(run_dir, f"systemd-{abs(hash(request.node.name)):x}")
        made.__enter__()
    except NotFoundError as error:
        pytest.skip(f"NOT TESTED with the real systemd: {error}")
    with contextlib.closing(made):
        yield made
        print(f"--- systemd\n{made.output.read()}")
    # A standby ends with FATAL when its hanger does, which is meant here.
    assert not re.search(r"Traceback|Assert|assertion", made.output.read())


@pytest.fixture
def keeper(
    run_dir: RunDir, postgres: Postgres, patched_binary: Path, systemd: Systemd,
    request: pytest.FixtureRequest,
) -> Keeper:  # fmt: skip
    """An ini whose pgbouncer our systemd is to start, and the units for that, not started yet."""
    assert run_dir.account is not None
    name = f"units-{abs(hash(request.node.name)):x}"
    users = systemd.inside(run_dir.path / name / "userlist.txt")
    settings: dict[str, str | int | None]
    settings = {"auth_file": str(users), "logfile": None, "keeper_socket": None, "user": None}
    settings |= {"unix_socket_dir": str(SOCKET.parent), "max_prepared_statements": 50}
    made = Keeper(run_dir, postgres, patched_binary, name=name, settings=settings)
    for unit in (HANGER, TEMPLATE, SUPERVISED):
        text = unit_text(
            unit,
            user=run_dir.account.name,
            ini=systemd.inside(made.ini_path),
            pgkeeper=systemd.pgkeeper,
            pgbouncer=systemd.inside(run_dir.usable(patched_binary)),
        )
        systemd.install(unit, text)
    made.client = ControlClient(systemd.outside(SOCKET))
    return made


def serving(keeper: Keeper, *, hanger_not: int = 0, bouncer_not: int | None = 0) -> Status:
    """The status once a pgbouncer serves and another stands by, and it is not these."""
    seen: list[Status] = []

    def active() -> bool:
        with contextlib.suppress(NoHangerError):
            status = keeper.status()
            seen[:] = [status]
            bouncer = status.pgbouncer
            return (
                bouncer.state is ServiceState.ACTIVE
                and bouncer.standby_pid is not None
                and status.hanger.pid != hanger_not
                and bouncer.pid != bouncer_not
            )
        return False

    wait_until(active, what="one serves and one stands by", seconds=30)
    return seen[-1]


class Split:
    """Hanger and pgbouncers in units of their own."""

    def __init__(self, systemd: Systemd, keeper: Keeper) -> None:
        self.systemd, self.keeper = systemd, keeper
        systemd.control("start", HANGER, *BOUNCERS)
        self.status = serving(keeper)

    @property
    def active(self) -> str:
        """The unit whose pgbouncer serves; the other one's stands by."""
        pid = str(self.status.pgbouncer.pid)
        return next(one for one in BOUNCERS if self.systemd.property(one, "MainPID") == pid)

    def hanger_ends(self, act: Callable[[], object]) -> None:
        before = self.status
        act()
        self.status = serving(self.keeper, hanger_not=before.hanger.pid)
        assert self.status.pgbouncer.pid == before.pgbouncer.pid, "it serves on"

    def bouncer_ends(self, act: Callable[[], object]) -> None:
        before = self.status
        act()
        self.status = serving(self.keeper, bouncer_not=before.pgbouncer.pid)
        assert self.status.hanger.pid == before.hanger.pid

    def all_end(self, act: Callable[[], object]) -> None:
        before = self.status
        act()
        self.status = serving(
            self.keeper, hanger_not=before.hanger.pid, bouncer_not=before.pgbouncer.pid
        )


def test_units_of_their_own(systemd: Systemd, keeper: Keeper, postgres: Postgres) -> None:
    make_orphans_table(postgres)
    split = Split(systemd, keeper)
    control = systemd.control
    kill = ("kill", "--signal=SIGKILL")
    with contextlib.ExitStack() as stack:
        sessions = open_three(stack, keeper, "here")

        for _ in range(3):
            split.bouncer_ends(lambda: control(*kill, split.active))
            assert_intact(sessions)
        split.bouncer_ends(lambda: control("restart", split.active))
        assert_intact(sessions)
        split.bouncer_ends(lambda: keeper.client.handoff(None, None, lambda _: None))
        assert_intact(sessions)

        split.hanger_ends(lambda: control(*kill, HANGER))
        assert_intact(sessions)
        split.hanger_ends(lambda: control("restart", HANGER))
        assert_intact(sessions)

        for _ in range(3):
            split.all_end(lambda: control(*kill, HANGER, *BOUNCERS))
            assert_intact(sessions)
            assert split.status.adoptions.sessions_lost == 0

        control("stop", *BOUNCERS)
        assert keeper.status().pgbouncer.state is not ServiceState.ACTIVE
        control("start", *BOUNCERS)
        split.status = serving(keeper)
        assert_intact(sessions)

        restarts = {one: systemd.property(one, "NRestarts") for one in BOUNCERS}
        control("stop", HANGER)
        standby = next(one for one in BOUNCERS if one != split.active)
        what = "the standby has ended, and waits for a hanger"
        wait_until(lambda: systemd.property(standby, "NRestarts") != restarts[standby], what=what)
        assert systemd.property(HANGER, "ActiveState") == "inactive"
        assert_intact(sessions)  # served, but not held
        folder = str(systemd.outside(SOCKET.parent))
        assert keeper.sql("SELECT 1", host=folder) == [(1,)], "as are newcomers"
        control("start", HANGER)
        split.status = serving(keeper)
        assert_intact(sessions)
        split.bouncer_ends(lambda: control(*kill, split.active))
        assert_intact(sessions)

        sessions[1].finish()
        assert postgres.sql("SELECT who FROM orphans") == [("here",)]
        control("stop", *BOUNCERS, HANGER)
        for one in sessions:
            with pytest.raises(psycopg.errors.AdminShutdown):
                one.connection.execute("SELECT 1")
    assert control("list-units", "--failed", "--no-legend").strip() == ""


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_units_of_their_own_under_load(
    systemd: Systemd, keeper: Keeper, postgres: Postgres, rounds: int
) -> None:
    make_tables(postgres)
    split = Split(systemd, keeper)
    control, kill = systemd.control, ("kill", "--signal=SIGKILL")
    disturbances: tuple[Callable[[], object], ...] = (
        lambda: split.bouncer_ends(lambda: control(*kill, split.active)),
        lambda: split.bouncer_ends(lambda: control("restart", split.active)),
        lambda: split.bouncer_ends(lambda: keeper.client.handoff(None, None, lambda _: None)),
        lambda: split.hanger_ends(lambda: control(*kill, HANGER)),
        lambda: split.hanger_ends(lambda: control("restart", HANGER)),
        # What a pgbouncer opens while there is no hanger, dies with it: so not in the other order.
        lambda: split.all_end(lambda: control(*kill, *BOUNCERS, HANGER)),
    )
    chance = random.Random(5)

    async def disturb(progress: Progress) -> None:
        for disturbance in disturbances * rounds:
            await progress.wait(chance.randint(1, 30))
            await asyncio.to_thread(disturbance)
        await progress.wait(30)

    workers = asyncio.run(work(keeper, EVERY_KIND, disturb))

    check_books(postgres, workers)
    assert keeper.status().adoptions.sessions_lost == 0


def test_a_hanger_is_ready_before_any_pgbouncer_is(systemd: Systemd, keeper: Keeper) -> None:
    systemd.control("start", HANGER)
    assert systemd.property(HANGER, "ActiveState") == "active"
    assert keeper.status().pgbouncer.pid is None


def test_all_in_one_unit(systemd: Systemd, keeper: Keeper, postgres: Postgres) -> None:
    make_orphans_table(postgres)
    systemd.control("start", SUPERVISED)
    status = serving(keeper)
    with contextlib.ExitStack() as stack:
        sessions = open_three(stack, keeper, "here")
        for words in (("kill", "--signal=SIGKILL"), ("restart",)) * 3:
            systemd.control(*words, SUPERVISED)
            status = serving(keeper, hanger_not=status.hanger.pid)
            assert_intact(sessions)
            assert status.adoptions.sessions_lost == 0
        sessions[1].finish()
        assert postgres.sql("SELECT who FROM orphans") == [("here",)]
        assert int(systemd.property(SUPERVISED, "NFileDescriptorStore")) > len(sessions)
        systemd.control("stop", SUPERVISED)
        for one in sessions:
            with pytest.raises(psycopg.errors.AdminShutdown):
                one.connection.execute("SELECT 1")
        assert systemd.property(SUPERVISED, "NFileDescriptorStore") == "0"


def test_a_death_of_pgbouncer_in_one_unit(systemd: Systemd, keeper: Keeper) -> None:
    systemd.control("start", SUPERVISED)
    before = serving(keeper)
    with contextlib.closing(keeper.connect(dbname="session")) as connection:
        backend = connection.execute("SELECT pg_backend_pid()").fetchall()
        pid = systemd.pid(before.pgbouncer.pid or 0)
        send(pid, signal.SIGKILL)
        assert not alive(pid)
        after = serving(keeper, bouncer_not=before.pgbouncer.pid)
        assert after.hanger.pid == before.hanger.pid
        assert connection.execute("SELECT pg_backend_pid()").fetchall() == backend


def test_without_the_store_a_restart_ends_them(systemd: Systemd, keeper: Keeper) -> None:
    """The control."""
    systemd.control("start", SUPERVISED)
    systemd.install(f"{SUPERVISED}.d/none.conf", "[Service]\nFileDescriptorStoreMax=0\n")
    systemd.control("daemon-reload")
    systemd.control("stop", SUPERVISED)
    systemd.control("start", SUPERVISED)
    status = serving(keeper)
    with contextlib.closing(keeper.connect()) as connection:
        systemd.control("restart", SUPERVISED)
        serving(keeper, hanger_not=status.hanger.pid)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
