"""Constants, enumerations and structs of control messages.

Source: `patches/keeper/control.h`; a test compares every size, offset and constant with what the
C compiler says.  `protocol.control` gives all of this and the messages made of it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from protocol.layout import U16, U32, U64, Layout, array, bytes_, record

CONTROL_MAGIC: Final = 0x6B706770
"""First word of every message: "pgpk"."""
CONTROL_VERSION: Final = 1
BATCH: Final = 64
"""Tokens, and so descriptors, a message may carry; the kernel's own limit is 253."""
MESSAGE_MAX: Final = 4096
"""Bytes a message may have, head included."""


class MessageType(IntEnum):
    """`enum KeeperMessageType`: below 32 from pgbouncer, from 32 on from the hanger."""

    HELLO = 1
    REGISTER = 2
    RELEASE = 3
    UNHELD = 4
    LISTENERS_BACK = 5
    READY = 6
    FROZEN = 7
    FAREWELL = 8
    DRAINING = 9
    WELCOME = 32
    REFUSE = 33
    LISTENERS = 34
    SOCKETS = 35
    ADOPT = 36
    CLIENT = 37
    FREEZE = 38
    THAW = 39
    RELEASE_ALL = 40
    KILL = 41
    FORGET = 42


class Role(IntEnum):
    """`enum KeeperRole`: what a pgbouncer that says HELLO wants."""

    SUCCESSOR = 0
    """To adopt: at once, or as a standby when told."""
    SERVING = 1
    """It lost its hanger and serves; it brings its ledger."""


class Feature(IntEnum):
    """`enum KeeperFeature`: bits of what a pgbouncer knows that others may not know."""

    FORGETS = 1
    """It keeps the sockets that it is sent before ADOPT, until FORGET or ADOPT."""


class UnheldReason(IntEnum):
    """`enum KeeperUnheldReason`: why a session cannot be held."""

    TLS = 1
    LEDGER_FULL = 2
    CONSOLE = 3
    HANGER_BUSY = 4


class Lost(IntEnum):
    """`enum KeeperLost`: why a client could not go on at an adoption; index of `Ready.lost`."""

    IN_FLIGHT = 0
    DAMAGED = 1
    CONFIG = 2
    CONSOLE = 3
    RESOURCES = 4


HEAD = Layout("KeeperMessage", record(magic=U32, version=U16, type=U16))
HELLO = Layout(
    "KeeperHello",
    record(
        format_version=U32,
        role=U32,
        signature=U64,
        pid=U64,
        incarnation=U64,
        last_token=U64,
        slots=U32,
        iobufs=U32,
        units=U32,
        pkt_buf=U32,
        max_client_conn=U32,
        sockets=U32,
        format_oldest=U32,
        format=U32,
        pgbouncer_version=bytes_(28),
        features=U32,
    ),
)
WELCOME = Layout("KeeperWelcome", record(incarnation=U64, generation=U64, held=U32, pad=U32))
SOCKET = Layout("KeeperSockets.socket", record(token=U64, unix_socket=U32, fresh=U32))
SOCKETS = Layout("KeeperSockets", record(count=U32, pad=U32, socket=array(BATCH, SOCKET)))
TOKENS = Layout("KeeperTokens", record(count=U32, pad=U32, token=array(BATCH, U64)))
UNHELD = Layout("KeeperUnheld", record(token=U64, reason=U32, server=U32))
LISTENERS = Layout("KeeperListeners", record(count=U32, pad=U32, unix_socket=array(BATCH, U32)))
ADOPT = Layout("KeeperAdopt", record(incarnation=U64, down_us=U64, format=U32, pad=U32))
FREEZE = Layout("KeeperFreeze", record(format=U32, pad=U32))
READY = Layout(
    "KeeperReady",
    record(
        incarnation=U64,
        clients=U32,
        servers=U32,
        lost=array(len(Lost), U32),
        pad=U32,
        adoption_us=U64,
    ),
)

LAYOUTS: Final = (
    HEAD,
    HELLO,
    WELCOME,
    SOCKET,
    SOCKETS,
    TOKENS,
    UNHELD,
    LISTENERS,
    ADOPT,
    FREEZE,
    READY,
)
"""Every struct of control.h."""
