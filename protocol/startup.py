"""The startup phase: packets without a type byte, and the one-byte answers to two of them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, Self

import construct as cs  # type: ignore[import-untyped, unused-ignore]

from protocol.backend import MAX_SECRET_KEY, MIN_SECRET_KEY
from protocol.codec import Code32, Format, Int32, String, decode, encode, pair, rest, until_zero
from protocol.errors import (
    BadLengthError,
    InvalidValueError,
    LocalProtocolError,
    TruncatedMessageError,
    UnknownMessageTypeError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PROTOCOL_3_0: Final = 3 << 16
PROTOCOL_3_2: Final = 3 << 16 | 2
_MAJOR: Final = 3
_CODE: Final = struct.Struct("!I")


def _request_code(minor: int) -> int:
    return 1234 << 16 | minor


@dataclass(frozen=True, slots=True)
class StartupPacket:
    """A packet of the startup phase; `FORMAT` begins behind the length word."""

    FORMAT: ClassVar[Format]

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Read what follows the length word of a packet of this kind.

        Raises:
            RemoteProtocolError: truncated, too long, or values that are not allowed.
        """
        values = decode(cls.FORMAT, payload, type_byte=None)
        return cls(**{item.name: values[item.name] for item in fields(cls)})

    def build(self) -> bytes:
        """Give the packet as bytes, length word included.

        Raises:
            LocalProtocolError: a field holds what the format cannot express.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        payload = encode(self.FORMAT, values, message=type(self).__name__)
        return _CODE.pack(_CODE.size + len(payload)) + payload


@dataclass(frozen=True, slots=True)
class StartupMessage(StartupPacket):
    """StartupMessage (F): the session's protocol version and parameters.

    Attributes:
        protocol_version: major number in the upper 16 bits, minor in the lower. Only major 3 is
            known; a minor above 2 is for NegotiateProtocolVersion to answer.
        parameters: (name, value) in the order sent; ``user`` is the one the server insists on.
    """

    FORMAT = cs.Struct("protocol_version" / Code32, "parameters" / until_zero(pair(String, String)))
    protocol_version: int
    parameters: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Read a StartupMessage.

        Raises:
            InvalidValueError: a major version other than 3.
            RemoteProtocolError: as `StartupPacket.parse`.
        """
        values = decode(cls.FORMAT, payload, type_byte=None)
        packet = cls(values["protocol_version"], values["parameters"])
        if packet.major != _MAJOR:
            raise InvalidValueError(
                f"protocol {packet.major}.{packet.minor} is not known",
                length=len(payload),
                offset=0,
                field="protocol_version",
            )
        return packet

    def build(self) -> bytes:
        """Give the packet as bytes.

        Raises:
            LocalProtocolError: a major version other than 3, an empty parameter name, a zero byte.
        """
        if self.major != _MAJOR:
            raise LocalProtocolError(
                "only major version 3 is known", message="StartupMessage", field="protocol_version"
            )
        return StartupPacket.build(self)

    @property
    def major(self) -> int:
        """The major protocol version."""
        return self.protocol_version >> 16

    @property
    def minor(self) -> int:
        """The minor protocol version."""
        return self.protocol_version & 0xFFFF

    def get(self, name: str) -> str | None:
        """Give a parameter's value, the last one if it comes twice, as the server does."""
        return dict(self.parameters).get(name)


@dataclass(frozen=True, slots=True)
class CancelRequest(StartupPacket):
    """CancelRequest (F): cancel what the named backend runs; a key of 4 to 256 bytes."""

    CODE: ClassVar[int] = _request_code(5678)
    FORMAT = cs.Struct(
        cs.Const(CODE, Code32),
        "process_id" / Int32,
        "secret_key" / rest(MIN_SECRET_KEY, MAX_SECRET_KEY),
    )
    process_id: int
    secret_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SSLRequest(StartupPacket):
    """SSLRequest (F): may TLS begin?"""

    CODE: ClassVar[int] = _request_code(5679)
    FORMAT = cs.Struct(cs.Const(CODE, Code32))


@dataclass(frozen=True, slots=True)
class GSSENCRequest(StartupPacket):
    """GSSENCRequest (F): may GSSAPI encryption begin?"""

    CODE: ClassVar[int] = _request_code(5680)
    FORMAT = cs.Struct(cs.Const(CODE, Code32))


STARTUP_REQUESTS: Final[Mapping[int, type[StartupPacket]]] = MappingProxyType(
    {request.CODE: request for request in (CancelRequest, SSLRequest, GSSENCRequest)}
)
"""Startup packets by request code; any other number is a StartupMessage's version."""


def parse_startup(payload: bytes) -> StartupPacket:
    """Read a packet as `StartupReader` gives it.

    Raises:
        UnknownMessageTypeError: a request code 1234.x that the documentation does not define.
        InvalidValueError: a StartupMessage of a major version other than 3.
        RemoteProtocolError: truncated, too long, a key of a bad size.
    """
    if len(payload) < _CODE.size:
        raise TruncatedMessageError("no request code", length=len(payload), offset=0)
    (code,) = _CODE.unpack_from(payload)
    request = STARTUP_REQUESTS.get(code)
    if request is None and code >> 16 == _request_code(0) >> 16:
        raise UnknownMessageTypeError(
            f"unknown request code {code}", length=len(payload), offset=0, field="code"
        )
    return (request or StartupMessage).parse(payload)


class EncryptionReply(Enum):
    """The byte that answers SSLRequest or GSSENCRequest; ``value`` is what to send."""

    SSL = b"S"
    GSS = b"G"
    REFUSED = b"N"
    ERROR = b"E"
    """No reply but the first byte of an ErrorResponse, and to be read as such. It came before
    any encryption, so its text must not be trusted."""


_GRANTED: Final[Mapping[type[StartupPacket], EncryptionReply]] = MappingProxyType(
    {SSLRequest: EncryptionReply.SSL, GSSENCRequest: EncryptionReply.GSS}
)


def parse_encryption_reply(request: SSLRequest | GSSENCRequest, reply: bytes) -> EncryptionReply:
    """Read the single byte that answers `request`.

    Read exactly one byte from the socket: whatever came with it came in the clear and must not
    be taken for encrypted data (CVE-2021-23222).

    Raises:
        BadLengthError: not exactly one byte.
        InvalidValueError: a byte that does not answer this request.
    """
    if len(reply) != 1:
        raise BadLengthError("the reply is a single byte", length=len(reply))
    for known in (_GRANTED[type(request)], EncryptionReply.REFUSED, EncryptionReply.ERROR):
        if reply == known.value:
            return known
    raise InvalidValueError(
        f"not a reply to {type(request).__name__}", type_byte=reply, length=1, offset=0
    )
