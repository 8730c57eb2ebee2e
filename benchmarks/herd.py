"""Many sessions at once whose answers are timed and checked: herd.c, which needs a C compiler."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from testbed.pooler import Pooler
    from testbed.rundir import RunDir

__all__ = ["Herd", "HerdError", "Pause"]

_SOURCES = [Path(__file__).with_name(name) for name in ("herd.c", "herd_sessions.c")]


class HerdError(Exception):
    """The measuring client has ended; it has said on stderr which answer was wrong or missing."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Milliseconds from the start of a round until all were asked, and to three of the answers.

    `longest`: what the one that waited longest waited for its own answer. `caught_up`: from the
    start until for the first time all had their answers that had been asked. `returned`: how many
    connections were made anew for them.
    """

    sent: float
    first: float
    median: float
    last: float
    longest: float
    caught_up: float
    returned: int


class Herd:
    """The measuring client with its sessions, logged in and prepared. A context manager.

    `returns`: it connects again where a connection ends; else that is an error.
    """

    def __init__(
        self,
        run_dir: RunDir,
        pooler: Pooler,
        sessions: int,
        statements: int,
        *,
        returns: bool = False,
    ) -> None:
        program = run_dir.path / f"herd-{pooler.name}"
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, *_SOURCES], check=True)
        self._sessions = sessions
        self._process = subprocess.Popen(
            [
                *(str(program), pooler.host, str(pooler.port), str(sessions), str(statements)),
                *("postgres", "transaction", "returns" if returns else "stays"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Herd:
        self._read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def play(
        self, number: int, *, kill: int = 0, asked: int | None = None, over_ms: int = 0
    ) -> Pause:
        """One round: ask all sessions, or so many; with `kill` that process dies first.

        They are asked all at once, or evenly spread over `over_ms`.

        Raises `HerdError`.
        """
        assert self._process.stdin is not None  # noqa: S101 (it is a pipe)
        print(kill, number, asked or self._sessions, over_ms, file=self._process.stdin, flush=True)
        return Pause(**json.loads(self._read()))

    def _read(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 (it is a pipe)
        line = self._process.stdout.readline()
        if not line:
            raise HerdError
        return line
