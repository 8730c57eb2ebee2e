"""Whatever the bytes, only protocol errors escape; whatever the message, it comes back equal."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocol as p

FUZZ = settings(deadline=None, max_examples=150)
MESSAGE = settings(deadline=None, max_examples=15)

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
name = text.filter(bool)
data = st.binary(max_size=40)
value = st.none() | data
values = st.lists(value, max_size=5).map(tuple)
int16 = st.integers(-(2**15), 2**15 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)
oid = st.integers(0, 2**32 - 1)
oids = st.lists(oid, max_size=5).map(tuple)
code = st.sampled_from(p.FormatCode)
codes = st.lists(code, max_size=5).map(tuple)
target = st.sampled_from(p.Target)
key = st.binary(min_size=4, max_size=256)
report = st.lists(
    st.tuples(st.characters(min_codepoint=1, max_codepoint=255), text), max_size=5
).map(tuple)
field = st.builds(p.FieldDescription, text, oid, int16, oid, int16, int32, code)
parameters = st.lists(st.tuples(name, text), max_size=5).map(tuple)

STRATEGIES: dict[type[p.Message], st.SearchStrategy[Any]] = {
    p.AuthenticationMD5Password: st.builds(
        p.AuthenticationMD5Password, st.binary(min_size=4, max_size=4)
    ),
    p.AuthenticationGSSContinue: st.builds(p.AuthenticationGSSContinue, data),
    p.AuthenticationSASL: st.builds(p.AuthenticationSASL, st.lists(name, max_size=4).map(tuple)),
    p.AuthenticationSASLContinue: st.builds(p.AuthenticationSASLContinue, data),
    p.AuthenticationSASLFinal: st.builds(p.AuthenticationSASLFinal, data),
    p.PasswordMessage: st.builds(p.PasswordMessage, text),
    p.SASLInitialResponse: st.builds(p.SASLInitialResponse, text, value),
    p.SASLResponse: st.builds(p.SASLResponse, data),
    p.GSSResponse: st.builds(p.GSSResponse, data),
    p.CopyData: st.builds(p.CopyData, data),
    p.Bind: st.builds(p.Bind, text, text, codes, values, codes),
    p.Close: st.builds(p.Close, target, text),
    p.CopyFail: st.builds(p.CopyFail, text),
    p.Describe: st.builds(p.Describe, target, text),
    p.Execute: st.builds(p.Execute, text, int32),
    p.FunctionCall: st.builds(p.FunctionCall, oid, codes, values, code),
    p.Parse: st.builds(p.Parse, text, text, oids),
    p.Query: st.builds(p.Query, text),
    p.BackendKeyData: st.builds(p.BackendKeyData, int32, key),
    p.CommandComplete: st.builds(p.CommandComplete, text),
    p.CopyBothResponse: st.builds(p.CopyBothResponse, code, codes),
    p.CopyInResponse: st.builds(p.CopyInResponse, code, codes),
    p.CopyOutResponse: st.builds(p.CopyOutResponse, code, codes),
    p.DataRow: st.builds(p.DataRow, values),
    p.ErrorResponse: st.builds(p.ErrorResponse, report),
    p.FunctionCallResponse: st.builds(p.FunctionCallResponse, value),
    p.NegotiateProtocolVersion: st.builds(
        p.NegotiateProtocolVersion, oid, st.lists(text, max_size=4).map(tuple)
    ),
    p.NoticeResponse: st.builds(p.NoticeResponse, report),
    p.NotificationResponse: st.builds(p.NotificationResponse, int32, text, text),
    p.ParameterDescription: st.builds(p.ParameterDescription, oids),
    p.ParameterStatus: st.builds(p.ParameterStatus, text, text),
    p.ReadyForQuery: st.builds(p.ReadyForQuery, st.sampled_from(p.TransactionStatus)),
    p.RowDescription: st.builds(p.RowDescription, st.lists(field, max_size=4).map(tuple)),
}
EXCHANGE_OF: dict[type[p.Message], p.Exchange] = {
    message: exchange for exchange, message in p.AUTHENTICATION_RESPONSES.items()
}


def read_back(message: p.Message) -> p.Message:
    reader = p.FrameReader()
    reader.feed(message.build())
    (frame,) = reader
    reader.end_of_stream()
    if isinstance(message, p.FrontendMessage):
        return p.parse_frontend(frame, EXCHANGE_OF.get(type(message)))
    return p.parse_backend(frame)


def test_every_message_with_fields_is_generated() -> None:
    classes = {
        *p.FRONTEND_MESSAGES.values(),
        *p.BACKEND_MESSAGES.values(),
        *p.AUTHENTICATION_REQUESTS.values(),
        *p.AUTHENTICATION_RESPONSES.values(),
    }
    assert {cls for cls in classes if cls.__match_args__} == set(STRATEGIES)


@pytest.mark.parametrize("cls", STRATEGIES, ids=lambda cls: cls.__name__)
def test_round_trip(cls: type[p.Message]) -> None:
    @MESSAGE
    @given(STRATEGIES[cls])
    def round_trip(message: p.Message) -> None:
        assert read_back(message) == message

    round_trip()


@FUZZ
@given(st.integers(0, 2**16 - 1), parameters)
def test_startup_round_trip(minor: int, pairs: tuple[tuple[str, str], ...]) -> None:
    packet = p.StartupMessage(3 << 16 | minor, pairs)
    assert p.parse_startup(packet.build()[4:]) == packet


@FUZZ
@given(int32, key)
def test_cancel_round_trip(process_id: int, secret_key: bytes) -> None:
    packet = p.CancelRequest(process_id, secret_key)
    assert p.parse_startup(packet.build()[4:]) == packet


@FUZZ
@given(st.sampled_from([*sorted(p.BACKEND_MESSAGES), b"R", b"?"]), st.binary(max_size=60))
def test_backend_payloads(type_byte: bytes, payload: bytes) -> None:
    with contextlib.suppress(p.RemoteProtocolError):
        assert p.parse_backend(p.Frame(type_byte, payload)).payload() == payload


@FUZZ
@given(
    st.sampled_from([*sorted(p.FRONTEND_MESSAGES), b"p", b"?"]),
    st.binary(max_size=60),
    st.none() | st.sampled_from(p.Exchange),
)
def test_frontend_payloads(type_byte: bytes, payload: bytes, exchange: p.Exchange | None) -> None:
    with contextlib.suppress(p.RemoteProtocolError):
        assert p.parse_frontend(p.Frame(type_byte, payload), exchange).payload() == payload


@FUZZ
@given(st.sampled_from([b"", b"\0\x03\0\0", b"\x04\xd2\x16\x2e"]), st.binary(max_size=60))
def test_startup_payloads(head: bytes, tail: bytes) -> None:
    try:
        packet = p.parse_startup(head + tail)
    except p.RemoteProtocolError:
        return
    assert packet.build()[4:] == head + tail


@FUZZ
@given(st.lists(st.binary(max_size=30), max_size=8))
def test_arbitrary_streams(pieces: list[bytes]) -> None:
    typed, startup = p.FrameReader(max_length=64), p.StartupReader(max_length=64)
    for piece in pieces:
        typed.feed(piece)
        startup.feed(piece)
        with contextlib.suppress(p.RemoteProtocolError):
            for frame in typed:
                p.parse_backend(frame)
        with contextlib.suppress(p.RemoteProtocolError):
            while (payload := startup.next_packet()) is not None:
                p.parse_startup(payload)
    with contextlib.suppress(p.RemoteProtocolError):
        typed.end_of_stream()


def test_every_changed_byte_of_every_golden(golden: Any) -> None:
    payload = golden.frame[5:][:64]
    for place in range(len(payload)):
        for byte in (0, 1, 0x7F, 0x80, 0xFF):
            changed = payload[:place] + bytes([byte]) + payload[place + 1 :]
            with contextlib.suppress(p.RemoteProtocolError):
                assert golden.parse(changed).payload() == changed
