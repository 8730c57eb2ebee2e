"""The lines of the admin socket.

A connection carries one request and its replies, each one line of JSON with a `version` and a
`type` (the dataclass below).  Replies to a request: any number of `Progress` (handoff, release)
or `SessionsBatch` (sessions), then exactly one of the others.
"""

# No postponed annotations: `shape` reads those of the dataclasses at run time.
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from pgkeeper.control.report import (
    HandoffReport,
    ReleaseReport,
    Session,
    Status,
    Top,
    TopQuery,
)
from pgkeeper.control.shape import ShapeError, from_plain, to_plain
from pgkeeper.errors import PgkeeperError

__all__ = [
    "REQUEST_LIMIT",
    "VERSION",
    "ControlProtocolError",
    "Failure",
    "FailureCode",
    "HandoffReply",
    "HandoffRequest",
    "KillReply",
    "KillRequest",
    "Progress",
    "ReleaseReply",
    "ReleaseRequest",
    "Reply",
    "Request",
    "SessionsBatch",
    "SessionsEnd",
    "SessionsRequest",
    "StatusReply",
    "StatusRequest",
    "TopReply",
    "TopRequest",
    "VersionMismatchError",
    "admin_path",
    "decode_reply",
    "decode_request",
    "encode",
]

#: Both sides must speak the same one.
VERSION: Final = 1
#: Bytes of a request, at most, with its line feed.
REQUEST_LIMIT: Final = 64 << 10


class ControlProtocolError(PgkeeperError):
    """A line is not what the protocol allows; `reason` says in which way."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"bad message on the admin socket: {reason}")


class VersionMismatchError(ControlProtocolError):
    """The other side speaks another `version`."""

    def __init__(self, version: object) -> None:
        self.version = version
        shown = version if type(version) is int and 0 <= version < 2**31 else "unknown"
        super().__init__(f"protocol version {shown}, but this side speaks version {VERSION}")


def admin_path(keeper_socket: Path) -> Path:
    """Where the hanger that listens for pgbouncer on `keeper_socket` listens for commands."""
    return Path(f"{keeper_socket}.admin")


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """`pgkeeper status`."""


@dataclass(frozen=True, slots=True)
class SessionsRequest:
    """`pgkeeper sessions`."""


@dataclass(frozen=True, slots=True)
class TopRequest:
    """`pgkeeper top`, each time it looks."""

    query: TopQuery = field(default_factory=TopQuery)


@dataclass(frozen=True, slots=True)
class KillRequest:
    """`pgkeeper top`: end this client, `name` as `token_name` gives it."""

    name: str


@dataclass(frozen=True, slots=True)
class HandoffRequest:
    """`pgkeeper handoff`: absolute paths of the new binary and ini; None keeps the present one."""

    pgbouncer: str | None = None
    ini: str | None = None


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """`pgkeeper release`."""


class FailureCode(StrEnum):
    """Why a request was not carried out."""

    BAD_REQUEST = "bad-request"
    VERSION = "version"
    BUSY = "busy"
    FAILED = "failed"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Failure:
    """The request failed; `message` is one line for the operator."""

    code: FailureCode
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A long request goes on: `step` is its machine-readable name, `text` is for people."""

    step: str
    text: str


@dataclass(frozen=True, slots=True)
class StatusReply:
    """`warnings`: one line each; what the operator ought to change (TLS, for example)."""

    status: Status
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SessionsBatch:
    """Some of the sessions."""

    sessions: list[Session]


@dataclass(frozen=True, slots=True)
class SessionsEnd:
    """All `count` sessions were sent."""

    count: int


@dataclass(frozen=True, slots=True)
class TopReply:
    """How things are; `warnings` as in `StatusReply`."""

    status: Status
    top: Top
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KillReply:
    """pgbouncer was told to end it."""


@dataclass(frozen=True, slots=True)
class HandoffReply:
    """The handoff succeeded."""

    report: HandoffReport


@dataclass(frozen=True, slots=True)
class ReleaseReply:
    """All sessions have been ended."""

    report: ReleaseReport


Request = (
    StatusRequest | SessionsRequest | TopRequest | KillRequest | HandoffRequest | ReleaseRequest
)
Reply = (
    Failure
    | Progress
    | StatusReply
    | SessionsBatch
    | SessionsEnd
    | TopReply
    | KillReply
    | HandoffReply
    | ReleaseReply
)

_REQUESTS: Final[Mapping[str, type[Request]]] = {
    "status": StatusRequest,
    "sessions": SessionsRequest,
    "top": TopRequest,
    "kill": KillRequest,
    "handoff": HandoffRequest,
    "release": ReleaseRequest,
}
_REPLIES: Final[Mapping[str, type[Reply]]] = {
    "failure": Failure,
    "progress": Progress,
    "status": StatusReply,
    "sessions": SessionsBatch,
    "sessions-end": SessionsEnd,
    "top": TopReply,
    "kill": KillReply,
    "handoff": HandoffReply,
    "release": ReleaseReply,
}
_NAMES: Final[Mapping[type, str]] = {
    cls: name for names in (_REQUESTS, _REPLIES) for name, cls in names.items()
}
_M = TypeVar("_M", bound=Request | Reply)


def encode(message: Request | Reply) -> bytes:
    """`message` as a line, with its line feed."""
    head = {"version": VERSION, "type": _NAMES[type(message)]}
    return json.dumps({**head, **to_plain(message)}).encode("ascii") + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in `line`.  Raises `ControlProtocolError`, and nothing else, for any bytes."""
    return _decode(line, _REQUESTS)


def decode_reply(line: bytes) -> Reply:
    """The reply in `line`.  Raises `ControlProtocolError`, and nothing else, for any bytes."""
    return _decode(line, _REPLIES)


def _decode(line: bytes, types: Mapping[str, type[_M]]) -> _M:
    try:
        plain = json.loads(line.decode())
    except (ValueError, RecursionError):  # ValueError: not UTF-8, not JSON, a number too long
        raise ControlProtocolError("not a line of JSON") from None
    if not isinstance(plain, dict):
        raise ControlProtocolError("not a JSON object")
    version = plain.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise VersionMismatchError(version)
    name = plain.pop("type", None)
    cls = types.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ControlProtocolError("unknown type of message")
    try:
        return from_plain(cls, plain)
    except ShapeError as error:
        raise ControlProtocolError(str(error)) from None
