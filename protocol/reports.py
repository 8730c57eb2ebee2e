"""ErrorResponse and NoticeResponse: section "Error and Notice Message Fields"."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import construct as cs  # type: ignore[import-untyped, unused-ignore]

from protocol.codec import String, pair, until_zero
from protocol.errors import LocalProtocolError
from protocol.messages import BackendMessage

_SQLSTATE: Final = re.compile(r"[0-9A-Z]{5}")

# Latin-1, so that every byte is one character: unknown field types must be passed over, not
# refused, since later versions may add some.
_FieldType: Final = cs.ExprAdapter(
    cs.Bytes(1), lambda raw, _: raw.decode("latin-1"), lambda text, _: text.encode("latin-1")
)


class Severity(StrEnum):
    """The values of fields S and V; S may be localized, V never is."""

    ERROR = "ERROR"
    FATAL = "FATAL"
    PANIC = "PANIC"
    WARNING = "WARNING"
    NOTICE = "NOTICE"
    DEBUG = "DEBUG"
    INFO = "INFO"
    LOG = "LOG"


@dataclass(frozen=True, slots=True, repr=False)
class Report(BackendMessage):
    """What ErrorResponse and NoticeResponse share.

    `fields` holds (field type, value) in the order sent. The texts stay out of ``repr``: error
    messages quote queries and values.
    """

    FORMAT = cs.Struct("fields" / until_zero(pair(_FieldType, String)))
    fields: tuple[tuple[str, str], ...] = field(repr=False)

    def __repr__(self) -> str:
        """Name severity and SQLSTATE only."""
        return f"{type(self).__name__}(severity={self.severity!r}, sqlstate={self.sqlstate!r})"

    def get(self, field_type: str) -> str | None:
        """Give the first value of this field type, or None."""
        return next((value for code, value in self.fields if code == field_type), None)

    @property
    def severity(self) -> str | None:
        """Field V, or S where the sender gives no V (PgBouncer does not)."""
        return self.get("V") or self.get("S")

    @property
    def sqlstate(self) -> str | None:
        """Field C, five characters (appendix "PostgreSQL Error Codes")."""
        return self.get("C")

    @property
    def message(self) -> str | None:
        """Field M, the primary message; may quote the query."""
        return self.get("M")


@dataclass(frozen=True, slots=True, repr=False)
class ErrorResponse(Report):
    """ErrorResponse (B)."""

    TYPE = b"E"


@dataclass(frozen=True, slots=True, repr=False)
class NoticeResponse(Report):
    """NoticeResponse (B): a warning or notice; may come at any time."""

    TYPE = b"N"


def fatal_error(sqlstate: str, message: str, severity: Severity = Severity.FATAL) -> bytes:
    """Compose an ErrorResponse as bytes, fields S, V, C and M as PostgreSQL orders them.

    Args:
        sqlstate: five digits and capital letters, such as ``57P03``.
        message: the primary message, in one line.
        severity: FATAL tells the client that the connection is closed after it.

    Raises:
        LocalProtocolError: not an SQLSTATE, or a text with a zero byte.
    """
    if not _SQLSTATE.fullmatch(sqlstate):
        raise LocalProtocolError(
            "an SQLSTATE is five digits and capital letters", message="ErrorResponse", field="C"
        )
    level = severity.value
    return ErrorResponse((("S", level), ("V", level), ("C", sqlstate), ("M", message))).build()
