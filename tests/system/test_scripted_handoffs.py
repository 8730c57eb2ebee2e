"""Planned replacements, and what takes too long; with a pgbouncer of a few lines."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer.spawn import Launch
from pgkeeper.config import BouncerIni
from pgkeeper.control.client import RequestFailedError
from pgkeeper.handoff.execute import HandoffFailedError
from pgkeeper.hanger.service import Service
from pgkeeper.hanger.settings import Patience, Settings
from pgkeeper.states import ServiceState
from tests.system.scripted import ScriptedHanger, alive, wait_until
from tests.unit.hanger.until import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# planned replacement


def test_handoff(hanger: ScriptedHanger) -> None:
    hanger.start("--standby")
    client = hanger.client()
    before = client.who()
    client.ask("servers 5")
    steps: list[str] = []
    new = hanger.make_bouncer("bouncer-2")
    report = hanger.control.handoff(pgbouncer=new, progress=lambda it: steps.append(it.step))
    after = client.who()
    assert (report.pid, report.incarnation) == (after.pid, after.incarnation)
    assert (report.clients, report.servers, report.lost) == (1, 5, {})
    assert steps == [
        "start-new",
        "await-standby",
        "freeze",
        "check-format",
        "fence-old",
        "activate-new",
        "await-ready",
        "keep-new",
    ]
    assert not alive(before.pid)
    # restarts use the new binary, and so does the standby
    standby = wait_until(lambda: hanger.status().pgbouncer.standby_pid, "standby")
    os.kill(after.pid, signal.SIGKILL)
    assert client.who().pid == standby
    assert hanger.logged().count(f"binary={new}") >= 2


def test_handoff_out_of_a_crash_loop(hanger: ScriptedHanger) -> None:
    """Nobody serves: the new one adopts what is held, and is what is started from then on."""
    hanger.start()
    client = hanger.client()
    before = client.who()
    hanger.script(exit=3)
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: hanger.status().pgbouncer.state is ServiceState.CRASH_LOOP, "a crash loop")
    other = hanger.directory / "other"
    other.mkdir()
    hanger.script(other)
    ini = hanger.write_ini(other / "pgbouncer.ini")
    report = hanger.control.handoff(ini=ini)
    assert report.lost == {}
    assert client.who().pid == report.pid
    os.kill(report.pid, signal.SIGKILL)
    assert client.who().pid != report.pid


def test_handoff_that_does_not_help_in_a_crash_loop(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    hanger.script(exit=3)
    os.kill(client.who().pid, signal.SIGKILL)
    wait_until(lambda: hanger.status().pgbouncer.state is ServiceState.CRASH_LOOP, "a crash loop")
    other = hanger.directory / "other"
    other.mkdir()
    hanger.script(other, exit=4)
    with pytest.raises(RequestFailedError, match=r"exit status 4\); nobody serves at the moment"):
        hanger.control.handoff(ini=hanger.write_ini(other / "pgbouncer.ini"))
    hanger.script()
    assert client.who().incarnation == 2


def test_handoff_to_something_that_does_not_start(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    before = client.who()
    plain = hanger.directory / "plain"
    plain.write_text("#!/bin/sh\necho PgBouncer 1.24.1\n")
    plain.chmod(0o755)
    with pytest.raises(RequestFailedError) as failed:
        hanger.control.handoff(pgbouncer=plain)
    assert "has no keeper support" in failed.value.message
    assert failed.value.message.endswith("the old pgbouncer goes on, untouched")
    assert client.who() == before


def test_handoff_to_one_that_ends_is_refused_or_hangs_at_start(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    before = client.who()
    other = hanger.directory / "other"
    other.mkdir()
    ini = hanger.write_ini(other / "pgbouncer.ini")
    for script, reason in (({"exit": 4}, "exit status 4"), ({"format": 1}, "was refused")):
        hanger.script(other, **script)
        with pytest.raises(RequestFailedError, match=reason):
            hanger.control.handoff(ini=ini)
        assert client.who() == before
    wait_until(lambda: len(hanger.bouncer_pids()) == 1, "the new one ended")


def test_handoff_to_one_that_cannot_adopt_goes_back(hanger: ScriptedHanger) -> None:
    hanger.start()
    client = hanger.client()
    before = client.who()
    other = hanger.directory / "other"
    other.mkdir()
    hanger.script(other, dies_adopting=True)
    with pytest.raises(RequestFailedError) as failed:
        hanger.control.handoff(ini=hanger.write_ini(other / "pgbouncer.ini"))
    assert "back on the old one" in failed.value.message
    after = client.who()
    assert after.incarnation == before.incarnation + 2
    # restarts still use the old ini, whose script does no harm
    os.kill(after.pid, signal.SIGKILL)
    assert client.who().incarnation == after.incarnation + 1


def test_handoff_of_one_that_does_not_freeze(hanger: ScriptedHanger) -> None:
    hanger.script(never_freezes=True)
    hanger.start()
    client = hanger.client()
    before = client.who()
    report = hanger.control.handoff()
    assert client.who().pid == report.pid != before.pid


def test_handoff_of_nothing(hanger: ScriptedHanger) -> None:
    hanger.script(exit=1)
    hanger.start(wait=False)
    hanger.wait_state(ServiceState.CRASH_LOOP)
    with pytest.raises(RequestFailedError, match="nobody serves at the moment"):
        hanger.control.handoff()


def test_sighup_reaches_pgbouncer_and_renews_the_standby(hanger: ScriptedHanger) -> None:
    hanger.start("--standby")
    client = hanger.client()
    standby = wait_until(lambda: hanger.status().pgbouncer.standby_pid, "standby")
    pid = client.who().pid
    assert hanger.process is not None
    hanger.process.send_signal(signal.SIGHUP)
    # the scripted one has no handler for it, so that it dies of it
    wait_until(lambda: not alive(pid) and not alive(standby), "signalled")
    assert client.who().incarnation >= 2


# patience: the hanger in this process, because no option makes it impatient


async def run_impatient(
    hanger: ScriptedHanger, patience: Patience, act: Callable[[Service], Awaitable[None]]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    loop = asyncio.get_running_loop()
    launch = Launch(hanger.bouncer, hanger.ini, hanger.socket)
    settings = Settings(standby=False, patience=patience)
    service = Service(loop, settings, BouncerIni.load(hanger.ini), launch)
    await service.claim()
    try:
        await service.open()
        await act(service)
    finally:
        await service.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)  # the hanger raises its own


@pytest.mark.parametrize(
    ("script", "patience", "reason"),
    [
        ({"silent": True}, Patience(hello=0.3), "it did not introduce itself"),
        ({"hangs": True}, Patience(ready=0.3), "it did not get ready"),
    ],
    ids=["hello", "ready"],
)
def test_a_pgbouncer_that_takes_too_long_is_killed(
    hanger: ScriptedHanger,
    script: dict[str, object],
    patience: Patience,
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hanger.script(**script)

    async def act(service: Service) -> None:
        await until(lambda: service.supervisor.crashes.short_lives == 1)
        service.supervisor.settings = Settings()  # the next one may take its time
        hanger.script()
        await until(lambda: service.status().pgbouncer.state is ServiceState.ACTIVE)

    asyncio.run(run_impatient(hanger, patience, act))
    assert reason in capfd.readouterr().out
    assert hanger.bouncer_pids() == []


def test_a_handoff_to_one_that_hangs_goes_back(hanger: ScriptedHanger) -> None:
    other = hanger.directory / "other"
    other.mkdir()
    hanger.script(other, hangs=True)
    ini = hanger.write_ini(other / "pgbouncer.ini")

    async def act(service: Service) -> None:
        await until(lambda: service.status().pgbouncer.state is ServiceState.ACTIVE)
        with pytest.raises(HandoffFailedError, match="took too long; back on the old one"):
            await service.handoff(None, ini, lambda step, text: None)
        status = service.status()
        assert status.pgbouncer.state is ServiceState.ACTIVE
        assert status.pgbouncer.incarnation == 3

    asyncio.run(run_impatient(hanger, Patience(ready=1.0), act))
    assert hanger.bouncer_pids() == []


def test_a_handoff_that_is_cancelled_leaves_the_old_one(hanger: ScriptedHanger) -> None:
    other = hanger.directory / "other"
    other.mkdir()
    hanger.script(other, silent=True)
    ini = hanger.write_ini(other / "pgbouncer.ini")

    async def act(service: Service) -> None:
        await until(lambda: service.status().pgbouncer.state is ServiceState.ACTIVE)
        before = service.status().pgbouncer
        started = asyncio.Event()
        task = asyncio.create_task(
            service.handoff(
                None, ini, lambda step, text: started.set() if step == "await-standby" else None
            )
        )
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: len(hanger.bouncer_pids()) == 1)
        assert service.status().pgbouncer == before

    asyncio.run(run_impatient(hanger, Patience(), act))
