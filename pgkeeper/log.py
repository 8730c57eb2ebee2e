"""Logs of the hanger: structured, to stderr, without secrets.

Whoever handles something logs it, with a name from `Event` and the facts as keys:
`log.warning(Event.SESSION_LOST, token=token, reason=reason)`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping
    from typing import TextIO

__all__ = ["LEVELS", "REDACTED", "Event", "Logger", "configure", "get_logger", "lines_later"]

LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

#: What stands in a log in place of a secret.
REDACTED: Final = "[redacted]"

# Words of a key (`cancel_key` has two) whose value never reaches a log, whatever it is.
_SECRET_WORDS: Final = frozenset(
    {"auth", "cookie", "credential", "credentials", "key", "keys", "nonce", "passwd"}
    | {"password", "passwords", "proof", "salt", "scram", "secret", "secrets", "verifier"}
)
# Words whose value may be what a client sent; a number (query_timeout, query_id) is harmless.
_TEXT_WORDS: Final = frozenset(
    {"buffer", "bytes", "connstr", "content", "data", "payload"}
    | {"query", "queries", "sql", "statement", "statements"}
)
_MAX_DEPTH: Final = 8


class Event(StrEnum):
    """The names of events.  They are part of the outside contract: people grep for them."""

    # the hanger itself
    HANGER_STARTED = "hanger-started"
    HANGER_STOPPING = "hanger-stopping"
    HANGER_STOPPED = "hanger-stopped"
    CONFIG_WARNING = "config-warning"
    CONFIG_NOTE = "config-note"
    LISTENING = "listening"
    INTERNAL_ERROR = "internal-error"
    # the admin socket
    ADMIN_PAUSED = "admin-paused"
    ADMIN_REFUSED = "admin-refused"
    ADMIN_BAD_REQUEST = "admin-bad-request"
    ADMIN_REQUEST = "admin-request"
    # the metrics
    METRICS_PAUSED = "metrics-paused"


def configure(json: bool = False, level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (stderr), at `level` (a key of `LEVELS`) and above.

    Readable lines, coloured only on a terminal without NO_COLOR; with `json` one JSON object a
    line instead.  Timestamps are UTC, ISO 8601 with microseconds.  Raises `ValueError`.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
    stream = stream or sys.stderr
    renderer: structlog.typing.Processor
    if json:
        renderer = structlog.processors.JSONRenderer(default=str)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            24,  # columns for the event; the name of this argument is another since 25.5
            colors=stream.isatty() and not os.environ.get("NO_COLOR"),
            # The default formatter shows local variables: passwords and queries among them.
            exception_formatter=structlog.dev.plain_traceback,
        )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _stamp,
        redact,
    ]
    if json:
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )


class Logger:
    """structlog's, but for `lines_later`."""

    def __init__(self, bound: Mapping[str, object]) -> None:
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger(**bound)

    def debug(self, event: str, **facts: object) -> None:
        """Of use to developers."""
        self._say("debug", event, facts)

    def info(self, event: str, **facts: object) -> None:
        """As it should be."""
        self._say("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """Somebody may have to do something."""
        self._say("warning", event, facts)

    def error(self, event: str, **facts: object) -> None:
        """Somebody has to do something."""
        self._say("error", event, facts)

    def exception(self, event: str, **facts: object) -> None:
        """An error, with the traceback of the exception that is being handled."""
        if _postponed is not None:
            _write_postponed(_postponed)
        self._log.exception(event, **facts)

    def _say(self, level: str, event: str, facts: dict[str, object]) -> None:
        if _postponed is None:
            self.write(level, event, facts)
        else:
            facts["timestamp"] = time.time()
            _postponed.append((self, level, event, facts))

    def write(self, level: str, event: str, facts: Mapping[str, object]) -> None:
        """A line, now."""
        getattr(self._log, level)(event, **facts)


_postponed: list[tuple[Logger, str, str, dict[str, object]]] | None = None


@contextlib.contextmanager
def lines_later() -> Iterator[None]:
    """Write what is logged in here when it is over, with the times at which it was logged.

    The first line after some rest takes a third of a millisecond: whoever waits for what is done in
    here is not to wait for its log.
    """
    global _postponed
    if _postponed is not None:
        yield
        return
    lines = _postponed = []
    try:
        yield
    finally:
        _postponed = None
        _write_postponed(lines)


def _write_postponed(lines: list[tuple[Logger, str, str, dict[str, object]]]) -> None:
    for logger, level, event, facts in lines:
        logger.write(level, event, facts)
    lines.clear()


def get_logger(**bound: object) -> Logger:
    """A logger with `bound` in each of its lines, for example `incarnation=3`."""
    return Logger(bound)


def _stamp(
    _logger: Any, _method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """structlog processor: the time, now unless the line was kept back."""
    seconds = event_dict.pop("timestamp", None)
    at = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    event_dict["timestamp"] = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return event_dict


def redact(
    _logger: Any, _method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """structlog processor: replace what may be a secret, at any depth.

    It is a net under code that should not log such values in the first place, so it errs on the
    side of hiding: by the words of the key, and all raw bytes.
    """
    for key, value in event_dict.items():
        if key not in ("event", "exc_info"):
            event_dict[key] = _clean(key, value, 0)
    return event_dict


def _clean(key: object, value: Any, depth: int) -> Any:
    words = frozenset(str(key).lower().replace("-", "_").split("_"))
    if value is not None and not isinstance(value, bool) and words & _SECRET_WORDS:
        return REDACTED
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if words & _TEXT_WORDS or depth >= _MAX_DEPTH:
        return REDACTED
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"[{len(value)} bytes]"
    if isinstance(value, dict):
        return {name: _clean(name, inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean("", inner, depth + 1) for inner in value]
    return value
