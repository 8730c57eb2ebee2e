"""The root of every error pgkeeper raises on purpose.

A subclass lives in the module that raises it, carries what it knows in attributes, and passes
one line of text to `PgkeeperError`. Whoever handles it decides whether it is logged, shown or
turned into an exit status; nobody on the way has to parse the text.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["PgkeeperError"]


class PgkeeperError(Exception):
    """Something went wrong that the operator can understand from one line.

    `exit_code` is the process's exit status when the error ends a command. Line breaks in
    `message` become "; ", because scripts and logs count on one line an error.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        self.message = "; ".join(line.strip() for line in message.splitlines() if line.strip())
        super().__init__(self.message)
