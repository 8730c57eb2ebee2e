"""Messages between pgbouncer and the hanger, on the connection to `keeper_socket`.

Source of the layout: `patches/keeper/control.h`; a test compares every size, offset and constant
with what the C compiler says.  The connection is a Unix-domain SOCK_SEQPACKET one: one datagram is
one message, and descriptors travel beside it (SCM_RIGHTS) in the order of the tokens.

`encode` and `decode` are pure.  How many descriptors belong to a message says `descriptors`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from protocol.control_layouts import (
    BATCH,
    CONTROL_MAGIC,
    CONTROL_VERSION,
    HEAD,
    LAYOUTS,
    MESSAGE_MAX,
    Feature,
    Lost,
    MessageType,
    Role,
    UnheldReason,
)
from protocol.control_messages import (
    Adopt,
    Client,
    Draining,
    Farewell,
    Forget,
    Freeze,
    Frozen,
    HeldSocket,
    Hello,
    Kill,
    Listeners,
    ListenersBack,
    Ready,
    Refuse,
    Register,
    Release,
    ReleaseAll,
    Sockets,
    Thaw,
    Unheld,
    Welcome,
)
from protocol.errors import (
    BadLengthError,
    InvalidValueError,
    LocalProtocolError,
    TruncatedMessageError,
    UnknownMessageTypeError,
)

if TYPE_CHECKING:
    from protocol.layout import Buffer

__all__ = [
    "BATCH",
    "CONTROL_MAGIC",
    "CONTROL_VERSION",
    "LAYOUTS",
    "MESSAGE_MAX",
    "Adopt",
    "Client",
    "Draining",
    "Farewell",
    "Feature",
    "Forget",
    "Freeze",
    "Frozen",
    "HeldSocket",
    "Hello",
    "Kill",
    "Listeners",
    "ListenersBack",
    "Lost",
    "Message",
    "MessageType",
    "Ready",
    "Refuse",
    "Register",
    "Release",
    "ReleaseAll",
    "Role",
    "Sockets",
    "Thaw",
    "Unheld",
    "UnheldReason",
    "Welcome",
    "decode",
    "descriptors",
    "encode",
    "encode_client",
]

Message = (
    Hello
    | Register
    | Release
    | Unheld
    | ListenersBack
    | Ready
    | Frozen
    | Farewell
    | Draining
    | Welcome
    | Refuse
    | Listeners
    | Sockets
    | Adopt
    | Client
    | Freeze
    | Kill
    | Forget
    | Thaw
    | ReleaseAll
)

_CLASSES: dict[int, type[Message]] = {
    cls.TYPE: cls
    for cls in (
        *(Hello, Register, Release, Unheld, ListenersBack, Ready, Frozen, Farewell, Draining),
        *(
            Welcome,
            Refuse,
            Listeners,
            Sockets,
            Adopt,
            Client,
            Freeze,
            Thaw,
            ReleaseAll,
            Kill,
            Forget,
        ),
    )
}

_HEADS: dict[int, bytes] = {
    number: HEAD.build(magic=CONTROL_MAGIC, version=CONTROL_VERSION, type=number)
    for number in _CLASSES
}
_CLIENT = _HEADS[MessageType.CLIENT]


def encode(message: Message) -> bytes:
    """Give the datagram of a message.

    LocalProtocolError if a value does not fit its field or the message would be longer than
    MESSAGE_MAX.
    """
    name = message.TYPE.name
    try:
        body = message.build()
    except (struct.error, OverflowError):
        raise LocalProtocolError("a value does not fit its field", message=name) from None
    if HEAD.size + len(body) > MESSAGE_MAX:
        raise LocalProtocolError(f"longer than {MESSAGE_MAX} bytes", message=name)
    return _HEADS[message.TYPE] + body


def encode_client(token: int, *, unix: bool, fresh: bool) -> bytes:
    """`encode(Client(HeldSocket(token, unix), fresh))`, in a quarter of the time.

    One is sent for each login.
    """
    return _CLIENT + Client.body(token, unix=unix, fresh=fresh)


def decode(data: Buffer) -> Message:
    """Read one datagram.

    RemoteProtocolError (one of its subclasses) if it is not exactly one valid message: wrong magic
    or version, unknown type, a length that does not agree with its type, a value out of range.
    """
    if len(data) > MESSAGE_MAX:
        raise BadLengthError(f"longer than {MESSAGE_MAX} bytes", length=len(data))
    if len(data) < HEAD.size:
        raise TruncatedMessageError("the head is missing", length=len(data))
    magic, version, kind = HEAD.read(data)
    if magic != CONTROL_MAGIC:
        raise InvalidValueError("not a message of pgkeeper", field="magic")
    if version != CONTROL_VERSION:
        raise InvalidValueError(
            f"control version {version}, this pgkeeper speaks {CONTROL_VERSION}",
            field="version",
        )
    cls = _CLASSES.get(kind)
    if cls is None:
        raise UnknownMessageTypeError(f"unknown message type {kind}", field="type")
    return cls.parse(bytes(data[HEAD.size :]))


def descriptors(message: Message) -> range:
    """Say how many descriptors may come with a message: `len(fds) in descriptors(message)`."""
    return message.descriptors()
