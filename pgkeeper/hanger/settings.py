"""What the hanger was told, and how patient it is."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Patience", "Settings"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each thing may take, in seconds, before the process behind it is killed.

    - `hello`: from start to HELLO.
    - `ready`: from ADOPT, or the HELLO of a serving one, to READY.
    - `frozen`: from FREEZE to FROZEN.
    - `farewell`: from RELEASE_ALL, or FAREWELL, to its end.
    - `lost_link`: from the end of its connection to its death.
    - `death`: from SIGKILL to its end, before a handoff gives up.
    - `left_behind`: for a pgbouncer to come back when the last hanger has left its socket behind.
    - `returning`: that a serving pgbouncer has to find a new hanger when an address is in use;
      pgbouncer tries every 0.2 s.
    """

    hello: float = 10.0
    ready: float = 10.0
    frozen: float = 2.0
    farewell: float = 5.0
    lost_link: float = 2.0
    death: float = 10.0
    left_behind: float = 0.6
    returning: float = 3.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The hanger's own settings.

    `supervise`: start pgbouncer whenever none serves.  `standby`: keep a second one started and
    waiting.  `hold_timeout`: seconds that sessions are held while nobody serves; 0: for ever.
    `hang_timeout`: seconds that the heartbeat of one that serves may stand still; 0: for ever.
    """

    supervise: bool = True
    standby: bool = True
    hold_timeout: float = 60.0
    hang_timeout: float = 5.0
    patience: Patience = field(default_factory=Patience)
