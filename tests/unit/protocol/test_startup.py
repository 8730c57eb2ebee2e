"""Startup-phase packets and the single bytes that answer them."""

from __future__ import annotations

from typing import Any

import pytest

import protocol as p


def test_every_packet_has_a_golden(startup_goldens: Any) -> None:
    kinds = {type(packet) for packet, _ in startup_goldens}
    assert kinds == {p.StartupMessage, *p.STARTUP_REQUESTS.values()}


def test_request_codes_are_the_documented_ones() -> None:
    assert dict(p.STARTUP_REQUESTS) == {
        80877102: p.CancelRequest,
        80877103: p.SSLRequest,
        80877104: p.GSSENCRequest,
    }


def test_build(startup_golden: Any) -> None:
    packet, data = startup_golden
    assert packet.build() == data


def test_parse(startup_golden: Any) -> None:
    packet, data = startup_golden
    assert p.parse_startup(data[4:]) == packet


def test_truncation_at_every_byte(startup_golden: Any) -> None:
    packet, data = startup_golden
    for end in range(4, len(data)):
        try:
            cut = p.parse_startup(data[4:end])
        except (p.TruncatedMessageError, p.BadLengthError):
            continue
        # Only a key may be shorter and still be one.
        assert isinstance(packet, p.CancelRequest)
        assert cut.build()[4:] == data[4:end]
        assert end >= 16


def test_trailing_byte(startup_golden: Any) -> None:
    packet, data = startup_golden
    payload = data[4:] + b"\0"
    if isinstance(packet, p.CancelRequest) and len(packet.secret_key) < 256:
        longer = p.CancelRequest(packet.process_id, packet.secret_key + b"\0")
        assert p.parse_startup(payload) == longer
    else:
        with pytest.raises((p.TrailingBytesError, p.BadLengthError)):
            p.parse_startup(payload)


@pytest.mark.parametrize("size", [0, 3, 257])
def test_key_sizes_out_of_range(size: int) -> None:
    with pytest.raises(p.BadLengthError):
        p.parse_startup(b"\x04\xd2\x16\x2e\0\0\0\x01" + bytes(size))
    with pytest.raises(p.LocalProtocolError):
        p.CancelRequest(1, bytes(size)).build()


@pytest.mark.parametrize("size", [4, 32, 256])
def test_key_sizes_in_range(size: int) -> None:
    request = p.CancelRequest(1, bytes(size))
    assert p.parse_startup(request.build()[4:]) == request


def test_unknown_request_code() -> None:
    with pytest.raises(p.UnknownMessageTypeError):
        p.parse_startup(b"\x04\xd2\x16\x31")


@pytest.mark.parametrize("major", [0, 2, 4, 0xFFFF])
def test_unknown_major_version(major: int) -> None:
    with pytest.raises(p.InvalidValueError) as caught:
        p.parse_startup(major.to_bytes(2, "big") + b"\0\0\0")
    assert caught.value.field == "protocol_version"
    with pytest.raises(p.LocalProtocolError):
        p.StartupMessage(major << 16, ()).build()


def test_any_minor_version_is_read() -> None:
    # 3.9999 is what clients send to see whether a server negotiates.
    packet = p.parse_startup(b"\0\x03\x27\x0f\0")
    assert isinstance(packet, p.StartupMessage)
    assert (packet.major, packet.minor, packet.parameters) == (3, 9999, ())


def test_an_empty_parameter_name_cannot_be_sent() -> None:
    with pytest.raises(p.LocalProtocolError):
        p.StartupMessage(p.PROTOCOL_3_0, (("", "x"),)).build()


def test_the_last_of_two_parameters_counts() -> None:
    packet = p.StartupMessage(p.PROTOCOL_3_0, (("user", "a"), ("user", "b")))
    assert packet.get("user") == "b"
    assert packet.get("database") is None


@pytest.mark.parametrize(
    ("request_packet", "byte", "reply"),
    [
        (p.SSLRequest(), b"S", p.EncryptionReply.SSL),
        (p.SSLRequest(), b"N", p.EncryptionReply.REFUSED),
        (p.SSLRequest(), b"E", p.EncryptionReply.ERROR),
        (p.GSSENCRequest(), b"G", p.EncryptionReply.GSS),
        (p.GSSENCRequest(), b"N", p.EncryptionReply.REFUSED),
        (p.GSSENCRequest(), b"E", p.EncryptionReply.ERROR),
    ],
)
def test_encryption_replies(request_packet: Any, byte: bytes, reply: p.EncryptionReply) -> None:
    assert p.parse_encryption_reply(request_packet, byte) is reply
    assert reply.value == byte


@pytest.mark.parametrize("request_packet", [p.SSLRequest(), p.GSSENCRequest()])
def test_replies_that_are_none(request_packet: Any) -> None:
    good = {b"N", b"E", b"S" if isinstance(request_packet, p.SSLRequest) else b"G"}
    for byte in range(256):
        if bytes([byte]) not in good:
            with pytest.raises(p.InvalidValueError):
                p.parse_encryption_reply(request_packet, bytes([byte]))
    for reply in (b"", b"SS", b"N\x16"):
        with pytest.raises(p.BadLengthError):
            p.parse_encryption_reply(request_packet, reply)
