"""Clients that send nonsense, in two parts with a kill between them.

Whatever it is, the kept PgBouncer must answer it as the unpatched one does that nobody kills, byte
for byte, and no other session may notice.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, wait_until
from testbed.bystander import Bystander
from testbed.errors import ConnectionLostError
from testbed.ledgers import check_ledger
from testbed.rawclient import frontend, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed import Bouncer, Keeper
    from testbed.pooler import Pooler
    from tests.fix_bouncer import MakeBouncer
    from tests.fix_keeper import MakeKeeper

# Some of it must make them give up early: a login that hangs is none of these.
SETTINGS: dict[str, str | int | None] = {"max_prepared_statements": 10, "max_packet_size": 100_000}


def startup(*pairs: str, version: int = 196608) -> bytes:
    """A StartupMessage with these parameters."""
    return frontend("", struct.pack("!i", version), *(text(word) for word in pairs), b"\0")


LOGIN = startup("user", "postgres", "database", "transaction")
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
GSS_REQUEST = struct.pack("!ii", 8, 80877104)
BIND = frontend("B", text(""), text("no"), bytes(6))
NOISE = random.Random(1).randbytes(3000)

BEFORE_LOGIN = {
    "half-a-startup": (LOGIN[:11], LOGIN[11:]),
    "a-byte-of-a-startup": (LOGIN[:1], LOGIN[1:]),
    "half-a-startup-and-the-end": (LOGIN[:11], b""),
    "http": (b"GET / HTT", b"P/1.0\r\n\r\n"),
    "noise": (NOISE[:8], NOISE[8:]),
    "zeros": (bytes(4), bytes(4)),
    "a-startup-of-three-bytes": (b"\0\0", b"\0\3"),
    "a-length-of-gigabytes": (b"\x7f\xff", b"\xff\xff\0\3\0\0"),
    "a-negative-length": (b"\xff\xff", b"\xff\xff\0\3\0\0"),
    "protocol-2": (b"\0\0\1\x28", b"\0\2\0\0" + bytes(288)),
    "protocol-3-99": (startup("user", "postgres", version=196608 + 99)[:8], b"user\0postgres\0\0"),
    "no-user": (startup("database", "transaction")[:9], startup("database", "transaction")[9:]),
    "no-such-database": (
        startup("user", "postgres", "database", "none")[:9],
        startup("user", "postgres", "database", "none")[9:],
    ),
    "no-such-parameter": (
        startup("user", "postgres", "database", "transaction", "nonsense", "1")[:9],
        startup("user", "postgres", "database", "transaction", "nonsense", "1")[9:],
    ),
    "ssl-and-then-a-login": (SSL_REQUEST, LOGIN),
    "gss-and-then-a-login": (GSS_REQUEST, LOGIN),
    "a-cancel-of-nobody": (struct.pack("!ii", 16, 80877102), bytes(8)),
    "a-cancel-that-is-cut": (struct.pack("!ii", 16, 80877102), b"\0\0"),
    "a-password-that-nobody-asked-for": (b"p", b"\0\0\0\x08abc\0"),
}

AFTER_LOGIN = {
    "an-unknown-message": (b"?", b"\0\0\0\4"),
    "a-backend-message": (b"Z\0\0", b"\0\5I"),
    "a-length-below-the-least": (b"Q\0\0", b"\0\3"),
    "a-length-of-gigabytes": (b"Q\x7f", b"\xff\xff\xffSELECT"),
    "a-negative-length": (b"Q\xff", b"\xff\xff\xffSELECT"),
    "a-packet-beyond-max_packet_size": (b"Q\0", b"\2\0\0" + b"x" * 2000),
    "half-a-query": (b"Q\0\0\0\x0dSEL", b"ECT 1\0"),
    "half-a-query-and-the-end": (b"Q\0\0\0\x0dSEL", b""),
    "a-query-that-does-not-end": (b"Q\0\0\0\x0dSEL", b"ECT 11"),
    "noise": (NOISE[:8], NOISE[8:]),
    "a-bind-of-nothing": (BIND[:4], BIND[4:] + frontend("S")),
    "a-describe-of-nothing": (frontend("D", b"S", text("no")), frontend("S")),
    "a-close-of-nothing": (frontend("C", b"S", text("no")), frontend("S")),
    "a-parse-that-lies": (b"P\0\0\0\x0ca", b"bcdefg"),
    "copy-data-for-nobody": (frontend("d", b"abc")[:6], frontend("d", b"abc")[6:]),
    "a-password-that-comes-late": (b"p\0\0", b"\0\x08abc\0"),
    "half-a-terminate": (b"X\0", b"\0\0\4"),
}

# Answered by nothing but patience.
INCOMPLETE = {
    "half-a-startup-and-the-end",
    "half-a-query-and-the-end",
    "a-query-that-does-not-end",
    "a-startup-of-three-bytes",
    "a-cancel-that-is-cut",
    "a-parse-that-lies",
    "copy-data-for-nobody",
}


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Iterator[Keeper]:
    kept = make_keeper(settings=SETTINGS)
    with Bystander(kept):
        yield kept
    wait_until(lambda: kept.status().sessions.clients_held == 0, what="all have been released")
    check_ledger(kept)


@pytest.fixture
def vanilla_bouncer(make_vanilla_bouncer: MakeBouncer) -> Bouncer:
    bouncer = make_vanilla_bouncer(settings=SETTINGS)
    # The first client of all waits for a server; if it is gone before that, it is told less.
    bouncer.sql("SELECT 1")
    return bouncer


def test_nonsense_before_the_login(keeper: Keeper, vanilla_bouncer: Bouncer) -> None:
    compare(keeper, vanilla_bouncer, BEFORE_LOGIN, log_in=False)


def test_nonsense_after_the_login(keeper: Keeper, vanilla_bouncer: Bouncer) -> None:
    compare(keeper, vanilla_bouncer, AFTER_LOGIN, log_in=True)


def test_a_login_with_every_cut(keeper: Keeper, vanilla_bouncer: Bouncer) -> None:
    """The same login, killed after each of its bytes."""
    cuts = {str(at): (LOGIN[:at], LOGIN[at:]) for at in range(0, len(LOGIN) + 1)}
    compare(keeper, vanilla_bouncer, cuts, log_in=False)


def test_one_that_says_nothing(keeper: Keeper) -> None:
    """It is there over a kill, and may speak afterwards."""
    with RawClient(keeper.host, keeper.port) as client:
        keeper.kill_bouncer()
        client.login()
        assert client.query("SELECT 1") == [("1",)]


def compare(
    keeper: Keeper,
    bouncer: Bouncer,
    cases: dict[str, tuple[bytes, bytes]],
    *,
    log_in: bool,
) -> None:
    """Both answer all of it in the same way, which is not always nothing."""
    said = {}
    for name, parts in cases.items():
        options = {"log_in": log_in, "incomplete": name in INCOMPLETE}
        expected = conversation(bouncer, parts, lambda: None, **options)
        got = conversation(keeper, parts, keeper.kill_bouncer, **options)
        assert got == expected, name
        said[name] = got
    assert any(answer for answer, _ in said.values())


def conversation(
    pooler: Pooler,
    parts: tuple[bytes, bytes],
    between: Callable[[], object],
    *,
    log_in: bool,
    incomplete: bool,
) -> tuple[list[str], str]:
    """The answers to both parts, and how it ended; what differs from login to login is left out.

    Those that are `incomplete` are followed by the client's end.
    """
    with RawClient(pooler.host, pooler.port) as client:
        if log_in:
            client.login()
        client.send(parts[0])
        between()
        # Who asks for TLS waits for the answer: bytes behind the request would be an attack.
        asked = parts[0] in (SSL_REQUEST, GSS_REQUEST)
        lines = [f"no TLS: {client.read_bytes(1)!r}"] if asked else []
        # It may have been closed for the first part.
        with contextlib.suppress(ConnectionLostError, OSError):
            client.send(parts[1])
            if incomplete:
                client.socket.shutdown(socket.SHUT_WR)
        return listen(client, lines)


def listen(client: RawClient, lines: list[str]) -> tuple[list[str], str]:
    """`lines` and all up to ReadyForQuery or the end, a line a message, and which end it was."""
    try:
        while True:
            message = client.read_any()
            body = message.body if message.kind not in "KS" else b""
            lines.append(f"{message.kind} {body!r}")
            if message.kind == "Z":
                return lines, "ready"
    except ConnectionLostError:
        return lines, "closed"
