"""The sessions of a trial, by what they do while pgbouncer is killed."""

from __future__ import annotations

import abc
import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pgkeeper.trial.answer import DifferentError, LostError
from pgkeeper.trial.options import Mode
from pgkeeper.trial.questions import Bulk, Exchange, Questions, Tables, execute, prepare, query
from pgkeeper.trial.wire import Wire

if TYPE_CHECKING:
    from pgkeeper.trial.dsn import Address

__all__ = ["KINDS", "Material", "Moment", "Worker"]

# Before a lost session logs in again, as an application would, or a refused login is repeated.
_AGAIN_S: Final = 0.02


@dataclass(slots=True)
class Moment:
    """The last kill as sessions see it; `struck` is perf_counter's time of it, None before."""

    struck: float | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False

    def strike(self, at: float) -> None:
        """The kill was at `at`. Who waits on `changed` is woken."""
        self.struck = at
        self.wake()

    def stop(self) -> None:
        """Everybody is to finish."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """Release all who wait for the next change."""
        old, self.changed = self.changed, asyncio.Event()
        old.set()


@dataclass(frozen=True, slots=True)
class Material:
    """What all workers of a mode share. `whole` says that a session has a server of its own."""

    address: Address
    tables: Tables
    questions: Questions
    bulk: Bulk | None
    whole: bool


class Worker(abc.ABC):
    """One session, and what it has seen; subclasses say what it does in a turn.

    `ready` is set when it works. `survived` becomes False when its connection is lost or it is
    told something wrong; it logs in again then, for an application would.
    """

    def __init__(self, number: int, material: Material, moment: Moment) -> None:
        self.number = number
        self.material = material
        self.moment = moment
        self.ready = asyncio.Event()
        self.survived = True
        self.lost: Counter[str] = Counter()
        self.differences: list[str] = []
        self.answers = 0
        self.told: list[int] = []
        self.doubtful: list[int] = []
        self.first: float | None = None
        """Seconds from the last kill to the first answer to something asked after it."""
        self._turn = 0
        self._settled = False
        self._longest = 0.0
        self._compared = 0
        self._wire: Wire | None = None

    @property
    def compared(self) -> int:
        """Bytes of answers that were right."""
        return self._compared + (self._wire.compared if self._wire else 0)

    @property
    def pause(self) -> float:
        """The longest wait since `begin_round`, in seconds."""
        return max(self._longest, self._wire.longest if self._wire else 0.0)

    def begin_round(self) -> None:
        """A kill is about to come: what was measured before does not count."""
        self.first = None
        self._longest = 0.0
        if self._wire:
            self._wire.longest = 0.0

    async def run(self) -> None:
        """Work until the moment says stop. Raises what a first login that fails raises."""
        while not self.moment.stopping:
            try:
                await self.live()
            except LostError as error:
                if not self.ready.is_set():
                    raise
                # Who is refused while nobody serves has no more to lose, but for a login.
                if self._wire is not None or isinstance(self, Logins):
                    self.give_up(error.reason)
                await asyncio.sleep(_AGAIN_S)
            except DifferentError as error:
                if not self._settled:
                    raise
                self.survived = False
                self.differences.append(error.reason)
                await asyncio.sleep(_AGAIN_S)
            finally:
                self._drop()

    async def live(self) -> None:
        """One connection's life. Raises `LostError` or `DifferentError`."""
        wire = self._wire = await Wire.open(self.material.address)
        await self.settle(wire)
        self._settled = True
        while not self.moment.stopping:
            self._turn += 1
            await self.turn(wire, self._turn)
            self.ready.set()
        await wire.close()

    async def settle(self, wire: Wire) -> None:  # noqa: B027 (most need nothing)
        """What a new connection needs before its first turn."""

    @abc.abstractmethod
    async def turn(self, wire: Wire, turn: int) -> None:
        """One piece of work. Raises `LostError` or `DifferentError`."""

    def give_up(self, reason: str) -> None:
        """The connection has ended, or has been without an answer for too long."""
        self.survived = False
        self.lost[reason] += 1

    async def ask(self, wire: Wire, exchange: Exchange) -> None:
        """Ask one thing, and note when its answer came."""
        asked = time.perf_counter()
        await wire.ask(exchange.request, exchange.answer)
        self.note(asked)

    def note(self, asked: float) -> None:
        """Something that was asked at `asked` has just been answered, rightly."""
        self.answers += 1
        struck = self.moment.struck
        if self.first is None and struck is not None and asked >= struck:
            self.first = time.perf_counter() - struck

    async def insert(self, wire: Wire, turn: int, *, within: bool) -> None:
        """Count this turn; a transaction's insert (`within`) is told with its COMMIT."""
        questions = self.material.questions
        answer = questions.inserted_within if within else questions.inserted
        request = query(questions.insert(self.material.tables, self.number, turn))
        self.doubtful.append(turn)
        await self.ask(wire, Exchange(request, answer))
        if not within:
            self.confirm(turn)

    def confirm(self, turn: int) -> None:
        """The insert of `turn` is known to have been made."""
        self.doubtful.remove(turn)
        self.told.append(turn)

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            self._compared += wire.compared
            self._longest = max(self._longest, wire.longest)
            wire.abort()


class Idle(Worker):
    """Rests with all that a session can have, and is asked for it right after each kill.

    What it has is asked for once before, in the same session: settings, a prepared statement and,
    where it has a server of its own, the server's pid, a temporary table and an advisory lock.
    """

    _ZONES: Final = ("Europe/Berlin", "Asia/Kolkata", "America/Lima")

    async def settle(self, wire: Wire) -> None:
        """Collect belongings, and record what asking for them says."""
        number, lock = self.number, self.material.tables.lock
        zone = self._ZONES[number % len(self._ZONES)]
        await wire.rows(f"SET application_name TO 'trial {number}'; SET TimeZone TO '{zone}'")
        await wire.record(prepare("belonging", f"SELECT {number} + $1::int, repeat($2, 100)"))
        asked = "current_setting('application_name'), current_setting('TimeZone')"
        if self.material.whole:
            rows = "SELECT n, md5(n::text) FROM generate_series(1, 200) AS n"
            await wire.rows(f"CREATE TEMP TABLE scratch AS {rows}")
            await wire.rows(f"SELECT pg_advisory_lock({lock}, {number})")
            asked += ", pg_backend_pid(), (SELECT string_agg(md5, ',' ORDER BY n) FROM scratch)"
            asked += ", (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            asked += f" AND classid = {lock} AND objid = {number} AND pid = pg_backend_pid())"
        requests = (query(f"SELECT {asked}"), execute("belonging", "17", f"{number} "))
        self._belongings = [Exchange(one, await wire.record(one)) for one in requests]

    async def turn(self, wire: Wire, turn: int) -> None:
        """See the class."""
        struck = self.moment.struck
        for exchange in self._belongings:
            await self.ask(wire, exchange)
        self.ready.set()
        # A kill that came while it was asking is not to be slept through.
        while self.moment.struck == struck and not self.moment.stopping:
            await self.moment.changed.wait()


class Busy(Worker):
    """Queries of all protocols and transactions with inserts, one right after the other."""

    async def settle(self, wire: Wire) -> None:
        """Prepare a statement that all turns use."""
        questions = self.material.questions
        await wire.ask(questions.prepare.request, questions.prepare.answer)

    async def turn(self, wire: Wire, turn: int) -> None:
        """See the class."""
        questions = self.material.questions
        at = turn * 7 + self.number
        await self.ask(wire, questions.small[at % len(questions.small)])
        await self.ask(wire, questions.prepared[at % len(questions.prepared)])
        if turn % 2:
            await self.insert(wire, turn, within=False)
            return
        await self.ask(wire, questions.begin)
        await self.insert(wire, turn, within=True)
        await self.ask(wire, questions.within[at % len(questions.within)])
        await self.ask(wire, questions.commit)
        self.confirm(turn)


class Streaming(Worker):
    """Large results, COPY to us, and COPY from us, which is undone when it has been looked at."""

    async def turn(self, wire: Wire, turn: int) -> None:
        """See the class."""
        bulk = self.material.bulk
        assert bulk is not None  # noqa: S101 (recorded for this kind)
        kind, variant = (turn + self.number) % 3, turn % 2
        if kind == 0:
            await self.ask(wire, bulk.results[variant])
        elif kind == 1:
            await self.ask(wire, bulk.copies_out[variant])
        else:
            await self._copy_in(wire, bulk)

    async def _copy_in(self, wire: Wire, bulk: Bulk) -> None:
        await self.ask(wire, bulk.begin)
        await self.ask(wire, bulk.table)
        await self.ask(wire, bulk.copy_in)
        asked = time.perf_counter()
        for piece in bulk.pieces:
            await wire.send(piece)
        await wire.expect(bulk.copied)
        self.note(asked)
        await self.ask(wire, bulk.check)
        await self.ask(wire, bulk.rollback)


class Logins(Worker):
    """A connection a turn: login, one question, goodbye. Each has to succeed."""

    _welcome: bytes | None = None

    async def live(self) -> None:
        """One login. Its welcome must be that of the first one."""
        self._turn += 1
        asked = time.perf_counter()
        wire = self._wire = await Wire.open(self.material.address)
        self._settled = True
        if self._welcome is None:
            self._welcome = wire.welcome
        if wire.welcome != self._welcome:
            raise DifferentError("another welcome than at the first login")
        await self.turn(wire, self._turn)
        await wire.close()
        self.note(asked)
        wire.compared += len(self._welcome)
        self._longest = max(self._longest, time.perf_counter() - asked)
        self.ready.set()

    async def turn(self, wire: Wire, turn: int) -> None:
        """See the class."""
        exchange = self.material.questions.small[
            (turn * 7 + self.number) % len(self.material.questions.small)
        ]
        await wire.ask(exchange.request, exchange.answer)


KINDS: Final[dict[Mode, type[Worker]]] = {
    Mode.IDLE: Idle,
    Mode.BUSY: Busy,
    Mode.BULK: Streaming,
    Mode.LOGIN_STORM: Logins,
    Mode.CONTAINER: Busy,
}
