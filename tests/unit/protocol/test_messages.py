"""Typed messages against their goldens: parse, build, round trip, and every way to be wrong."""

from __future__ import annotations

import struct
import traceback
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

import protocol as p

ALL_CLASSES = {
    *p.FRONTEND_MESSAGES.values(),
    *p.BACKEND_MESSAGES.values(),
    *p.AUTHENTICATION_REQUESTS.values(),
    *p.AUTHENTICATION_RESPONSES.values(),
}

# "Message Formats" of PostgreSQL 18, by hand: the registries must not have lost one.
DOCUMENTED_FRONTEND = set(b"BCDEFHPQSXcdf")
DOCUMENTED_BACKEND = set(b"123ACDEGHIKNSTVWZcdnstv")


def test_every_message_has_a_golden(goldens: Any) -> None:
    assert {type(golden.message) for golden in goldens} == ALL_CLASSES


def test_registries_are_the_documented_types() -> None:
    assert {byte[0] for byte in p.FRONTEND_MESSAGES} == DOCUMENTED_FRONTEND
    assert {byte[0] for byte in p.BACKEND_MESSAGES} == DOCUMENTED_BACKEND
    assert set(p.AUTHENTICATION_REQUESTS) == {0, 2, 3, 5, 7, 8, 9, 10, 11, 12}
    assert set(p.AUTHENTICATION_RESPONSES) == set(p.Exchange)


def test_build(golden: Any) -> None:
    assert golden.message.build() == golden.frame


def test_parse(golden: Any) -> None:
    assert golden.parse(golden.frame[5:]) == golden.message


def test_golden_length_word(golden: Any) -> None:
    assert struct.unpack("!I", golden.frame[1:5]) == (len(golden.frame) - 1,)


def test_messages_are_frozen(golden: Any) -> None:
    with pytest.raises((FrozenInstanceError, TypeError)):
        golden.message.anything = 1
    assert not hasattr(golden.message, "__dict__")


def test_truncation_at_every_byte(golden: Any) -> None:
    payload = golden.frame[5:]
    for end in range(len(payload)):
        cut = payload[:end]
        if golden.open_ended:
            try:
                message = golden.parse(cut)
            except (p.TruncatedMessageError, p.BadLengthError):
                continue
            assert message.payload() == cut
        else:
            with pytest.raises((p.TruncatedMessageError, p.BadLengthError)) as caught:
                golden.parse(cut)
            assert caught.value.type_byte == golden.frame[:1]
            assert caught.value.length == end


def test_trailing_byte(golden: Any) -> None:
    payload = golden.frame[5:] + b"\0"
    if golden.open_ended and len(golden.frame) < 256:
        assert golden.parse(payload).payload() == payload
    else:
        with pytest.raises((p.TrailingBytesError, p.BadLengthError)):
            golden.parse(payload)


def test_trailing_bytes_say_where_the_message_ended() -> None:
    with pytest.raises(p.TrailingBytesError) as caught:
        p.parse_backend(p.Frame(b"Z", b"Ixyz"))
    assert (caught.value.type_byte, caught.value.offset, caught.value.length) == (b"Z", 1, 4)


def test_unknown_types() -> None:
    for byte in range(256):
        frame = p.Frame(bytes([byte]), b"")
        if byte not in DOCUMENTED_FRONTEND | {ord("p")}:
            with pytest.raises(p.UnknownMessageTypeError) as caught:
                p.parse_frontend(frame)
            assert caught.value.type_byte == frame.type
        if byte not in DOCUMENTED_BACKEND | {ord("R")}:
            with pytest.raises(p.UnknownMessageTypeError):
                p.parse_backend(frame)


@pytest.mark.parametrize(
    ("direction", "frame", "field"),
    [
        ("backend", p.Frame(b"Z", b"i"), "status"),
        ("backend", p.Frame(b"R", b"\0\0\0\x06"), "code"),
        ("backend", p.Frame(b"R", b"\0\0\0\x0d"), "code"),
        ("backend", p.Frame(b"G", b"\x02\0\0"), "overall_format"),
        ("backend", p.Frame(b"G", b"\0\0\x01\0\x02"), "column_formats"),
        ("frontend", p.Frame(b"C", b"Xst\0"), "target"),
        ("frontend", p.Frame(b"D", b"\0st\0"), "target"),
        ("frontend", p.Frame(b"B", b"\0\0\0\x01\xff\xff\0\0\0\0"), "parameter_formats"),
    ],
)
def test_values_that_are_not_documented(direction: str, frame: p.Frame, field: str) -> None:
    parse = p.parse_backend if direction == "backend" else p.parse_frontend
    with pytest.raises(p.InvalidValueError) as caught:
        parse(frame)
    assert caught.value.type_byte == frame.type
    assert caught.value.field == field


@pytest.mark.parametrize(
    "frame",
    [
        p.Frame(b"D", b"\0\x01\xff\xff\xff\xfe"),  # value of length -2
        p.Frame(b"V", b"\x80\0\0\0"),
        p.Frame(b"K", b"\0\0\0\x01abc"),  # key of 3 bytes
        p.Frame(b"K", b"\0\0\0\x01" + bytes(257)),
        p.Frame(b"R", b"\0\0\0\x05abc"),  # salt of 3 bytes
    ],
)
def test_bad_lengths_inside_a_message(frame: p.Frame) -> None:
    with pytest.raises(p.BadLengthError):
        p.parse_backend(frame)


def test_a_huge_count_ends_with_the_payload() -> None:
    with pytest.raises(p.TruncatedMessageError):
        p.parse_backend(p.Frame(b"v", b"\0\x03\0\0\xff\xff\xff\xff" + b"a\0" * 10))


def test_counts_and_object_ids_are_unsigned() -> None:
    row = p.DataRow((b"",) * 65_535)
    assert p.parse_backend(p.Frame(b"D", row.payload())) == row
    described = p.ParameterDescription((2**32 - 1,))
    assert p.parse_backend(p.Frame(b"t", described.payload())) == described


def test_strings_keep_every_byte() -> None:
    every = bytes(range(1, 256))
    query = p.parse_frontend(p.Frame(b"Q", every + b"\0"))
    assert query.payload() == every + b"\0"


def test_p_needs_an_exchange() -> None:
    frame = p.Frame(b"p", b"hunter2\0")
    with pytest.raises(p.UnexpectedMessageError) as caught:
        p.parse_frontend(frame)
    assert caught.value.type_byte == b"p"
    assert p.parse_frontend(frame, p.Exchange.PASSWORD) == p.PasswordMessage("hunter2")
    assert p.parse_frontend(frame, p.Exchange.SASL) == p.SASLResponse(b"hunter2\0")
    assert p.parse_frontend(frame, p.Exchange.GSS) == p.GSSResponse(b"hunter2\0")


def test_an_exchange_does_not_change_other_types() -> None:
    assert p.parse_frontend(p.Frame(b"X", b""), p.Exchange.SASL) == p.Terminate()


def test_exchange_after_names_every_request_that_wants_an_answer() -> None:
    silent = {p.AuthenticationOk, p.AuthenticationKerberosV5, p.AuthenticationSASLFinal}
    assert set(p.EXCHANGE_AFTER) == set(p.AUTHENTICATION_REQUESTS.values()) - silent


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (p.Query("a\0b"), "query"),
        (p.Query("\ud800"), None),
        (p.Query(b"select 1"), "query"),
        (p.Execute("", 2**31), "max_rows"),
        (p.Parse("", "", (2**32,)), "parameter_types"),
        (p.Parse("", "", (-1,)), "parameter_types"),
        (p.Bind(parameters=(b"",) * 65_536), "parameters"),
        (p.Bind(parameters=("text",)), "parameters"),
        (p.Bind(parameters=None), None),
        (p.Bind(parameter_formats=(1,)), "parameter_formats"),
        (p.Close(p.TransactionStatus.IDLE, ""), "target"),
        (p.CopyData("text"), "data"),
        (p.CopyData(5), "data"),
        (p.AuthenticationMD5Password(b"12345"), "salt"),
        (p.AuthenticationSASL(("",)), "mechanisms"),
        (p.BackendKeyData(1, b"abc"), "secret_key"),
        (p.BackendKeyData(1, bytes(257)), "secret_key"),
        (p.ErrorResponse((("\0", "x"),)), "fields"),
        (p.ErrorResponse((("SS", "x"),)), "fields"),
        (p.ErrorResponse((("€", "x"),)), None),
        (p.RowDescription(("id",)), "fields"),
    ],
)
def test_what_cannot_be_expressed(message: Any, field: str | None) -> None:
    with pytest.raises(p.LocalProtocolError) as caught:
        message.build()
    assert caught.value.message == type(message).__name__
    if field is not None:
        assert caught.value.field == field


def test_errors_do_not_chain_what_they_hide() -> None:
    with pytest.raises(p.RemoteProtocolError) as remote:
        p.parse_frontend(p.Frame(b"p", b"hunter2"), p.Exchange.PASSWORD)
    with pytest.raises(p.LocalProtocolError) as local:
        p.PasswordMessage("hunter2\0").build()
    for caught in (remote.value, local.value):
        assert caught.__context__ is None
        assert caught.__cause__ is None
        assert "hunter2" not in "".join(traceback.format_exception_only(caught))


SECRET = "hunter2"


@pytest.mark.parametrize(
    "message",
    [
        p.PasswordMessage(SECRET),
        p.SASLInitialResponse("SCRAM-SHA-256", SECRET.encode()),
        p.SASLResponse(SECRET.encode()),
        p.GSSResponse(SECRET.encode()),
        p.AuthenticationMD5Password(SECRET.encode()[:4]),
        p.AuthenticationSASLContinue(SECRET.encode()),
        p.AuthenticationSASLFinal(SECRET.encode()),
        p.AuthenticationGSSContinue(SECRET.encode()),
        p.BackendKeyData(1, SECRET.encode()),
        p.CancelRequest(1, SECRET.encode()),
        p.Query(SECRET),
        p.Parse("", SECRET),
        p.Bind(parameters=(SECRET.encode(),)),
        p.FunctionCall(1, (), (SECRET.encode(),), p.FormatCode.TEXT),
        p.FunctionCallResponse(SECRET.encode()),
        p.DataRow((SECRET.encode(),)),
        p.CopyData(SECRET.encode()),
        p.CopyFail(SECRET),
        p.NotificationResponse(1, "ch", SECRET),
        p.ErrorResponse((("S", "ERROR"), ("M", SECRET))),
        p.NoticeResponse((("D", SECRET),)),
        p.Frame(b"p", SECRET.encode()),
    ],
    ids=lambda message: type(message).__name__,
)
def test_repr_hides_secrets_and_content(message: Any) -> None:
    assert SECRET[:4] not in repr(message)
    assert type(message).__name__ in repr(message)


def test_fatal_error() -> None:
    assert p.fatal_error("57P03", "no") == (b"E\0\0\0\x1eSFATAL\0VFATAL\0C57P03\0Mno\0\0")
    warning = p.fatal_error("01000", "careful", p.Severity.WARNING)
    report = p.parse_backend(p.Frame(warning[:1], warning[5:]))
    assert isinstance(report, p.ErrorResponse)
    assert (report.severity, report.sqlstate, report.message) == ("WARNING", "01000", "careful")


@pytest.mark.parametrize("sqlstate", ["", "57P0", "57P033", "57p03", "57P0\n", "\uff15\uff17P03"])
def test_fatal_error_wants_an_sqlstate(sqlstate: str) -> None:
    with pytest.raises(p.LocalProtocolError) as caught:
        p.fatal_error(sqlstate, "no")
    assert caught.value.field == "C"


def test_report_without_v_is_read_by_s() -> None:
    # PgBouncer 1.24 sends S, C and M only.
    report = p.ErrorResponse((("S", "FATAL"), ("C", "08P01"), ("M", "x")))
    assert (report.severity, report.sqlstate, report.get("V")) == ("FATAL", "08P01", None)


@pytest.mark.parametrize("sent", [2, p.PROTOCOL_3_2])
def test_newest_minor_of_either_way_to_send_it(sent: int) -> None:
    assert p.NegotiateProtocolVersion(sent).newest_minor == 2
