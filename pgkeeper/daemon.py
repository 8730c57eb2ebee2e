"""The composition root of `pgkeeper run`: everything is put together here and nowhere else."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeeper import log
from pgkeeper.bouncer.spawn import Launch
from pgkeeper.config import BouncerIni, ConfigError
from pgkeeper.control.handlers import Handlers
from pgkeeper.control.protocol import admin_path
from pgkeeper.control.server import AdminServer
from pgkeeper.hanger.recovery import Kept
from pgkeeper.hanger.service import Service
from pgkeeper.hanger.settings import Settings
from pgkeeper.metrics.server import MetricsServer
from pgkeeper.systemd import listen_fds
from pgkeeper.takeover.giving import Giver
from pgkeeper.takeover.taking import take_over

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from pgkeeper.options import RunOptions
    from pgkeeper.takeover.heir import Heir

__all__ = ["run_daemon"]


def run_daemon(options: RunOptions, heir: Heir | None = None) -> int:
    """Run the hanger until it is told to end; returns the process's exit status.

    With an `heir`, in the place of the hanger that it speaks with.  Raises `PgkeeperError` if it
    cannot start.
    """
    kept = Kept.sort(listen_fds())
    log.configure(options.log_json, options.log_level)
    ini = BouncerIni.load(options.ini)
    for warning in ini.warnings():
        name = log.Event.CONFIG_WARNING if warning.severity == "warning" else log.Event.CONFIG_NOTE
        log.get_logger().warning(name, setting=warning.setting, text=warning.text)
    launch = Launch(_binary(options), options.ini, _socket(options, ini))
    return asyncio.run(_run(options, ini, launch, heir, kept))


def _socket(options: RunOptions, ini: BouncerIni) -> Path:
    path = options.socket or ini.keeper_socket
    if path is None:
        raise ConfigError(ini.path, None, "keeper_socket is not set, and there is no --socket")
    return path.absolute()


def _binary(options: RunOptions) -> Path:
    """What to start; a hanger that starts nothing never looks at it, and needs no patches/."""
    if options.pgbouncer is None and not options.supervise:
        return Path("pgbouncer")
    if options.pgbouncer is None:
        # Building is a large part of the program that running does not need otherwise.
        from pgkeeper.bouncer.build import cached_binary

        return cached_binary() or Path("pgbouncer")
    return options.pgbouncer


def _metrics(options: RunOptions, service: Service) -> MetricsServer:
    if options.metrics is None:
        return MetricsServer(None, None)
    # Only a hanger that is asked for metrics needs what makes them; not at the first scrape, for
    # all else would wait meanwhile.
    from pgkeeper.metrics.gather import Gatherer

    return MetricsServer(options.metrics, Gatherer(service))


async def _run(
    options: RunOptions,
    ini: BouncerIni,
    launch: Launch,
    heir: Heir | None,
    kept: Kept | None,
) -> int:
    loop = asyncio.get_running_loop()
    settings = Settings(
        supervise=options.supervise,
        standby=options.standby,
        hold_timeout=options.hold_timeout,
        hang_timeout=options.hang_timeout,
    )
    service = Service(loop, settings, ini, launch, options.allow_uids, kept)
    admin = AdminServer(admin_path(launch.socket), Handlers(service), service.allowed_uids)
    metrics = _metrics(options, service)
    giver = Giver(loop, service, admin, metrics)
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            service.supervisor.closing.hurry()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    # Told to stop, or by the operator's wish at another place, a supervised pgbouncer ends too.
    leave_owner = True
    try:
        if heir is None:
            opening = _open(service, admin, giver, metrics)
        else:
            opening = take_over(heir, service, admin, giver, metrics)
        await _serve(service, opening, stopping)
        leave_owner = not options.supervise and not service.ended.is_set()
    finally:
        await service.close(leave_owner=leave_owner)
        await giver.close()
        await metrics.close()
        await admin.close()
    return 0


async def _serve(
    service: Service, start: Coroutine[None, None, None], stopping: asyncio.Event
) -> None:
    """Until the service ends or is told to; raises what keeps it from starting."""
    ends = [asyncio.ensure_future(event.wait()) for event in (stopping, service.ended)]
    opening = asyncio.ensure_future(start)
    try:
        await asyncio.wait([*ends, opening], return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            await opening
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*ends, opening):
            task.cancel()
        await asyncio.gather(*ends, opening, return_exceptions=True)


async def _open(service: Service, admin: AdminServer, giver: Giver, metrics: MetricsServer) -> None:
    await service.claim()
    metrics.start()
    await admin.start()
    giver.start()
    await service.open()
