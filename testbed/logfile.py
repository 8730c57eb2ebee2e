"""A log that a test reads while a program still writes it."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from testbed.errors import BadLogError
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# PgBouncer's Assert() (lib/usual/base.h) and fatal(), the C library's assert, the sanitizers, and
# an unhandled Python exception in the hanger.
_BROKEN = re.compile(
    r"Assert\(.*\) failed|[Aa]ssertion .*failed|FATAL @|FATAL keeper"
    r"|(?:Address|Leak|Thread)Sanitizer|runtime error:|Traceback \(most recent call last\)"
)


class LogFile:
    """The log at `path`, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, start: int = 0) -> str:
        """The text from byte `start` on."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")

    def size(self) -> int:
        """Its length in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def tail(self, lines: int = 20) -> str:
        """The last lines, for a message."""
        return "\n".join(self.read().splitlines()[-lines:])

    @contextlib.contextmanager
    def contains(
        self, pattern: str, *, times: int | None = None, seconds: float = 5.0
    ) -> Iterator[None]:
        """Require that what is written during the `with` block matches the regular expression.

        Waits up to `seconds` for the (first `times`) matches. With `times`, exactly so many must
        be there at the end, 0 included. Raises `WaitTimeoutError` or AssertionError.
        """
        start = self.size()
        yield
        expression = re.compile(pattern)
        if times != 0:
            wait_until(
                lambda: len(expression.findall(self.read(start))) >= (times or 1),
                what=f"{self.path.name} matches {pattern!r}",
                seconds=seconds,
            )
        if times is not None:
            found = len(expression.findall(self.read(start)))
            if found != times:
                raise AssertionError(f"{pattern!r}: {found} matches in the log, not {times}")

    def check(self) -> None:
        """Raise `BadLogError` if a line says that the program is broken."""
        lines = [line for line in self.read().splitlines() if _BROKEN.search(line)]
        if lines:
            raise BadLogError(self.path, lines)
