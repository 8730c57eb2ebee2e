"""What stands in a ledger, as frozen dataclasses.

Field names and meaning are format.h's; `docs/ledger-format.md` explains them one by one.  Times are
microseconds since 1970 unless said otherwise.  Secrets, query texts and cancel keys are kept out of
every repr.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from protocol.errors import ProtocolError
from protocol.ledger_layouts import (
    GLOBAL_RECORD,
    NULL_STRING,
    POOL_RECORD,
    SOCKET_RECORD,
    USER_RECORD,
    Act,
    Credentials,
    Flag,
    Kind,
    PacketAction,
    PacketFlag,
    RequestAction,
    SocketState,
    WaitType,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.layout import Layout

_E = TypeVar("_E", bound=IntEnum)


class LedgerDamaged(ProtocolError):  # noqa: N818 - the name says what the ledger is
    """The bytes of a ledger are not what format.h allows.

    Attributes:
        slot: number of the slot at fault, 0 where it is the ledger as a whole.
        what: what is wrong, without any content.
    """

    def __init__(self, slot: int, what: str) -> None:
        self.slot = slot
        self.what = what
        super().__init__(f"slot {slot}: {what}" if slot else what)


class LedgerMismatch(LedgerDamaged):
    """A ledger of another format; the text names both.

    Attributes:
        field: name of the header's field.
        found: what the ledger has there.
        expected: what this pgkeeper reads.
    """

    def __init__(self, field: str, found: int, expected: int) -> None:
        self.field = field
        self.found = found
        self.expected = expected
        super().__init__(0, f"{field} is {found:#x}, this pgkeeper reads {expected:#x}")


def checked(slot: int, kind: type[_E], value: int, name: str) -> _E:
    """Give an enumeration's member for a value; LedgerDamaged if it has none."""
    try:
        return kind(value)
    except ValueError:
        raise LedgerDamaged(slot, f"{name} is {value}") from None


@dataclass(frozen=True, slots=True)
class Header:
    """KeeperHeader without its act records and spare bytes."""

    magic: int
    version: int
    header_size: int
    signature: int
    size: int
    slots: int
    iobufs: int
    iobuf_size: int
    pkt_buf: int
    units: int
    layout: int
    slot_offset: int
    iobuf_offset: int
    heap_offset: int
    generation: int
    incarnation: int
    commit: int
    heartbeat: int
    server_token: int
    query_id: int
    socket_id: int
    used_slots: int
    used_iobufs: int
    used_units: int


@dataclass(frozen=True, slots=True)
class ActRecord:
    """KeeperActRecord: what may have been done beyond the commit word, and on which slot."""

    epoch: int
    watermark: int
    act: Act
    slot: int
    source: int
    format: int


@dataclass(frozen=True, slots=True)
class Copy:
    """KeeperCopy: one committed state of a slot."""

    epoch: int
    token: int
    rx: int
    tx: int
    kind: Kind
    state: SocketState
    wait_type: WaitType
    pkt_action: PacketAction
    flags: Flag
    link: int
    dst: int
    io: int
    io_done: int
    io_parse: int
    io_recv: int
    pkt_remain: int
    skip_remain: int
    outbox: int
    outbox_done: int
    outbox_len: int
    extra: int
    record: int
    requests: int
    query_start: int
    xact_start: int
    request_time: int
    wait_start: int
    pool: int
    doom: int
    canceled_server: int
    extra_done: int
    n_requests: int
    request: bytes

    @property
    def is_socket(self) -> bool:
        """Say whether the slot stands for a socket; pools, users and the globals do not."""
        return self.kind in (Kind.CLIENT, Kind.SERVER, Kind.CLOSING)

    @property
    def own_io(self) -> int:
        """The IOBuf of what was read from the socket, 0 if none.

        With `Flag.HANDED` `io` is what is to be written to it.  That may have left, and the IOBuf
        be another's: only the kernel knows.
        """
        return 0 if self.flags & Flag.HANDED else self.io


@dataclass(frozen=True, slots=True)
class Figures:
    """What KeeperSlot has beside its copies: kernel baselines and Unix-domain byte counts."""

    base_rx: int
    base_tx: int
    unix_rx: int
    unix_tx: int
    unix_busy: int


@dataclass(frozen=True, slots=True)
class Request:
    """An outstanding request: its message type (one byte) and what becomes of its response."""

    type: bytes
    action: RequestAction
    closing: bool = False
    query_id: int = 0
    statement: int = 0


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A prepared statement that a socket knows; `name` is the client's, empty for a server's."""

    query_id: int
    statement: int
    name: str


@dataclass(frozen=True, slots=True)
class SocketRecord:
    """KeeperSocketRecord and its strings: what seldom changes about a client or a server.

    `credentials` is the name of the login user, `credentials_database` where it was learnt,
    `database` the name of client->db; `variables` are the tracked parameters in the order of
    `GlobalRecord.variables`.
    """

    id: int
    connect_time: int
    catalog: int
    catalog_used: int
    packet: int
    scram: int
    cred_kind: Credentials
    auth_type: int
    replication: int
    packet_flag: PacketFlag
    packet_used: int
    credentials: str | None
    credentials_database: str | None
    database: str | None
    startup_options: str | None
    variables: tuple[str | None, ...]
    cancel_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """KeeperPoolRecord and its strings: a pool, its statistics and its welcome message."""

    peer_id: int
    cred_kind: Credentials
    welcome_ready: bool
    last_lifetime_disconnect: int
    stats: tuple[int, ...]
    database: str | None
    user: str | None
    user_database: str | None
    fingerprint: str | None = field(repr=False)
    variables: tuple[str | None, ...]
    welcome: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class UserRecord:
    """KeeperUserRecord and its strings: credentials that pgbouncer learnt at run time."""

    cred_kind: Credentials
    has_scram_keys: bool
    name: str | None
    database: str | None
    password: str | None = field(repr=False)
    client_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class GlobalRecord:
    """KeeperGlobalRecord and its strings: facts of the whole process.

    `variables` are the names of the tracked parameters, `settings` the console's SETs in force,
    `databases` those that are paused or disabled, with these words.
    """

    mock_nonce_set: bool
    pause_mode: int
    peer_id: int
    shutdown: int
    variables: tuple[str | None, ...]
    databases: tuple[tuple[str | None, str | None], ...]
    settings: tuple[tuple[str | None, str | None], ...] = field(repr=False)
    mock_nonce: bytes = field(repr=False)


Record = SocketRecord | PoolRecord | UserRecord | GlobalRecord

_LENGTH: Final = struct.Struct("=H")


class _Payload:
    """A record's payload: the fixed part, then counted strings one after the other."""

    def __init__(self, slot: int, data: bytes, layout: Layout) -> None:
        self._slot = slot
        self._data = data
        self._at = layout.size
        if len(data) < layout.size:
            raise LedgerDamaged(slot, "its record is too short")
        self.fields: dict[str, Any] = layout.parse(data)

    def take(self, name: str) -> Any:
        return self.fields[name]

    def raw(self) -> bytes | None:
        end = self._at + _LENGTH.size
        if end > len(self._data):
            raise LedgerDamaged(self._slot, "a string of its record is missing")
        (length,) = _LENGTH.unpack_from(self._data, self._at)
        self._at = end
        if length == NULL_STRING:
            return None
        if end + length > len(self._data):
            raise LedgerDamaged(self._slot, "a string of its record is too long")
        self._at = end + length
        return self._data[end : end + length]

    def string(self) -> str | None:
        value = self.raw()
        return None if value is None else value.decode(errors="surrogateescape")

    def strings(self, count: int) -> tuple[str | None, ...]:
        return tuple(self.string() for _ in range(count))

    def pairs(self, count: int) -> tuple[tuple[str | None, str | None], ...]:
        if count > len(self._data):
            raise LedgerDamaged(self._slot, "its record counts more pairs than it can hold")
        return tuple((self.string(), self.string()) for _ in range(count))

    def enum(self, kind: type[_E], name: str) -> _E:
        return checked(self._slot, kind, self.fields[name], name)

    def flag(self, name: str) -> bool:
        return bool(self.fields[name])

    def end(self) -> None:
        if self._at != len(self._data):
            raise LedgerDamaged(self._slot, "its record has more bytes than strings")


def _socket_record(payload: _Payload) -> SocketRecord:
    take = payload.take
    return SocketRecord(
        id=take("id"),
        connect_time=take("connect_time"),
        cancel_key=take("cancel_key"),
        catalog=take("catalog"),
        catalog_used=take("catalog_used"),
        packet=take("packet"),
        scram=take("scram"),
        cred_kind=payload.enum(Credentials, "cred_kind"),
        auth_type=take("auth_type"),
        replication=take("replication"),
        packet_flag=payload.enum(PacketFlag, "packet_flag"),
        packet_used=take("packet_used"),
        credentials=payload.string(),
        credentials_database=payload.string(),
        database=payload.string(),
        startup_options=payload.string(),
        variables=payload.strings(take("n_vars")),
    )


def _pool_record(payload: _Payload) -> PoolRecord:
    take = payload.take
    return PoolRecord(
        peer_id=take("peer_id"),
        cred_kind=payload.enum(Credentials, "cred_kind"),
        welcome_ready=payload.flag("welcome_ready"),
        last_lifetime_disconnect=take("last_lifetime_disconnect"),
        stats=take("stats"),
        database=payload.string(),
        user=payload.string(),
        user_database=payload.string(),
        fingerprint=payload.string(),
        variables=payload.strings(take("n_vars")),
        welcome=payload.raw(),
    )


def _user_record(payload: _Payload) -> UserRecord:
    return UserRecord(
        cred_kind=payload.enum(Credentials, "cred_kind"),
        has_scram_keys=payload.flag("has_scram_keys"),
        client_key=payload.take("client_key"),
        server_key=payload.take("server_key"),
        name=payload.string(),
        database=payload.string(),
        password=payload.string(),
    )


def _global_record(payload: _Payload) -> GlobalRecord:
    take = payload.take
    return GlobalRecord(
        mock_nonce=take("mock_nonce"),
        mock_nonce_set=payload.flag("mock_nonce_set"),
        pause_mode=take("pause_mode"),
        peer_id=take("peer_id"),
        shutdown=take("shutdown"),
        variables=payload.strings(take("n_vars")),
        settings=payload.pairs(take("n_settings")),
        databases=payload.pairs(take("n_databases")),
    )


_READERS: Final[dict[Kind, tuple[Layout, Callable[[_Payload], Record]]]] = {
    Kind.CLIENT: (SOCKET_RECORD, _socket_record),
    Kind.SERVER: (SOCKET_RECORD, _socket_record),
    Kind.CLOSING: (SOCKET_RECORD, _socket_record),
    Kind.POOL: (POOL_RECORD, _pool_record),
    Kind.USER: (USER_RECORD, _user_record),
    Kind.GLOBAL: (GLOBAL_RECORD, _global_record),
}


def parse_record(slot: int, kind: Kind, data: bytes) -> Record:
    """Read the payload of a slot's record blob.

    LedgerDamaged if it does not consist of exactly the fixed part and the strings that `kind` has.
    """
    if kind not in _READERS:
        raise LedgerDamaged(slot, "a free slot has no record")
    layout, read = _READERS[kind]
    payload = _Payload(slot, data, layout)
    record = read(payload)
    payload.end()
    return record
