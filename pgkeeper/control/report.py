"""What the hanger reports about itself; the JSON of `--json` has the same names (DESIGN 10)."""

# No postponed annotations: `shape` reads those of the dataclasses at run time.
from dataclasses import dataclass, field
from typing import Final, Literal

from pgkeeper.states import ServiceState

__all__ = [
    "AdoptionStatus",
    "Blame",
    "BouncerStatus",
    "Counts",
    "CrashStatus",
    "HandoffReport",
    "HangerStatus",
    "QuarantineStatus",
    "Record",
    "ReleaseReport",
    "Session",
    "SessionStatus",
    "Status",
    "Top",
    "TopQuery",
    "TopRow",
    "token_name",
]

_SERVER_TOKEN: Final = 1 << 63  # tokens that pgbouncer makes: its own connections to servers


@dataclass(frozen=True, slots=True)
class HangerStatus:
    """The hanger process itself; `uptime_s` in seconds."""

    pid: int
    version: str
    uptime_s: float


@dataclass(frozen=True, slots=True)
class BouncerStatus:
    """pgbouncer: `pid` and `standby_pid` are None while there is no such process.

    `incarnation` counts the pgbouncers that were active, from 1; 0 before the first.
    """

    state: ServiceState
    pid: int | None
    incarnation: int
    standby_pid: int | None


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """Sockets the hanger holds, and how many sockets it does not hold for which reason."""

    clients_held: int
    servers_held: int
    unheld: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdoptionStatus:
    """Adoptions since the hanger started; `last_ms` is None before the first.

    `last_ms` is the time nobody served, in milliseconds; `sessions_lost` the sum over all of them.
    """

    count: int
    last_ms: float | None
    sessions_lost: int


@dataclass(frozen=True, slots=True)
class Record:
    """What a hanger counts for its metrics; no part of any report.

    - `deaths` of pgbouncers, and `takeovers` after them, by cause; sessions `lost`, by reason.
    - `pauses`: how many fell between the bounds of `history.PAUSES`; the last has those above.
      `pause_sum`: seconds of all of them.
    - `cause`: why the last one that served has ended.
    """

    deaths: dict[str, int] = field(default_factory=dict)
    takeovers: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    pauses: list[int] = field(default_factory=list)
    pause_sum: float = 0.0
    cause: str = "unknown"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a hanger counts, for the one that takes over; no part of any report.

    `vacant_since`, in seconds of CLOCK_MONOTONIC: since when nobody has served; None if one does.
    """

    count: int
    last_pause: float | None
    sessions_lost: int
    ready_once: bool
    vacant_since: float | None
    hangs: int = 0
    record: Record = field(default_factory=Record)


@dataclass(frozen=True, slots=True)
class Blame:
    """What a quarantine remembers, for the hanger that takes over; no part of any report.

    - `last`: the token of who was blamed for the last death; None if nobody was.
    - `ended`: when the last sessions were ended, in seconds of CLOCK_MONOTONIC.
    - `counts`: how many were ended, by reason; `refused`: how many logins were refused.
    """

    last: int | None = None
    ended: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    refused: int = 0


@dataclass(frozen=True, slots=True)
class QuarantineStatus:
    """Since the hanger started, and now.

    - `ended`: sessions of whose bytes pgbouncer died again and again, by reason ("crash", "loop",
      and "login" for those that had not logged in yet).
    - `logins_refused`: new connections from addresses whose logins crash it.
    - `addresses`: how many such addresses may not log in at the moment.
    """

    ended: dict[str, int] = field(default_factory=dict)
    logins_refused: int = 0
    addresses: int = 0


@dataclass(frozen=True, slots=True)
class CrashStatus:
    """What was done about a pgbouncer that misbehaved, since the hanger started.

    - `hangs`: how often one was killed because its heartbeat stood still.
    - `quarantine`: what was done about those of whose bytes one died.
    """

    hangs: int = 0
    quarantine: QuarantineStatus = field(default_factory=QuarantineStatus)


@dataclass(frozen=True, slots=True)
class Status:
    """`pgkeeper status`."""

    hanger: HangerStatus
    pgbouncer: BouncerStatus
    sessions: SessionStatus
    adoptions: AdoptionStatus
    crashes: CrashStatus = field(default_factory=CrashStatus)


@dataclass(frozen=True, slots=True)
class Session:
    """One client or server socket.

    - `token`: its name between hanger and pgbouncer.
    - `user`, `database`: None while the login has not said them.
    - `state`: PgBouncer's word for the list it is in ("active", "waiting", "idle", "login", ...).
    - `held`: it outlives pgbouncer; if not, `reason` says why ("tls", "ledger-full", ...).
    - `doing`: what it is in the middle of, in a few words, never with the text of a query.
    - `linked`: the token of the server or client it is linked to.
    """

    token: int
    kind: Literal["client", "server"]
    user: str | None
    database: str | None
    state: str
    held: bool
    reason: str | None
    doing: str
    linked: int | None


@dataclass(frozen=True, slots=True)
class TopQuery:
    """Which sessions to show, and in what order.

    - `order`: "activity" is what runs first, the longest before the others, then what waits.
    - `match`: a part of user, database, address, state or token; upper and lower case alike.
    - `offset`, `limit`: which part of the list; the hanger has a limit of its own.
    """

    side: Literal["client", "server", "all"] = "client"
    order: Literal["activity", "user", "database", "address", "age", "survived", "token"] = (
        "activity"
    )
    reverse: bool = False
    match: str = ""
    offset: int = 0
    limit: int = 100


@dataclass(frozen=True, slots=True)
class TopRow:
    """One of them.

    - `address`: where a client comes from; None if nobody knows.
    - `survived`: adoptions that it has gone through.
    - `age`: seconds that its transaction, query or wait has taken so far; None while it rests.
    """

    session: Session
    address: str | None
    survived: int
    age: float | None


@dataclass(frozen=True, slots=True)
class Top:
    """The sessions that were asked for: how many there are, how many match, and part of those."""

    total: int
    matching: int
    rows: list[TopRow]


@dataclass(frozen=True, slots=True)
class HandoffReport:
    """A handoff that succeeded: who serves now, what it took over, what was lost and why.

    `pause_ms`: how long nobody served, in milliseconds.
    """

    pid: int
    incarnation: int
    clients: int
    servers: int
    lost: dict[str, int]
    pause_ms: float


@dataclass(frozen=True, slots=True)
class ReleaseReport:
    """How many sockets of either kind were ended by `pgkeeper release`."""

    clients: int
    servers: int


def token_name(token: int) -> str:
    """`token` for people: "c7" for a client's, "s7" for one that pgbouncer made.

    Also used in JSON, where tools such as jq would round the large numbers of servers.
    """
    return f"s{token & ~_SERVER_TOKEN}" if token & _SERVER_TOKEN else f"c{token}"
