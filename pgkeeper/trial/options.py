"""What a trial is asked to do: the boundary between the command line and the trial."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeeper.trial.dsn import Address

__all__ = ["DEFAULT_MODES", "Mode", "PoolMode", "TrialOptions"]


class Mode(enum.Enum):
    """What the sessions do while pgbouncer is killed under them."""

    IDLE = "idle"
    BUSY = "busy"
    BULK = "bulk"
    LOGIN_STORM = "login-storm"
    CONTAINER = "container"


DEFAULT_MODES: Final = (Mode.IDLE, Mode.BUSY, Mode.BULK, Mode.LOGIN_STORM)


class PoolMode(enum.Enum):
    """How a running deployment's database is pooled, which decides what a session may keep."""

    SESSION = "session"
    TRANSACTION = "transaction"


@dataclass(frozen=True, slots=True)
class TrialOptions:
    """The options of `pgkeeper trial`, checked for shape.

    - `kills`, `sessions`: of each mode and side.
    - `modes`: in the order in which they are tried.
    - `bulk_bytes`: of each large answer, about.
    - `patience_s`: how long a session may be without an answer before it counts as lost.
    - `server`: a PostgreSQL to stand behind both sides; None means a private one.
    - `target`, `unpatched_target`: poolers that run already; None means that both are started.
    - `pool_mode`: of the targets' database.
    - `kill_command`: kills the target's pgbouncer; None means that the operator does.
    - `watch_s`: how long to watch while the operator kills.
    - `container`: the container that the mode of that name kills.
    - `pgbouncer`: another patched binary than the built one.
    - `standby`: whether the patched side keeps a second pgbouncer waiting.
    - `seed`: of the moments of the kills.
    """

    kills: int
    sessions: int
    modes: tuple[Mode, ...] = DEFAULT_MODES
    bulk_bytes: int = 2_000_000
    patience_s: float = 30.0
    server: Address | None = None
    target: Address | None = None
    unpatched_target: Address | None = None
    pool_mode: PoolMode = PoolMode.TRANSACTION
    kill_command: str | None = None
    watch_s: float = 60.0
    container: str = "pgbouncer"
    pgbouncer: Path | None = None
    standby: bool = True
    seed: int = 1
