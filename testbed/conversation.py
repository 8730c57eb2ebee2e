"""A conversation that stops in the middle, and whose rest is known to the byte."""

from __future__ import annotations

import contextlib
import enum
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import ConnectionLostError
from testbed.rawclient import Message

if TYPE_CHECKING:
    from testbed.rawclient import RawClient

__all__ = ["Conversation", "End", "Outcome"]

_HEAD = 5


class End(enum.Enum):
    """How a conversation went on."""

    EXACT = "exact"
    """Every byte came that had to come, and none more."""
    ENDED = "ended"
    """Closed, after nothing or a part of these bytes, perhaps with a FATAL between two messages."""
    WRONG = "wrong"
    """A byte came that had not to come."""
    STUCK = "stuck"
    """Neither the rest nor an end came in time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went on, with what explains it."""

    end: End
    detail: str = ""


@dataclass(slots=True)
class Conversation:
    """A session under a name.

    `ask` is what the client still has to send, `expected` what it must receive from then on.
    Bytes at the positions of `free` may be any (keys made at random).
    """

    name: str
    client: RawClient
    ask: bytes
    expected: bytes
    free: range = range(0)

    def go_on(self, seconds: float) -> Outcome:
        """Say and hear the rest; gives up after `seconds`."""
        # Whoever has ended may have reset the connection; what it has said can still be read.
        with contextlib.suppress(ConnectionLostError):
            self.client.send(self.ask)
        got, ended = self._receive(time.monotonic() + seconds)
        if self._same(got, len(self.expected)):
            return Outcome(End.EXACT)
        if self._same(got, len(got)):
            where = f"after {len(got)} of {len(self.expected)} bytes"
            return Outcome(End.ENDED if ended else End.STUCK, where)
        farewell = self._farewell(got)
        if farewell is None:
            at = next(i for i in range(len(got)) if not self._same(got[: i + 1], i + 1))
            return Outcome(
                End.WRONG,
                f"byte {at}: {got[at : at + 60]!r} instead of {self.expected[at : at + 60]!r}",
            )
        return Outcome(End.ENDED if ended else End.STUCK, str(farewell.error_fields()))

    def close(self) -> None:
        """Leave."""
        self.client.close()

    def _receive(self, deadline: float) -> tuple[bytes, bool]:
        """What comes until all is there, the peer closes, or the time is over; has it closed?"""
        got = bytearray()
        poll = select.poll()
        poll.register(self.client.socket, select.POLLIN)
        while len(got) < len(self.expected) or not self._same(got, len(self.expected)):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                return bytes(got), False
            try:
                data = self.client.socket.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                return bytes(got), True
            got += data
        return bytes(got), False

    def _same(self, got: bytes | bytearray, count: int) -> bool:
        """Whether `got` is the first `count` bytes that must come."""
        wanted = self.expected[:count]
        if len(got) != count or len(wanted) != count:
            return False
        if not self.free or count <= self.free.start:
            return got == wanted
        stop = min(self.free.stop, count)
        return (got[: self.free.start], got[stop:]) == (wanted[: self.free.start], wanted[stop:])

    def _farewell(self, got: bytes) -> Message | None:
        """The FATAL with which `got` ends, if all before it are whole messages of ours."""
        at = 0
        while at < len(got) and self._same(got[:at], at):
            message = _whole_message(got[at:])
            if message and message.kind == "E" and message.error_fields().get("S") == "FATAL":
                return message
            if at + _HEAD > len(self.expected):
                return None
            at += 1 + int.from_bytes(self.expected[at + 1 : at + _HEAD], "big")
        return None


def _whole_message(data: bytes) -> Message | None:
    """The one message that `data` is."""
    if len(data) < _HEAD or 1 + int.from_bytes(data[1:_HEAD], "big") != len(data):
        return None
    return Message(chr(data[0]), data[_HEAD:])
