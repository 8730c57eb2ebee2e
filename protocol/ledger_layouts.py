"""Constants, enumerations and structs of the ledger.

Source: `patches/keeper/format.h`; `docs/ledger-format.md` explains every field, and a test compares
every size, offset and constant with what the C compiler says.  `protocol.ledger` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from protocol.layout import U8, U16, U32, U64, Layout, array, bytes_, record

MAGIC: Final = 0x726567646C6B6770
"""First word of a ledger: "pgkldger"."""
FORMAT_VERSION: Final = 4
FORMAT_OLDEST: Final = 3
"""Which this code still reads."""
FORMAT_LAYOUT: Final = 3
"""Since which no field has moved."""
FORMAT_HANDED: Final = 4
"""Since which `Flag.HANDED` and `Flag.RECV_DUE` may be set."""
HEADER_SIZE: Final = 4096
"""Bytes before the first slot."""
UNIT: Final = 64
"""Bytes in which the heap is given out."""
INLINE_REQUESTS: Final = 22
READS: Final = 16
"""Notes of reads in the header: recvs that may follow a commit without one of their own."""
HANDLED_TOKEN: Final = 1 << 62
"""Set in `KeeperHeader.handled` where it is a token."""
DIED_SENT: Final = 1 << 8
"""Set in `KeeperHeader.died_of` where another process sent the signal."""
NULL_STRING: Final = 0xFFFF
"""Length word of a counted string that is NULL."""
IOBUF_HEAD: Final = 16
"""Bytes of PgBouncer's `struct iobuf` before its data; scratch, the positions are in the slot."""


class Kind(IntEnum):
    """`enum KeeperKind`: what a slot holds."""

    FREE = 0
    CLIENT = 1
    SERVER = 2
    CLOSING = 3
    POOL = 4
    USER = 5
    GLOBAL = 6


class Act(IntEnum):
    """`enum KeeperAct`: which act may lie beyond the commit word."""

    NONE = 0
    RECV = 1
    SEND = 2
    OUTBOX = 3
    CLOSE = 4


class Flag(IntFlag):
    """`enum KeeperFlag`: bits of `Copy.flags`."""

    READY = 1 << 0
    IDLE_TX = 1 << 1
    CLOSE_NEEDED = 1 << 2
    SETTING_VARS = 1 << 3
    RESETTING = 1 << 4
    COPY_MODE = 1 << 5
    QUERY_FAILED = 1 << 6
    WAIT_FOR_WELCOME = 1 << 7
    WAIT_FOR_USER_CONN = 1 << 8
    WAIT_FOR_USER = 1 << 9
    DB_COUNTED = 1 << 10
    USER_COUNTED = 1 << 11
    ADMIN_USER = 1 << 12
    OWN_USER = 1 << 13
    QUEUE_AFTER = 1 << 14
    FLUSH_DUE = 1 << 15
    VOLATILE = 1 << 16
    DOOMED = 1 << 17
    DOOM_NOTIFY = 1 << 18
    UNIX = 1 << 19
    CONSOLE = 1 << 20
    WAIT_FOR_RESPONSE = 1 << 21
    HANDED = 1 << 22
    RECV_DUE = 1 << 23


class BlobKind(IntEnum):
    """`enum KeeperBlobKind`: what a blob of the heap holds."""

    RECORD = 1
    OUTBOX = 2
    EXTRA = 3
    REQUESTS = 4
    CATALOG = 5
    STATEMENT = 6
    PACKET = 7
    DOOM = 8
    SCRAM = 9


APPEND_ONLY: Final = frozenset({BlobKind.OUTBOX, BlobKind.CATALOG, BlobKind.PACKET})
"""Kinds that grow: their referrer says how many bytes count, and the head has no check."""


class Credentials(IntEnum):
    """`enum KeeperCredentials`: where a PgCredentials object is to be found again."""

    NONE = 0
    GLOBAL = 1
    DYNAMIC = 2
    PAM = 3
    FORCED = 4
    MOCK = 5


class SocketState(IntEnum):
    """PgBouncer's `enum SocketState` (bouncer.h), which `Copy.state` holds."""

    CL_FREE = 0
    CL_JUSTFREE = 1
    CL_LOGIN = 2
    CL_WAITING = 3
    CL_WAITING_LOGIN = 4
    CL_ACTIVE = 5
    CL_WAITING_CANCEL = 6
    CL_ACTIVE_CANCEL = 7
    SV_FREE = 8
    SV_JUSTFREE = 9
    SV_LOGIN = 10
    SV_BEING_CANCELED = 11
    SV_IDLE = 12
    SV_ACTIVE = 13
    SV_ACTIVE_CANCEL = 14
    SV_USED = 15
    SV_TESTED = 16


class WaitType(IntEnum):
    """`enum WaitType` of PgBouncer's sbuf.c."""

    NONE = 0
    CONNECT = 1
    RECV = 2
    SEND = 3
    ONCE = 4


class PacketAction(IntEnum):
    """The ACT_ constants of PgBouncer's sbuf.c: what becomes of the current packet."""

    UNSET = 0
    SEND = 1
    SKIP = 2
    CALL = 3


class PacketFlag(IntEnum):
    """`enum PacketCallbackFlag` of PgBouncer's bouncer.h."""

    NONE = 0
    WANT_COMPLETE_PACKET = 1
    HANDLE_COMPLETE_PACKET = 2


class RequestAction(IntEnum):
    """`enum ResponseAction` of PgBouncer's bouncer.h: what becomes of a request's response."""

    FORWARD = 0
    SKIP = 1
    FAKE = 2


COPY: Final = Layout(
    "KeeperCopy",
    record(
        epoch=U64,
        rx=U64,
        tx=U64,
        kind=U8,
        state=U8,
        wait_type=U8,
        pkt_action=U8,
        flags=U32,
        link=U32,
        dst=U32,
        io=U32,
        io_done=U32,
        io_parse=U32,
        io_recv=U32,
        pkt_remain=U32,
        skip_remain=U32,
        query_start=U64,
        xact_start=U64,
        request_time=U64,
        wait_start=U64,
        n_requests=U16,
        request=bytes_(INLINE_REQUESTS),
        check=U64,
        token=U64,
        pool=U32,
        record=U32,
        outbox=U32,
        outbox_done=U32,
        outbox_len=U32,
        doom=U32,
        extra=U32,
        extra_done=U32,
        requests=U32,
        canceled_server=U32,
        spare=array(2, U64),
    ),
)
SLOT: Final = Layout(
    "KeeperSlot",
    record(
        copy=array(2, COPY),
        base_rx=U64,
        base_tx=U64,
        unix_rx=U64,
        unix_tx=U64,
        unix_busy=U64,
        spare=array(3, U64),
    ),
)
ACT: Final = Layout(
    "KeeperActRecord",
    record(epoch=U64, watermark=U64, act=U32, slot=U32, source=U32, format=U32),
)
READ: Final = Layout(
    "KeeperRead", record(epoch=U64, rx=U64, slot=U32, iobuf=U32, position=U32, pad=U32)
)
HEADER: Final = Layout(
    "KeeperHeader",
    record(
        magic=U64,
        version=U32,
        header_size=U32,
        signature=U64,
        size=U64,
        slots=U32,
        iobufs=U32,
        iobuf_size=U32,
        pkt_buf=U32,
        units=U32,
        layout=U32,
        slot_offset=U64,
        iobuf_offset=U64,
        heap_offset=U64,
        generation=U64,
        spare1=bytes_(40),
        incarnation=U64,
        handled=U64,
        spare2=bytes_(48),
        commit=U64,
        act=array(2, ACT),
        spare3=bytes_(56),
        heartbeat=U64,
        server_token=U64,
        query_id=U64,
        socket_id=U64,
        died_of=U32,
        used_slots=U32,
        used_iobufs=U32,
        used_units=U32,
        spare4=bytes_(16),
        read=array(READS, READ),
    ),
)
BLOB: Final = Layout("KeeperBlob", record(units=U32, length=U32, kind=U32, check=U32))
SOCKET_RECORD: Final = Layout(
    "KeeperSocketRecord",
    record(
        id=U64,
        connect_time=U64,
        cancel_key=bytes_(8),
        catalog=U32,
        catalog_used=U32,
        packet=U32,
        scram=U32,
        cred_kind=U8,
        auth_type=U8,
        replication=U8,
        n_vars=U8,
        packet_flag=U8,
        pad=bytes_(3),
        packet_used=U32,
        pad2=U32,
    ),
)
POOL_RECORD: Final = Layout(
    "KeeperPoolRecord",
    record(
        peer_id=U32,
        cred_kind=U8,
        welcome_ready=U8,
        n_vars=U8,
        pad=bytes_(9),
        last_lifetime_disconnect=U64,
        stats=array(11, U64),
    ),
)
USER_RECORD: Final = Layout(
    "KeeperUserRecord",
    record(
        cred_kind=U8,
        has_scram_keys=U8,
        pad=bytes_(6),
        client_key=bytes_(32),
        server_key=bytes_(32),
    ),
)
GLOBAL_RECORD: Final = Layout(
    "KeeperGlobalRecord",
    record(
        mock_nonce=bytes_(32),
        mock_nonce_set=U8,
        pause_mode=U8,
        n_vars=U8,
        pad=U8,
        n_settings=U32,
        peer_id=U32,
        shutdown=U32,
        n_databases=U32,
        pad2=U32,
    ),
)
CATALOG_ENTRY: Final = Layout(
    "KeeperCatalogEntry", record(query_id=U64, statement=U32, name_length=U16, check=U16)
)
REQUEST: Final = Layout(
    "KeeperRequest",
    record(type=U8, action=U8, closing=U8, pad=bytes_(5), query_id=U64, statement=U32, pad2=U32),
)

LAYOUTS: Final = (
    COPY,
    SLOT,
    ACT,
    READ,
    HEADER,
    BLOB,
    SOCKET_RECORD,
    POOL_RECORD,
    USER_RECORD,
    GLOBAL_RECORD,
    CATALOG_ENTRY,
    REQUEST,
)
"""Every struct of format.h, in its order."""

_PAGE: Final = 4096


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a ledger is laid out, from the four numbers that decide it.

    `slots`, `iobufs` and heap `units` are counts, `pkt_buf` bytes.  store.c computes the same.
    """

    slots: int
    iobufs: int
    pkt_buf: int
    units: int

    @property
    def iobuf_size(self) -> int:
        """Bytes from one IOBuf to the next: its head and the data, whole lines."""
        return _round_up(IOBUF_HEAD + self.pkt_buf, 64)

    @property
    def slot_offset(self) -> int:
        """Bytes before slot 1."""
        return HEADER_SIZE

    @property
    def iobuf_offset(self) -> int:
        """Bytes before IOBuf 1; on a page."""
        return _round_up(self.slot_offset + self.slots * SLOT.size, _PAGE)

    @property
    def heap_offset(self) -> int:
        """Bytes before unit 1; on a page."""
        return _round_up(self.iobuf_offset + self.iobufs * self.iobuf_size, _PAGE)

    @property
    def size(self) -> int:
        """Bytes of the whole ledger; whole pages."""
        return _round_up(self.heap_offset + self.units * UNIT, _PAGE)
