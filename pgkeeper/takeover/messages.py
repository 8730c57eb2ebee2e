"""What two hangers say to each other during a takeover: JSON, with descriptors beside it.

In order: `Ask`, `Offer`, `Go` (all may be answered by `Refusal`), then in one go `Inventory` and
what it counts, `Received`, `Yours`.  Until the old hanger has sent `Yours` all is still its own;
from then on all is the new one's.
"""

# No postponed annotations: `shape` reads those of the dataclasses at run time.
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pgkeeper.control.report import Blame, Counts
from pgkeeper.control.shape import ShapeError, from_plain, to_plain
from pgkeeper.errors import PgkeeperError

__all__ = [
    "BATCH",
    "SIZE",
    "VERSION",
    "Addresses",
    "Ask",
    "Go",
    "Inventory",
    "Listening",
    "Message",
    "Offer",
    "ProcessState",
    "Received",
    "Refusal",
    "Sockets",
    "Stranger",
    "TakeoverProtocolError",
    "TakeoverVersionError",
    "Unheld",
    "Yours",
    "decode",
    "encode",
    "next_path",
]

#: Both sides must speak the same one.  Raise it with every change of what is below.
VERSION: Final = 3
#: Sockets a message, at most.
BATCH: Final = 64
#: Bytes a message, at most: two paths of 4096 bytes, each of them escaped, fit.
SIZE: Final = 64 << 10


class TakeoverProtocolError(PgkeeperError):
    """A message is not what a takeover allows; `reason` says in which way."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"bad message of the other hanger: {reason}")


class TakeoverVersionError(TakeoverProtocolError):
    """The other hanger speaks another version of these messages."""

    def __init__(self, version: object) -> None:
        self.version = version
        shown = version if type(version) is int and 0 <= version < 2**31 else "unknown"
        super().__init__(f"takeover version {shown}, this pgkeeper speaks version {VERSION}")


def next_path(keeper_socket: Path) -> Path:
    """Where the hanger of `keeper_socket` listens for the next hanger."""
    return Path(f"{keeper_socket}.next")


@dataclass(frozen=True, slots=True)
class Ask:
    """The new hanger introduces itself: its version, and which service manager it has."""

    pgkeeper: str
    manager: str | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """The old hanger's settings, which the new one has too unless it was told otherwise."""

    pgkeeper: str
    pid: int
    binary: str
    ini: str
    standby: bool
    supervise: bool
    hold_timeout: float
    hang_timeout: float
    allow_uids: list[int]
    metrics: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """It cannot be; `text` is one line."""

    text: str


@dataclass(frozen=True, slots=True)
class Go:
    """The new hanger has checked what it can and waits for everything."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """How much follows.

    Descriptors: listeners of keeper, admin and next socket; the ledger; that of the metrics.
    """

    generation: int
    incarnation: int
    format: int
    next_client: int
    draining: bool
    ledger: bool
    metrics: bool
    listeners: int
    sockets: int
    unheld: int
    processes: int
    strangers: int
    addresses: int
    counts: Counts
    blame: Blame


@dataclass(frozen=True, slots=True)
class Listening:
    """Some listening sockets.  Descriptors: `count` of them."""

    count: int


@dataclass(frozen=True, slots=True)
class Sockets:
    """Some held sockets: token, whether it is a Unix one, a client's address, when it came.

    Descriptors: one each.
    """

    tokens: list[int]
    unix: list[bool]
    peers: list[str | None]
    born: list[int]


@dataclass(frozen=True, slots=True)
class Unheld:
    """Some sockets that pgbouncer serves unheld: reason, and address, by token in decimal."""

    reasons: dict[str, str]
    peers: dict[str, str]


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A pgbouncer.  Descriptors: its pidfd and, if it is `linked`, its connection.

    `formats`: oldest, newest and signature of the ledger formats that it knows, if it said so.
    `deadline` is the time that it has left, in seconds, and `why` what it is killed for then.
    `forgets`: it stands by and has got held sockets in advance, or would.
    """

    pid: int
    linked: bool
    ours: bool
    state: str
    owner: bool
    incarnation: int
    dismissed: bool
    said_farewell: bool
    faulty: bool
    looped: bool
    age: float
    binary: str | None = None
    ini: str | None = None
    formats: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    deadline: float | None = None
    why: str = ""
    forgets: bool = False


@dataclass(frozen=True, slots=True)
class Stranger:
    """A connection on which nothing has been said yet.  Descriptors: it, and its peer's pidfd."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """What is known against some addresses: crashes, and until when, as `LoginGuard.records`."""

    records: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Received:
    """The new hanger has everything and touches nothing yet."""


@dataclass(frozen=True, slots=True)
class Yours:
    """All is the new hanger's."""


Message = (
    Ask
    | Offer
    | Refusal
    | Go
    | Inventory
    | Listening
    | Sockets
    | Unheld
    | ProcessState
    | Stranger
    | Addresses
    | Received
    | Yours
)

_TYPES: Final[Mapping[str, type[Message]]] = {
    "ask": Ask,
    "offer": Offer,
    "refusal": Refusal,
    "go": Go,
    "inventory": Inventory,
    "listening": Listening,
    "sockets": Sockets,
    "unheld": Unheld,
    "process": ProcessState,
    "stranger": Stranger,
    "addresses": Addresses,
    "received": Received,
    "yours": Yours,
}
_NAMES: Final[Mapping[type, str]] = {cls: name for name, cls in _TYPES.items()}


def encode(message: Message) -> bytes:
    """`message` as a datagram."""
    head = {"version": VERSION, "type": _NAMES[type(message)]}
    return json.dumps({**head, **to_plain(message)}).encode("ascii")


def decode(data: bytes) -> Message:
    """The message in `data`.  Raises `TakeoverProtocolError`, and nothing else, for any bytes."""
    try:
        plain = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise TakeoverProtocolError("not JSON") from None
    if not isinstance(plain, dict):
        raise TakeoverProtocolError("not a JSON object")
    version = plain.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise TakeoverVersionError(version)
    name = plain.pop("type", None)
    cls = _TYPES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise TakeoverProtocolError("unknown type of message")
    try:
        return from_plain(cls, plain)
    except ShapeError as error:
        raise TakeoverProtocolError(str(error)) from None
