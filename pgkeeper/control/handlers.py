"""What the requests of the admin socket do."""

from __future__ import annotations

import asyncio
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from pgkeeper.control import protocol
from pgkeeper.control.protocol import Failure, FailureCode, Progress
from pgkeeper.errors import PgkeeperError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pgkeeper.control.report import (
        HandoffReport,
        ReleaseReport,
        Session,
        Status,
        Top,
        TopQuery,
    )

__all__ = ["Handlers", "Keeper", "Replies"]

_BATCH: Final = 50  # sessions a line: a few milliseconds of work between turns of the loop


class Keeper(Protocol):
    """The hanger, as the admin socket sees it.  Errors leave as `PgkeeperError`."""

    def status(self) -> Status:
        """How things are now."""
        ...

    def warnings(self) -> Sequence[str]:
        """One line for each thing the operator ought to change; `ConfigWarning.text`."""
        ...

    def sessions(self) -> Iterable[Session]:
        """All sessions, clients first.

        Read in batches with the event loop running in between, so that a long list delays
        nobody: a generator must bear that sessions come and go meanwhile.
        """
        ...

    async def top(self, query: TopQuery) -> Top:
        """Some sessions in some order, and their number; the loop turns meanwhile."""
        ...

    def kill(self, name: str) -> None:
        """Have the client of that token's name ended."""
        ...

    async def handoff(
        self, pgbouncer: Path | None, ini: Path | None, progress: Callable[[str, str], None]
    ) -> HandoffReport:
        """Replace pgbouncer; None keeps the present binary or ini.

        `progress(step, text)` never blocks or fails.  A handoff that failed raises, with what
        happened and who serves now as its message.
        """
        ...

    async def release(self) -> ReleaseReport:
        """End all sessions for good; the hanger stops soon after it returned."""
        ...


class Replies(Protocol):
    """Where replies go.  Neither method fails when the peer is gone."""

    async def send(self, reply: protocol.Reply) -> bool:
        """Send, and wait while the peer does not read.  False: the peer is gone."""
        ...

    def post(self, reply: protocol.Reply) -> None:
        """Send without ever waiting."""
        ...


class Handlers:
    """Carries out requests, one at a time of those that change anything."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._changing = asyncio.Lock()

    async def handle(self, request: protocol.Request, replies: Replies) -> None:
        """Carry out `request`; its last reply says how it ended.

        Raises what is not a `PgkeeperError`: a defect of ours, for the caller to log.
        """
        try:
            match request:
                case protocol.StatusRequest():
                    warnings = list(self._keeper.warnings())
                    await replies.send(protocol.StatusReply(self._keeper.status(), warnings))
                case protocol.SessionsRequest():
                    await self._sessions(replies)
                case protocol.TopRequest():
                    top = await self._keeper.top(request.query)
                    warnings = list(self._keeper.warnings())
                    await replies.send(protocol.TopReply(self._keeper.status(), top, warnings))
                case protocol.KillRequest():
                    self._keeper.kill(request.name)
                    await replies.send(protocol.KillReply())
                case protocol.HandoffRequest() | protocol.ReleaseRequest():
                    await self._change(request, replies)
        except PgkeeperError as error:
            await replies.send(Failure(FailureCode.FAILED, error.message))

    async def _sessions(self, replies: Replies) -> None:
        count = 0
        sessions = iter(self._keeper.sessions())
        while batch := list(islice(sessions, _BATCH)):
            count += len(batch)
            if not await replies.send(protocol.SessionsBatch(batch)):
                return
            await asyncio.sleep(0)
        await replies.send(protocol.SessionsEnd(count))

    async def _change(
        self, request: protocol.HandoffRequest | protocol.ReleaseRequest, replies: Replies
    ) -> None:
        if self._changing.locked():
            text = "another handoff or release is under way"
            await replies.send(Failure(FailureCode.BUSY, text))
            return
        async with self._changing:
            if isinstance(request, protocol.ReleaseRequest):
                released = await self._keeper.release()
                await replies.send(protocol.ReleaseReply(released))
                return
            try:
                pgbouncer, ini = _absolute(request.pgbouncer), _absolute(request.ini)
            except ValueError as error:
                await replies.send(Failure(FailureCode.BAD_REQUEST, str(error)))
                return
            handed = await self._keeper.handoff(
                pgbouncer, ini, lambda step, text: replies.post(Progress(step, text))
            )
            await replies.send(protocol.HandoffReply(handed))


def _absolute(name: str | None) -> Path | None:
    if name is None:
        return None
    try:
        usable = "\0" not in name and bool(os.fsencode(name))
    except UnicodeError:
        usable = False
    if not usable:
        raise ValueError("not a file name")
    path = Path(name)
    if not path.is_absolute():
        raise ValueError("file names must be absolute: the hanger has another working directory")
    return path
