"""Authentication: what a backend asks (``R``) and what a frontend answers (``p``).

All requests share one type byte and are told apart by an Int32 code. The answers share one type
byte and *cannot* be told apart: whoever reads them must know which exchange is under way.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

import construct as cs  # type: ignore[import-untyped, unused-ignore]

from protocol.codec import Code32, Format, String, Value, rest, until_zero
from protocol.errors import InvalidValueError, TruncatedMessageError, UnexpectedMessageError
from protocol.messages import BackendMessage, FrontendMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

_CODE: Final = struct.Struct("!I")


def _request(code: int, *declared: Any) -> Format:
    return cs.Struct(cs.Const(code, Code32), *declared)


@dataclass(frozen=True, slots=True)
class AuthenticationRequest(BackendMessage):
    """Any message of type ``R``; `CODE` is the Int32 that tells them apart."""

    TYPE = b"R"
    CODE: ClassVar[int]


@dataclass(frozen=True, slots=True)
class AuthenticationOk(AuthenticationRequest):
    """AuthenticationOk (B): the authentication was successful."""

    CODE = 0
    FORMAT = _request(CODE)


@dataclass(frozen=True, slots=True)
class AuthenticationKerberosV5(AuthenticationRequest):
    """AuthenticationKerberosV5 (B): Kerberos V5 is required; no supported server sends it."""

    CODE = 2
    FORMAT = _request(CODE)


@dataclass(frozen=True, slots=True)
class AuthenticationCleartextPassword(AuthenticationRequest):
    """AuthenticationCleartextPassword (B): a clear-text password is required."""

    CODE = 3
    FORMAT = _request(CODE)


@dataclass(frozen=True, slots=True)
class AuthenticationMD5Password(AuthenticationRequest):
    """AuthenticationMD5Password (B): a password hashed with these 4 bytes is required."""

    CODE = 5
    FORMAT = _request(CODE, "salt" / rest(4, 4))
    salt: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuthenticationGSS(AuthenticationRequest):
    """AuthenticationGSS (B): GSSAPI authentication is required."""

    CODE = 7
    FORMAT = _request(CODE)


@dataclass(frozen=True, slots=True)
class AuthenticationGSSContinue(AuthenticationRequest):
    """AuthenticationGSSContinue (B): GSSAPI or SSPI data for the next step."""

    CODE = 8
    FORMAT = _request(CODE, "data" / rest())
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuthenticationSSPI(AuthenticationRequest):
    """AuthenticationSSPI (B): SSPI authentication is required."""

    CODE = 9
    FORMAT = _request(CODE)


@dataclass(frozen=True, slots=True)
class AuthenticationSASL(AuthenticationRequest):
    """AuthenticationSASL (B): SASL is required; the mechanisms in the server's order."""

    CODE = 10
    FORMAT = _request(CODE, "mechanisms" / until_zero(String))
    mechanisms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuthenticationSASLContinue(AuthenticationRequest):
    """AuthenticationSASLContinue (B): the mechanism's challenge."""

    CODE = 11
    FORMAT = _request(CODE, "data" / rest())
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuthenticationSASLFinal(AuthenticationRequest):
    """AuthenticationSASLFinal (B): the mechanism's additional data on success."""

    CODE = 12
    FORMAT = _request(CODE, "data" / rest())
    data: bytes = field(repr=False)


AUTHENTICATION_REQUESTS: Final[Mapping[int, type[AuthenticationRequest]]] = MappingProxyType(
    {
        request.CODE: request
        for request in (
            AuthenticationOk,
            AuthenticationKerberosV5,
            AuthenticationCleartextPassword,
            AuthenticationMD5Password,
            AuthenticationGSS,
            AuthenticationGSSContinue,
            AuthenticationSSPI,
            AuthenticationSASL,
            AuthenticationSASLContinue,
            AuthenticationSASLFinal,
        )
    }
)
"""Messages of type ``R`` by their code."""


def parse_authentication_request(payload: bytes) -> AuthenticationRequest:
    """Read the payload of a message of type ``R``.

    Raises:
        InvalidValueError: a code that the documentation does not list.
        RemoteProtocolError: as `Message.parse`.
    """
    if len(payload) < _CODE.size:
        raise TruncatedMessageError(
            "no authentication code", type_byte=b"R", length=len(payload), offset=0
        )
    (code,) = _CODE.unpack_from(payload)
    request = AUTHENTICATION_REQUESTS.get(code)
    if request is None:
        raise InvalidValueError(
            f"unknown authentication request {code}", type_byte=b"R", offset=0, field="code"
        )
    return request.parse(payload)


class Exchange(Enum):
    """The step of an authentication that a frontend's next ``p`` message answers."""

    PASSWORD = "password"  # noqa: S105  (the name of a step)
    """After AuthenticationCleartextPassword or AuthenticationMD5Password."""
    SASL_INITIAL = "sasl-initial"
    """After AuthenticationSASL."""
    SASL = "sasl"
    """After AuthenticationSASLContinue."""
    GSS = "gss"
    """After AuthenticationGSS, AuthenticationSSPI or AuthenticationGSSContinue."""


@dataclass(frozen=True, slots=True)
class AuthenticationResponse(FrontendMessage):
    """Any message of type ``p``."""

    TYPE = b"p"


@dataclass(frozen=True, slots=True)
class PasswordMessage(AuthenticationResponse):
    """PasswordMessage (F): the password, clear or as ``md5`` and 32 hexadecimal digits."""

    FORMAT = cs.Struct("password" / String)
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SASLInitialResponse(AuthenticationResponse):
    """SASLInitialResponse (F): the chosen mechanism and its first data, None if there is none."""

    FORMAT = cs.Struct("mechanism" / String, "data" / Value)
    mechanism: str
    data: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class SASLResponse(AuthenticationResponse):
    """SASLResponse (F): the mechanism's next data."""

    FORMAT = cs.Struct("data" / rest())
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class GSSResponse(AuthenticationResponse):
    """GSSResponse (F): GSSAPI or SSPI data."""

    FORMAT = cs.Struct("data" / rest())
    data: bytes = field(repr=False)


AUTHENTICATION_RESPONSES: Final[Mapping[Exchange, type[AuthenticationResponse]]] = MappingProxyType(
    {
        Exchange.PASSWORD: PasswordMessage,
        Exchange.SASL_INITIAL: SASLInitialResponse,
        Exchange.SASL: SASLResponse,
        Exchange.GSS: GSSResponse,
    }
)
"""Messages of type ``p`` by the exchange that is under way."""

EXCHANGE_AFTER: Final[Mapping[type[AuthenticationRequest], Exchange]] = MappingProxyType(
    {
        AuthenticationCleartextPassword: Exchange.PASSWORD,
        AuthenticationMD5Password: Exchange.PASSWORD,
        AuthenticationSASL: Exchange.SASL_INITIAL,
        AuthenticationSASLContinue: Exchange.SASL,
        AuthenticationGSS: Exchange.GSS,
        AuthenticationSSPI: Exchange.GSS,
        AuthenticationGSSContinue: Exchange.GSS,
    }
)
"""Which exchange a request of the backend begins; none after the requests not named here."""


def parse_authentication_response(
    payload: bytes, exchange: Exchange | None
) -> AuthenticationResponse:
    """Read the payload of a message of type ``p`` as the answer in `exchange`.

    Raises:
        UnexpectedMessageError: `exchange` is None, no authentication is under way.
        RemoteProtocolError: as `Message.parse`.
    """
    if exchange is None:
        raise UnexpectedMessageError(
            "an authentication response while none is expected", type_byte=b"p"
        )
    return AUTHENTICATION_RESPONSES[exchange].parse(payload)
