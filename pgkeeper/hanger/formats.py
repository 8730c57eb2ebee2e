"""Which of the ledger's formats each side reads and writes; pure.

Every pgbouncer knows its own format and one or more before it (`KEEPER_FORMAT_OLDEST` in
`patches/keeper/format.h`).  The ledger is written in one that hanger and pgbouncer know, and only a
handoff changes it, to the newest that both pgbouncers know: so there is always a way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from protocol.ledger import FORMAT_OLDEST, FORMAT_VERSION, SIGNATURE

if TYPE_CHECKING:
    from protocol.control import Hello

__all__ = ["OURS", "Formats"]


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats `oldest` to `newest`; `signature` is the newest one's."""

    oldest: int
    newest: int
    signature: int = SIGNATURE

    @classmethod
    def of(cls, hello: Hello) -> Formats:
        """What a pgbouncer says that it knows."""
        return cls(hello.format_oldest, hello.format_version, hello.signature)

    def __contains__(self, number: int) -> bool:
        """Whether it is known."""
        return self.oldest <= number <= self.newest

    def __str__(self) -> str:
        """For a message; with the signature, since that may be all that differs."""
        numbers = f"{self.oldest} to {self.newest}" if self.oldest < self.newest else self.newest
        return f"ledger format {numbers} (signature {self.signature:016x})"

    def common(self, other: Formats) -> int | None:
        """The newest that both know; None if there is none, or they mean two things by one."""
        if self.newest == other.newest and self.signature != other.signature:
            return None
        newest = min(self.newest, other.newest)
        return newest if newest in self and newest in other else None


OURS: Final = Formats(FORMAT_OLDEST, FORMAT_VERSION)
"""What this pgkeeper reads."""
