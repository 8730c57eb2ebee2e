"""The control messages, one frozen dataclass each; `protocol.control` frames them.

Source: `patches/keeper/control.h`.  A class reads and writes what follows the head of its message
and says how many descriptors travel beside it.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from protocol import control_layouts as layouts
from protocol.control_layouts import BATCH, Lost, MessageType, Role, UnheldReason
from protocol.errors import (
    BadLengthError,
    InvalidValueError,
    LocalProtocolError,
    TrailingBytesError,
    TruncatedMessageError,
)

if TYPE_CHECKING:
    from protocol.layout import Layout

_COUNTED = struct.Struct("=II")
_TOKEN = struct.Struct("=Q")
_UNIX = struct.Struct("=I")
#: `layouts.SOCKET`, without names: all sockets go through it while nobody serves.
_SOCKET = struct.Struct("=QII")
_ONE = _COUNTED.pack(1, 0)


class Body:
    """What every message shares: nothing after the head, unless a subclass says otherwise."""

    __slots__ = ()

    TYPE: ClassVar[MessageType]

    def build(self) -> bytes:
        """Give what follows the head; struct.error if a value does not fit."""
        return b""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read what follows the head; RemoteProtocolError if it is not valid."""
        if body:
            raise TrailingBytesError("the message has no body", length=len(body))
        return cls()

    def descriptors(self) -> range:
        """Say how many descriptors may come beside the message."""
        return range(1)


def _fixed(layout: Layout, body: bytes) -> dict[str, Any]:
    """Read a body that is one struct of fixed size."""
    _exact(len(body), layout.size)
    return layout.parse(body)


def _exact(length: int, expected: int) -> None:
    if length < expected:
        raise TruncatedMessageError(f"{expected} bytes of body expected", length=length)
    if length > expected:
        raise TrailingBytesError(f"{expected} bytes of body expected", length=length)


def _flag(value: int, field: str) -> bool:
    if value > 1:
        raise InvalidValueError("neither 0 nor 1", field=field)
    return value == 1


def _build_counted(entries: list[bytes]) -> bytes:
    if len(entries) > BATCH:
        raise LocalProtocolError(f"more than {BATCH} entries", field="count")
    return _COUNTED.pack(len(entries), 0) + b"".join(entries)


def _count(body: bytes, size: int) -> int:
    """How many entries of `size` bytes the body has; it must have as many as it says."""
    if len(body) < _COUNTED.size:
        raise TruncatedMessageError("the count is missing", length=len(body))
    count, _ = _COUNTED.unpack_from(body)
    if count > BATCH:
        raise BadLengthError(f"more than {BATCH} entries", length=count, field="count")
    _exact(len(body), _COUNTED.size + count * size)
    return int(count)


def _parse_counted(body: bytes, size: int) -> list[bytes]:
    """Split a body of a count and so many entries of `size` bytes."""
    _count(body, size)
    return [body[at : at + size] for at in range(_COUNTED.size, len(body), size)]


@dataclass(frozen=True, slots=True)
class HeldSocket:
    """A socket by its token; `unix` says that it is a Unix-domain one.

    Client tokens count up from 1 and have bit 63 clear; pgbouncer makes server tokens, bit 63 set.
    """

    token: int
    unix: bool = False

    def build(self) -> bytes:
        return _SOCKET.pack(self.token, self.unix, 0)

    @classmethod
    def parse(cls, entry: bytes) -> Self:
        token, unix, _ = _SOCKET.unpack(entry)
        if token == 0:
            raise InvalidValueError("no socket has the token 0", field="token")
        return cls(token, _flag(unix, "unix_socket"))


@dataclass(frozen=True, slots=True)
class Hello(Body):
    """A pgbouncer introduces itself.  Descriptor: its ledger, if it is `Role.SERVING`.

    `slots`, `iobufs`, `units` (of the heap) and `pkt_buf` (bytes) are what it wants of a new
    ledger.  `pid` is as pgbouncer sees it, so never to be trusted: SO_PEERCRED knows better.
    `incarnation`, `last_token` (highest client token used) and `sockets` (how many it will
    register) are 0 unless it is serving, and `format`, in which it writes its ledger.  It reads and
    writes the ledger formats `format_oldest` to `format_version`; `signature` is the newest one's.
    `features` are bits of `Feature`; who knows of none has zeros there.
    """

    TYPE: ClassVar = MessageType.HELLO

    format_version: int
    signature: int
    slots: int
    iobufs: int
    units: int
    pkt_buf: int
    max_client_conn: int
    role: Role = Role.SUCCESSOR
    pid: int = 0
    incarnation: int = 0
    last_token: int = 0
    sockets: int = 0
    format_oldest: int = 0
    format: int = 0
    pgbouncer_version: str = ""
    features: int = 0

    def build(self) -> bytes:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["pgbouncer_version"] = self.pgbouncer_version.encode("ascii", "replace")
        return layouts.HELLO.build(**fields)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        fields = _fixed(layouts.HELLO, body)
        try:
            fields["role"] = Role(fields["role"])
        except ValueError:
            raise InvalidValueError("unknown role", field="role") from None
        version: bytes = fields["pgbouncer_version"]
        fields["pgbouncer_version"] = version.partition(b"\0")[0].decode("ascii", "replace")
        return cls(**fields)

    def descriptors(self) -> range:
        return range(2)


@dataclass(frozen=True, slots=True)
class _Sockets(Body):
    sockets: tuple[HeldSocket, ...]

    def build(self) -> bytes:
        return _build_counted([entry.build() for entry in self.sockets])

    @classmethod
    def parse(cls, body: bytes) -> Self:
        return cls(
            tuple(HeldSocket.parse(entry) for entry in _parse_counted(body, layouts.SOCKET.size))
        )

    def descriptors(self) -> range:
        return range(len(self.sockets), len(self.sockets) + 1)


@dataclass(frozen=True, slots=True)
class Register(_Sockets):
    """pgbouncer gives duplicates of sockets to be held.  Descriptors: one a socket."""

    TYPE: ClassVar = MessageType.REGISTER


@dataclass(frozen=True, slots=True)
class Sockets(_Sockets):
    """The hanger hands held sockets to the one that will adopt.  Descriptors: one a socket.

    One with `Feature.FORGETS` may get them from WELCOME on.
    """

    TYPE: ClassVar = MessageType.SOCKETS


@dataclass(frozen=True, slots=True)
class Client(Body):
    """The hanger accepted a new client.  Descriptor: its socket.

    `fresh` says that nothing was read from it or written to it since, so that pgbouncer need not
    ask the kernel how much.
    """

    TYPE: ClassVar = MessageType.CLIENT

    socket: HeldSocket
    fresh: bool = False

    def build(self) -> bytes:
        return self.body(self.socket.token, unix=self.socket.unix, fresh=self.fresh)

    @staticmethod
    def body(token: int, *, unix: bool, fresh: bool) -> bytes:
        """What `build` gives, without an object."""
        return _ONE + _SOCKET.pack(token, unix, fresh)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        entries = _parse_counted(body, layouts.SOCKET.size)
        if len(entries) != 1:
            raise InvalidValueError("one client a message", length=len(entries), field="count")
        fresh = _SOCKET.unpack(entries[0])[2]
        return cls(HeldSocket.parse(entries[0]), _flag(fresh, "fresh"))

    def descriptors(self) -> range:
        return range(1, 2)


@dataclass(frozen=True, slots=True)
class _Tokens(Body):
    tokens: tuple[int, ...]

    def build(self) -> bytes:
        return _build_counted([_TOKEN.pack(token) for token in self.tokens])

    @classmethod
    def parse(cls, body: bytes) -> Self:
        # One comes for each session that ends.
        count = _count(body, _TOKEN.size)
        return cls(struct.unpack_from(f"={count}Q", body, _COUNTED.size))


@dataclass(frozen=True, slots=True)
class Release(_Tokens):
    """pgbouncer closed these sockets for good: their duplicates are to be closed too."""

    TYPE: ClassVar = MessageType.RELEASE


@dataclass(frozen=True, slots=True)
class Kill(_Tokens):
    """The hanger asks pgbouncer to end these clients; one that it does not know has gone."""

    TYPE: ClassVar = MessageType.KILL


@dataclass(frozen=True, slots=True)
class Forget(_Tokens):
    """The hanger tells who is to adopt that these sockets have ended; no tokens: all begin anew."""

    TYPE: ClassVar = MessageType.FORGET


@dataclass(frozen=True, slots=True)
class Unheld(Body):
    """This session goes on without being held: its duplicate is to be closed."""

    TYPE: ClassVar = MessageType.UNHELD

    token: int
    reason: UnheldReason
    server: bool = False

    def build(self) -> bytes:
        return layouts.UNHELD.build(token=self.token, reason=self.reason, server=int(self.server))

    @classmethod
    def parse(cls, body: bytes) -> Self:
        fields = _fixed(layouts.UNHELD, body)
        try:
            reason = UnheldReason(fields["reason"])
        except ValueError:
            raise InvalidValueError("unknown reason", field="reason") from None
        return cls(fields["token"], reason, _flag(fields["server"], "server"))


@dataclass(frozen=True, slots=True)
class _Listeners(Body):
    unix: tuple[bool, ...]

    def build(self) -> bytes:
        return _build_counted([_UNIX.pack(int(unix)) for unix in self.unix])

    @classmethod
    def parse(cls, body: bytes) -> Self:
        entries = _parse_counted(body, _UNIX.size)
        return cls(tuple(_flag(_UNIX.unpack(entry)[0], "unix_socket") for entry in entries))

    def descriptors(self) -> range:
        return range(len(self.unix), len(self.unix) + 1)


@dataclass(frozen=True, slots=True)
class Listeners(_Listeners):
    """The hanger gives the listening sockets; `unix` has one truth value for each."""

    TYPE: ClassVar = MessageType.LISTENERS


@dataclass(frozen=True, slots=True)
class ListenersBack(_Listeners):
    """A serving pgbouncer gives its listening sockets to a hanger that is new."""

    TYPE: ClassVar = MessageType.LISTENERS_BACK


@dataclass(frozen=True, slots=True)
class Ready(Body):
    """Adoption is done, or a serving pgbouncer has registered everything.

    `clients` and `servers` were adopted; `lost` counts the clients that could not go on, indexed
    by `Lost`; `adoption_us` is the time from ADOPT to here, microseconds.
    """

    TYPE: ClassVar = MessageType.READY

    incarnation: int
    clients: int
    servers: int
    lost: tuple[int, ...] = (0,) * len(Lost)
    adoption_us: int = 0

    def build(self) -> bytes:
        return layouts.READY.build(
            incarnation=self.incarnation,
            clients=self.clients,
            servers=self.servers,
            lost=self.lost,
            adoption_us=self.adoption_us,
        )

    @classmethod
    def parse(cls, body: bytes) -> Self:
        fields = _fixed(layouts.READY, body)
        del fields["pad"]
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class _Format(Body):
    format: int

    def build(self) -> bytes:
        return layouts.FREEZE.build(format=self.format)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        return cls(_fixed(layouts.FREEZE, body)["format"])


@dataclass(frozen=True, slots=True)
class Frozen(_Format):
    """pgbouncer stands still at a commit, in this format, and waits for THAW or death."""

    TYPE: ClassVar = MessageType.FROZEN


@dataclass(frozen=True, slots=True)
class Farewell(Body):
    """All sessions were ended on purpose (console SHUTDOWN, or RELEASE_ALL)."""

    TYPE: ClassVar = MessageType.FAREWELL


@dataclass(frozen=True, slots=True)
class Draining(Body):
    """Console SHUTDOWN waits until the sessions end: nobody listens from now on."""

    TYPE: ClassVar = MessageType.DRAINING


@dataclass(frozen=True, slots=True)
class Welcome(Body):
    """The hanger accepts a HELLO.  Descriptor: the ledger, unless pgbouncer brought one.

    `incarnation` is what the pgbouncer will be if it adopts, `generation` names the ledger, `held`
    is how many sockets are to come.
    """

    TYPE: ClassVar = MessageType.WELCOME

    incarnation: int
    generation: int
    held: int = 0

    def build(self) -> bytes:
        return layouts.WELCOME.build(
            incarnation=self.incarnation, generation=self.generation, held=self.held
        )

    @classmethod
    def parse(cls, body: bytes) -> Self:
        fields = _fixed(layouts.WELCOME, body)
        del fields["pad"]
        return cls(**fields)

    def descriptors(self) -> range:
        return range(2)


@dataclass(frozen=True, slots=True)
class Refuse(Body):
    """The hanger rejects a HELLO; `text` is the reason, one line."""

    TYPE: ClassVar = MessageType.REFUSE

    text: str

    def build(self) -> bytes:
        if "\n" in self.text or "\0" in self.text:
            raise LocalProtocolError("not one line", message="REFUSE", field="text")
        return self.text.encode(errors="replace")

    @classmethod
    def parse(cls, body: bytes) -> Self:
        return cls(" ".join(body.partition(b"\0")[0].decode(errors="replace").split()))


@dataclass(frozen=True, slots=True)
class Adopt(Body):
    """Everything was sent: adopt now.

    `down_us` is how long nobody served, microseconds; PgBouncer adds it to waiting and login
    deadlines, so that the outage counts against nobody.  The ledger is read and written in
    `format`.
    """

    TYPE: ClassVar = MessageType.ADOPT

    incarnation: int
    down_us: int
    format: int

    def build(self) -> bytes:
        return layouts.ADOPT.build(
            incarnation=self.incarnation, down_us=self.down_us, format=self.format
        )

    @classmethod
    def parse(cls, body: bytes) -> Self:
        fields = _fixed(layouts.ADOPT, body)
        del fields["pad"]
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Freeze(_Format):
    """The hanger asks pgbouncer to stand still at a commit, and to write that in this format.

    One that cannot says so in its FROZEN.
    """

    TYPE: ClassVar = MessageType.FREEZE


@dataclass(frozen=True, slots=True)
class Thaw(Body):
    """The hanger lets a frozen pgbouncer go on."""

    TYPE: ClassVar = MessageType.THAW


@dataclass(frozen=True, slots=True)
class ReleaseAll(Body):
    """The hanger asks pgbouncer to say goodbye to every client and to exit."""

    TYPE: ClassVar = MessageType.RELEASE_ALL
