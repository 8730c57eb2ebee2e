"""The lines of the admin socket: round trips, goldens, and anything else than a line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeeper.control import protocol as p
from pgkeeper.control.report import (
    HandoffReport,
    ReleaseReport,
    Top,
    TopQuery,
    TopRow,
    token_name,
)
from tests.fix_admin import SESSIONS, STATUS

REQUESTS = [
    p.StatusRequest(),
    p.SessionsRequest(),
    p.HandoffRequest(),
    p.HandoffRequest(pgbouncer="/opt/a b\n\udcff", ini="/etc/é.ini"),
    p.ReleaseRequest(),
    p.TopRequest(),
    p.TopRequest(TopQuery("all", "age", True, "joe\n\udcff", 100, 20)),
    p.KillRequest("c7"),
]
REPLIES = [
    p.Failure(p.FailureCode.BUSY, "later"),
    p.Progress("start", "starting"),
    p.StatusReply(STATUS, ["careful"]),
    p.SessionsBatch(list(SESSIONS)),
    p.SessionsEnd(3),
    p.HandoffReply(HandoffReport(1, 2, 3, 4, {"damaged": 1}, 0.5)),
    p.ReleaseReply(ReleaseReport(1, 0)),
    p.TopReply(STATUS, Top(9000, 2, [TopRow(SESSIONS[0], None, 0, None)]), ["careful"]),
    p.KillReply(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=repr)
def test_requests_round_trip(request_: p.Request) -> None:
    line = p.encode(request_)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert p.decode_request(line) == request_


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_replies_round_trip(reply: p.Reply) -> None:
    line = p.encode(reply)
    assert line.count(b"\n") == 1
    assert p.decode_reply(line) == reply


def test_golden_lines() -> None:
    assert p.encode(p.HandoffRequest(ini="/x")) == (
        b'{"version": 1, "type": "handoff", "pgbouncer": null, "ini": "/x"}\n'
    )
    assert p.encode(p.Failure(p.FailureCode.BAD_REQUEST, "no")) == (
        b'{"version": 1, "type": "failure", "code": "bad-request", "message": "no"}\n'
    )


def test_the_status_line_is_the_outside_contract() -> None:
    line = json.loads(p.encode(p.StatusReply(STATUS)))
    assert line["status"] == {
        "hanger": {"pid": 4711, "version": "0.1.0", "uptime_s": 11530.25},
        "pgbouncer": {"state": "active", "pid": 4712, "incarnation": 3, "standby_pid": 4720},
        "sessions": {
            "clients_held": 12,
            "servers_held": 1,
            "unheld": {"tls": 2, "ledger-full": 0},
        },
        "adoptions": {"count": 2, "last_ms": 3.4375, "sessions_lost": 1},
        "crashes": {
            "hangs": 1,
            "quarantine": {"ended": {"crash": 2}, "logins_refused": 3, "addresses": 1},
        },
    }


def test_missing_optional_fields_have_their_defaults() -> None:
    assert p.decode_request(b'{"version": 1, "type": "handoff"}') == p.HandoffRequest()


def handoff(**fields: object) -> bytes:
    return json.dumps({"version": 1, "type": "handoff", **fields}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not a line of JSON"),
        (b"\xff", "not a line of JSON"),
        (b"status", "not a line of JSON"),
        (b"[" * 60000, "not a line of JSON"),
        (b"9" * 60000, "not a line of JSON"),
        (b"[]", "not a JSON object"),
        (b"1", "not a JSON object"),
        (b"{}", "protocol version unknown, but this side speaks version 1"),
        (b'{"version": 2}', "protocol version 2, but this side speaks version 1"),
        (b'{"version": true}', "protocol version unknown, but"),
        (b'{"version": 1}', "unknown type of message"),
        (b'{"version": 1, "type": []}', "unknown type of message"),
        (b'{"version": 1, "type": "progress"}', "unknown type of message"),
        (handoff(ini=1), "ini: expected str"),
        (handoff(ini=["/x"]), "ini: expected str"),
        (handoff(inni="/x"), "'inni': no such field"),
        (handoff(**{"\x1b[31m": 1}), r"'\x1b[31m': no such field"),
    ],
)
def test_bad_requests(line: bytes, reason: str) -> None:
    with pytest.raises(p.ControlProtocolError) as caught:
        p.decode_request(line)
    assert reason in caught.value.message
    assert caught.value.message.isprintable()


def test_the_version_is_told() -> None:
    with pytest.raises(p.VersionMismatchError) as caught:
        p.decode_request(b'{"version": 7, "type": "status"}')
    assert caught.value.version == 7


def status_with(path: str, value: object) -> bytes:
    line = json.loads(p.encode(p.StatusReply(STATUS)))
    *parents, last = path.split(".")
    place = line
    for name in parents:
        place = place[name]
    place[last] = value
    return json.dumps(line).encode()


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("status", None, "status: expected an object"),
        ("status.hanger.pid", "1", "status.hanger.pid: expected int"),
        ("status.hanger.pid", True, "status.hanger.pid: expected int"),
        ("status.hanger.pid", None, "status.hanger.pid: expected int"),
        ("status.hanger.uptime_s", float("nan"), "status.hanger.uptime_s: expected float"),
        ("status.hanger.uptime_s", 10**400, "status.hanger.uptime_s: expected float"),
        ("status.pgbouncer.state", "fine", "expected one of starting, adopting, active, down"),
        ("status.pgbouncer.state", ["active"], "status.pgbouncer.state: expected one of"),
        ("status.sessions.unheld", {"tls": "2"}, "status.sessions.unheld.*: expected int"),
        ("status.sessions.unheld", [], "status.sessions.unheld: expected an object"),
        ("warnings", "x", "warnings: expected a list"),
        ("warnings", ["x", 1], "warnings[1]: expected str"),
    ],
)
def test_bad_types_in_replies(path: str, value: object, reason: str) -> None:
    with pytest.raises(p.ControlProtocolError) as caught:
        p.decode_reply(status_with(path, value))
    assert reason in str(caught.value)


def test_a_whole_number_is_a_float_too() -> None:
    reply = p.decode_reply(status_with("status.hanger.uptime_s", 5))
    assert isinstance(reply, p.StatusReply)
    assert reply.status.hanger.uptime_s == 5.0


def test_missing_field() -> None:
    with pytest.raises(p.ControlProtocolError, match="message: expected a value"):
        p.decode_reply(b'{"version": 1, "type": "failure", "code": "busy"}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_garbage_never_raises_anything_else(line: bytes) -> None:
    for decode in (p.decode_request, p.decode_reply):
        with pytest.raises(p.ControlProtocolError):
            decode(line)


@given(
    st.sampled_from([*REQUESTS, *REPLIES]).map(lambda message: json.loads(p.encode(message))),
    st.lists(st.integers(0, 5), max_size=4),
    JSON,
)
def test_almost_right_lines_never_raise_anything_else(
    line: dict[str, object], path: list[int], value: object
) -> None:
    place: object = line
    for index in path:  # put `value` somewhere inside
        if isinstance(place, dict) and place:
            key = sorted(place)[index % len(place)]
            if not isinstance(place[key], (dict, list)):
                place[key] = value
                break
            place = place[key]
        elif isinstance(place, list) and place:
            place = place[index % len(place)]
    raw = json.dumps(line).encode()
    for decode in (p.decode_request, p.decode_reply):
        try:
            message = decode(raw)
        except p.ControlProtocolError:
            continue
        assert decode(p.encode(message)) == message


def test_names_of_tokens() -> None:
    assert token_name(7) == "c7"
    assert token_name((1 << 63) + 7) == "s7"
