"""Control messages: what C says of the layout, goldens, and nothing but protocol errors."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import control
from protocol.control import (
    BATCH,
    CONTROL_MAGIC,
    MESSAGE_MAX,
    Adopt,
    Client,
    Draining,
    Farewell,
    Feature,
    Forget,
    Freeze,
    Frozen,
    HeldSocket,
    Hello,
    Kill,
    Listeners,
    ListenersBack,
    Lost,
    Message,
    MessageType,
    Ready,
    Refuse,
    Register,
    Release,
    ReleaseAll,
    Role,
    Sockets,
    Thaw,
    Unheld,
    UnheldReason,
    Welcome,
    decode,
    descriptors,
    encode,
    encode_client,
)
from protocol.errors import (
    BadLengthError,
    InvalidValueError,
    LocalProtocolError,
    RemoteProtocolError,
    TrailingBytesError,
    TruncatedMessageError,
    UnknownMessageTypeError,
)
from tests.unit.ledger.headers import Header, Measured, measure

ENUMS = {
    "KeeperMessageType": ("KEEPER_MSG_", MessageType),
    "KeeperRole": ("KEEPER_ROLE_", Role),
    "KeeperFeature": ("KEEPER_FEATURE_", Feature),
    "KeeperUnheldReason": ("KEEPER_UNHELD_", UnheldReason),
    "KeeperLost": ("KEEPER_LOST_", Lost),
}
DEFINES = {
    "KEEPER_CONTROL_MAGIC": CONTROL_MAGIC,
    "KEEPER_CONTROL_VERSION": control.CONTROL_VERSION,
    "KEEPER_BATCH": BATCH,
    "KEEPER_MESSAGE_MAX": MESSAGE_MAX,
}


@pytest.fixture(scope="module")
def header() -> Header:
    return Header.read("control.h")


@pytest.fixture(scope="module")
def measured(header: Header, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measure(header, tmp_path_factory.mktemp("dump"))


def test_every_struct_and_field_is_declared_as_in_c(measured: Measured) -> None:
    assert {layout.name: layout.size for layout in control.LAYOUTS} == measured.sizes
    for layout in control.LAYOUTS:
        declared = [(field.name, field.offset, field.size) for field in layout.fields]
        assert declared == measured.fields[layout.name], layout.name


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations_have_the_same_values(name: str, header: Header, measured: Measured) -> None:
    prefix, enum = ENUMS[name]
    in_c = {text.removeprefix(prefix): measured.constants[text] for text in header.enums[name]}
    if name == "KeeperLost":
        assert in_c.pop("REASONS") == len(Lost)
    assert in_c == {member.name: member.value for member in enum}


def test_every_constant_has_the_same_value(header: Header, measured: Measured) -> None:
    assert {name: measured.constants[name] for name in header.defines} == DEFINES
    assert set(header.enums) == set(ENUMS)


SERVER = 1 << 63

EXAMPLES: dict[str, tuple[Message, bytes, int]] = {
    "hello": (
        Hello(1, 2, 3, 4, 5, 6, 7, Role.SERVING, 8, 9, 10, 11, 12, 13, "1.24.1", 1),
        struct.pack("=II", 1, 1)
        + struct.pack("=4Q", 2, 8, 9, 10)
        + struct.pack("=8I", 3, 4, 5, 6, 7, 11, 12, 13)
        + b"1.24.1".ljust(28, b"\0")
        + struct.pack("=I", 1),
        1,
    ),
    "register": (
        Register((HeldSocket(SERVER | 1, unix=True), HeldSocket(7))),
        struct.pack("=II QII QII", 2, 0, SERVER | 1, 1, 0, 7, 0, 0),
        2,
    ),
    "release": (Release((1, SERVER | 2)), struct.pack("=IIQQ", 2, 0, 1, SERVER | 2), 0),
    "forget": (Forget((1, SERVER | 2)), struct.pack("=IIQQ", 2, 0, 1, SERVER | 2), 0),
    "forget all": (Forget(()), struct.pack("=II", 0, 0), 0),
    "unheld": (Unheld(9, UnheldReason.TLS, server=True), struct.pack("=QII", 9, 1, 1), 0),
    "listeners back": (ListenersBack((True, False)), struct.pack("=4I", 2, 0, 1, 0), 2),
    "ready": (
        Ready(1, 2, 3, (4, 5, 6, 7, 8), 9),
        struct.pack("=QII5IIQ", 1, 2, 3, 4, 5, 6, 7, 8, 0, 9),
        0,
    ),
    "frozen": (Frozen(3), struct.pack("=II", 3, 0), 0),
    "farewell": (Farewell(), b"", 0),
    "draining": (Draining(), b"", 0),
    "welcome": (Welcome(1, 2, 3), struct.pack("=QQII", 1, 2, 3, 0), 1),
    "refuse": (Refuse("format 2, this is 1"), b"format 2, this is 1", 0),
    "listeners": (Listeners((False,)), struct.pack("=III", 1, 0, 0), 1),
    "sockets": (Sockets((HeldSocket(7),)), struct.pack("=IIQII", 1, 0, 7, 0, 0), 1),
    "no sockets": (Sockets(()), struct.pack("=II", 0, 0), 0),
    "adopt": (Adopt(4, 5, 6), struct.pack("=QQII", 4, 5, 6, 0), 0),
    "client": (Client(HeldSocket(7, unix=True)), struct.pack("=IIQII", 1, 0, 7, 1, 0), 1),
    "fresh client": (
        Client(HeldSocket(7), fresh=True),
        struct.pack("=IIQII", 1, 0, 7, 0, 1),
        1,
    ),
    "freeze": (Freeze(4), struct.pack("=II", 4, 0), 0),
    "thaw": (Thaw(), b"", 0),
    "kill": (Kill((7,)), struct.pack("=IIQ", 1, 0, 7), 0),
    "release all": (ReleaseAll(), b"", 0),
}
NAMES = sorted(EXAMPLES)


def _head(kind: int, magic: int = CONTROL_MAGIC, version: int = 1) -> bytes:
    return struct.pack("=IHH", magic, version, kind)


@pytest.mark.parametrize("name", NAMES)
def test_goldens(name: str) -> None:
    message, body, _ = EXAMPLES[name]
    datagram = _head(message.TYPE) + body
    assert encode(message) == datagram
    assert decode(datagram) == message
    assert decode(memoryview(datagram)) == message


def test_there_is_an_example_of_every_type() -> None:
    assert {message.TYPE for message, _, _ in EXAMPLES.values()} == set(MessageType)


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_client_is_encoded_without_objects(unix: bool, fresh: bool) -> None:
    message = Client(HeldSocket(7, unix), fresh)
    assert encode_client(7, unix=unix, fresh=fresh) == encode(message)


@pytest.mark.parametrize("name", NAMES)
def test_descriptors_are_counted(name: str) -> None:
    message, _, count = EXAMPLES[name]
    assert count in descriptors(message)
    assert count + 1 not in descriptors(message)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "refuse"])
def test_every_other_length_is_refused(name: str) -> None:
    message, body, _ = EXAMPLES[name]
    datagram = _head(message.TYPE) + body
    for cut in range(len(datagram)):
        with pytest.raises(TruncatedMessageError):
            decode(datagram[:cut])
    for more in (1, 8, 16):
        with pytest.raises(TrailingBytesError):
            decode(datagram + bytes(more))


def test_strangers_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="not a message of pgkeeper"):
        decode(_head(7, magic=1))
    with pytest.raises(InvalidValueError, match="control version 2, this pgkeeper speaks 1"):
        decode(_head(7, version=2))
    for kind in (0, 10, 31, 43, 65535):
        with pytest.raises(UnknownMessageTypeError, match=str(kind)):
            decode(_head(kind))
    with pytest.raises(BadLengthError):
        decode(_head(MessageType.REFUSE) + b"x" * MESSAGE_MAX)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (MessageType.HELLO, struct.pack("=II", 1, 2) + bytes(96)),
        (MessageType.UNHELD, struct.pack("=QII", 1, 0, 0)),
        (MessageType.UNHELD, struct.pack("=QII", 1, 5, 0)),
        (MessageType.UNHELD, struct.pack("=QII", 1, 1, 2)),
        (MessageType.SOCKETS, struct.pack("=IIQII", 1, 0, 7, 2, 0)),
        (MessageType.SOCKETS, struct.pack("=IIQII", 1, 0, 0, 0, 0)),
        (MessageType.LISTENERS, struct.pack("=III", 1, 0, 2)),
        (MessageType.CLIENT, struct.pack("=II", 0, 0)),
        (MessageType.CLIENT, struct.pack("=IIQII", 1, 0, 7, 0, 2)),
        (MessageType.CLIENT, struct.pack("=II", 2, 0) + struct.pack("=QII", 7, 0, 0) * 2),
    ],
)
def test_values_out_of_range_are_refused(kind: MessageType, body: bytes) -> None:
    with pytest.raises(InvalidValueError):
        decode(_head(kind) + body)


@pytest.mark.parametrize(
    "kind",
    [MessageType.REGISTER, MessageType.SOCKETS, MessageType.RELEASE, MessageType.LISTENERS],
)
def test_a_batch_has_a_limit(kind: MessageType) -> None:
    body = struct.pack("=II", BATCH + 1, 0) + bytes(16 * (BATCH + 1))
    with pytest.raises(BadLengthError):
        decode(_head(kind) + body)


def test_full_batches_fit_a_message() -> None:
    sockets = Sockets(tuple(HeldSocket(token) for token in range(1, BATCH + 1)))
    assert decode(encode(sockets)) == sockets
    assert len(encode(sockets)) <= MESSAGE_MAX


@pytest.mark.parametrize(
    "message",
    [
        Refuse("two\nlines"),
        Refuse("x" * MESSAGE_MAX),
        Release((1,) * (BATCH + 1)),
        Listeners((True,) * (BATCH + 1)),
        Adopt(-1, 0, 3),
        Adopt(1 << 64, 0, 3),
        Ready(1, 2, 3, lost=(1, 2)),
        Hello(1, 2, 3, 4, 5, 6, 7, pgbouncer_version="x" * 29),
    ],
)
def test_what_cannot_be_said_is_a_local_error(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


def test_a_reason_is_one_line_whatever_arrives() -> None:
    message = decode(_head(MessageType.REFUSE) + b"two\nlines \xff\0tail")
    assert message == Refuse("two lines \ufffd")


def test_a_version_is_text_whatever_arrives() -> None:
    message = decode(encode(Hello(1, 2, 3, 4, 5, 6, 7))[:-32] + b"\xff" * 28 + bytes(4))
    assert isinstance(message, Hello)
    assert message.pgbouncer_version == "\ufffd" * 28


@given(st.sampled_from([*MessageType, 99]), st.binary(max_size=200))
def test_random_bodies_only_ever_mean_protocol_errors(kind: int, body: bytes) -> None:
    try:
        message = decode(_head(kind) + body)
    except RemoteProtocolError:
        return
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_random_bytes_only_ever_mean_protocol_errors(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data)
