"""The whole trial: servers, both sides, every mode, and a report whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import resource
import secrets
import signal
import time
from typing import TYPE_CHECKING, Any, Protocol

from pgkeeper.bouncer.build import PATCHED as PATCHED_BUILD
from pgkeeper.bouncer.build import VANILLA, binary
from pgkeeper.trial.answer import DifferentError, LostError
from pgkeeper.trial.dsn import Address
from pgkeeper.trial.errors import TrialError
from pgkeeper.trial.figures import PATCHED, UNPATCHED, Report
from pgkeeper.trial.options import Mode, PoolMode
from pgkeeper.trial.play import Play
from pgkeeper.trial.postgres import PrivatePostgres
from pgkeeper.trial.questions import Bulk, Questions, Tables
from pgkeeper.trial.rundir import RunDir
from pgkeeper.trial.scram import verifier
from pgkeeper.trial.sides import Alone, ByCommand, ByOperator, Container, Files, Kept
from pgkeeper.trial.wire import Wire
from pgkeeper.trial.workers import Material
from pgkeeper.version import version

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pgkeeper.trial.figures import Result
    from pgkeeper.trial.options import TrialOptions
    from pgkeeper.trial.sides import Side

__all__ = ["Watcher", "run_trial"]

_USER = "trial"


class Watcher(Protocol):
    """Who is told how far the trial is."""

    def doing(self, text: str) -> None:
        """What is being prepared."""
        ...

    def begin(self, mode: str, side: str, kills: int) -> None:
        """A mode begins on a side."""
        ...

    def killed(self) -> None:
        """One more kill is over."""
        ...

    def end(self, result: Result) -> None:
        """The mode is over on that side."""
        ...


def run_trial(options: TrialOptions, watcher: Watcher) -> Report:
    """Hold the trial. SIGINT and SIGTERM end it early, with a report of what there is by then.

    Raises `TrialError` if it cannot be held, `BuildError` if pgbouncer cannot be built.
    """
    # A descriptor a session here, and two in each of the servers, which inherit the limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    binaries = None
    if options.target is None:
        watcher.doing("building pgbouncer, with the patch and without, unless it is in the cache")
        patched = options.pgbouncer or binary(PATCHED_BUILD, progress=watcher.doing)
        binaries = (patched, binary(VANILLA, progress=watcher.doing))
    return asyncio.run(_Trial(options, watcher, binaries).run())


class _Trial:
    def __init__(
        self, options: TrialOptions, watcher: Watcher, binaries: tuple[Path, Path] | None
    ) -> None:
        self._options = options
        self._watcher = watcher
        self._binaries = binaries
        self._results: list[Result] = []
        self._began = time.time()

    async def run(self) -> Report:
        loop = asyncio.get_running_loop()
        work = asyncio.create_task(self._hold())
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True
            work.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            await work
        except asyncio.CancelledError:
            if not stopped:
                raise
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        return Report(tuple(self._results), self._meta(), interrupted=stopped)

    def _meta(self) -> dict[str, Any]:
        options = self._options
        return {
            "version": version(),
            "began": round(self._began, 3),
            "took_s": round(time.time() - self._began, 3),
            "kills": options.kills,
            "sessions": options.sessions,
            "seed": options.seed,
            "standby": options.standby,
            "load_average": round(os.getloadavg()[0], 2),
            "processors": os.cpu_count(),
            "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        }

    async def _hold(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if self._options.target is not None:
                await self._play_targets(stack, self._options.target)
            else:
                await self._play_both(stack)

    async def _play_targets(self, stack: contextlib.AsyncExitStack, target: Address) -> None:
        options = self._options
        home = options.server or target
        await self._play_sides(stack, home, [(PATCHED, self._running(target))])
        if options.unpatched_target is not None:
            side = self._running(options.unpatched_target)
            home = options.server or options.unpatched_target
            await self._play_sides(stack, home, [(UNPATCHED, side)])

    def _running(self, address: Address) -> Side:
        options = self._options
        if Mode.CONTAINER in options.modes:
            return Container(address, options.container)
        if options.kill_command is not None:
            return ByCommand(address, options.kill_command)
        return ByOperator(address)

    async def _play_both(self, stack: contextlib.AsyncExitStack) -> None:
        assert self._binaries is not None  # noqa: S101 (built where there is no target)
        options = self._options
        self._watcher.doing("starting PostgreSQL and both pgbouncers")
        run_dir = stack.enter_context(RunDir())
        server = options.server or await self._private_server(stack, run_dir)
        secret = secrets.token_urlsafe(18)
        login = (_USER, secret, verifier(secret))

        def files(name: str, *, kept: bool) -> Files:
            return Files(run_dir, name, server, login, options.sessions, kept=kept)

        patched, vanilla = self._binaries
        kept = Kept(files(PATCHED, kept=True), patched, standby=options.standby)
        alone = Alone(files(UNPATCHED, kept=False), vanilla)
        for side in (kept, alone):
            stack.push_async_callback(asyncio.to_thread, side.stop)
            await asyncio.to_thread(side.start)
        await self._play_sides(stack, server, [(PATCHED, kept), (UNPATCHED, alone)])

    async def _private_server(self, stack: contextlib.AsyncExitStack, run_dir: RunDir) -> Address:
        # Sessions in servers of their own, on both sides, and what the pools keep beside them.
        settings = {"max_connections": 2 * self._options.sessions + 120}
        server = PrivatePostgres(run_dir, settings=settings)
        stack.push_async_callback(asyncio.to_thread, server.stop)
        await asyncio.to_thread(server.start)
        return Address(server.host, server.port, "postgres", "postgres")

    async def _play_sides(
        self,
        stack: contextlib.AsyncExitStack,
        home: Address,
        sides: Sequence[tuple[str, Side]],
    ) -> None:
        """Every mode on every side; `home` is where the reference answers come from."""
        options = self._options
        tables = Tables.named(secrets.token_hex(8))
        try:
            wire = await Wire.open(home)
            try:
                await tables.make(wire)
                stack.push_async_callback(_drop, tables, home)
                questions = await Questions.record(wire, tables)
                bulk = None
                if Mode.BULK in options.modes:
                    bulk = await Bulk.record(wire, options.bulk_bytes)
            finally:
                wire.abort()
        except (LostError, DifferentError) as error:
            raise TrialError(f"the reference session: {error.reason}") from error
        for mode in options.modes:
            for name, side in sides:
                whole = self._whole(mode)
                material = Material(side.address(whole=whole), tables, questions, bulk, whole)
                await self._play(side, name, mode, material, home)

    def _whole(self, mode: Mode) -> bool:
        if mode is not Mode.IDLE:
            return False
        return self._options.target is None or self._options.pool_mode is PoolMode.SESSION

    async def _play(
        self, side: Side, name: str, mode: Mode, material: Material, home: Address
    ) -> None:
        options = self._options
        watched = isinstance(side, ByOperator)
        play = Play(side, name, mode, material, options, len(self._results) * options.sessions)
        self._watcher.begin(mode.value, name, 1 if watched else options.kills)
        try:
            await play.run(home, self._watcher.killed, options.watch_s if watched else None)
        finally:
            result = play.result()
            self._results.append(result)
            self._watcher.end(result)


async def _drop(tables: Tables, home: Address) -> None:
    """Leave nothing in a database that is not ours; a session of its own, the other may be gone."""
    with contextlib.suppress(LostError, DifferentError):
        wire = await Wire.open(home)
        try:
            await tables.drop(wire)
        finally:
            wire.abort()
