"""Streams in any pieces give the same frames; lost framing stays lost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocol as p
from protocol.framing import MAX_STARTUP_LENGTH

STREAM = (
    p.ParseComplete().build()
    + p.DataRow((b"one", None)).build()
    + p.CopyData(bytes(300)).build()
    + p.ReadyForQuery(p.TransactionStatus.IDLE).build()
)
FRAMES = [
    p.Frame(b"1", b""),
    p.Frame(b"D", p.DataRow((b"one", None)).payload()),
    p.Frame(b"d", bytes(300)),
    p.Frame(b"Z", b"I"),
]


def frames_of(*pieces: bytes) -> list[p.Frame]:
    reader = p.FrameReader()
    frames: list[p.Frame] = []
    for piece in pieces:
        reader.feed(piece)
        frames.extend(reader)
    reader.end_of_stream()
    assert (reader.offset, reader.buffered) == (sum(map(len, pieces)), 0)
    return frames


def test_every_split_in_two() -> None:
    for cut in range(len(STREAM) + 1):
        assert frames_of(STREAM[:cut], STREAM[cut:]) == FRAMES


def test_every_split_in_three() -> None:
    short = p.DataRow((b"one", None)).build() + p.Sync().build() + p.CopyData(b"x").build()
    whole = frames_of(short)
    assert [frame.type for frame in whole] == [b"D", b"S", b"d"]
    for first, second in itertools.combinations_with_replacement(range(len(short) + 1), 2):
        assert frames_of(short[:first], short[first:second], short[second:]) == whole


def test_byte_by_byte() -> None:
    assert frames_of(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == FRAMES


def test_no_frame_before_its_last_byte() -> None:
    reader = p.FrameReader()
    for byte in STREAM[:5]:
        assert reader.next_frame() is None
        reader.feed(bytes([byte]))
    assert reader.next_frame() == FRAMES[0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(0, 200)))
def test_any_payloads_any_pieces(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(p.Frame(b"d", payload).build() for payload in payloads)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert [frame.payload for frame in frames_of(*pieces)] == payloads


def test_every_golden_is_a_frame(golden: Any) -> None:
    (frame,) = frames_of(golden.frame)
    assert frame.build() == golden.frame


@pytest.mark.parametrize("length", [0, 1, 2, 3, 11, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_bad_length(length: int) -> None:
    reader = p.FrameReader(max_length=10, offset=1000)
    reader.feed(p.Sync().build() + b"Q" + length.to_bytes(4, "big"))
    assert reader.next_frame() == p.Frame(b"S", b"")
    for _ in range(2):
        with pytest.raises(p.BadLengthError) as caught:
            reader.next_frame()
        error = caught.value
        assert (error.type_byte, error.length, error.offset) == (b"Q", length, 1005)
        reader.feed(p.Sync().build())
    with pytest.raises(p.TruncatedMessageError):
        reader.end_of_stream()


def test_cap_is_inclusive() -> None:
    reader = p.FrameReader(max_length=10)
    reader.feed(p.Frame(b"Q", b"12345\0").build())
    assert reader.next_frame() == p.Frame(b"Q", b"12345\0")


@pytest.mark.parametrize("end", range(1, len(STREAM)))
def test_end_inside_a_message(end: int) -> None:
    reader = p.FrameReader()
    reader.feed(STREAM[:end])
    done = sum(len(frame.payload) + 5 for frame in reader)
    if done == end:
        reader.end_of_stream()
        return
    with pytest.raises(p.TruncatedMessageError) as caught:
        reader.end_of_stream()
    assert (caught.value.offset, caught.value.length) == (done, end - done)


def test_take_rest_hands_the_stream_on() -> None:
    reader = p.StartupReader(offset=7)
    startup = p.StartupMessage(p.PROTOCOL_3_0, (("user", "joe"),)).build()
    reader.feed(startup + p.Sync().build()[:3])
    packet = reader.next_packet()
    assert packet is not None
    follower = p.FrameReader(offset=reader.offset)
    follower.feed(reader.take_rest())
    assert reader.buffered == 0
    assert follower.next_frame() is None
    follower.feed(p.Sync().build()[3:])
    assert follower.next_frame() == p.Frame(b"S", b"")
    assert follower.offset == 7 + len(startup) + 5


def test_startup_every_split(startup_golden: Any) -> None:
    packet, data = startup_golden
    stream = p.SSLRequest().build() + data
    for cut in range(len(stream) + 1):
        reader = p.StartupReader()
        found = []
        for piece in (stream[:cut], stream[cut:]):
            reader.feed(piece)
            while (payload := reader.next_packet()) is not None:
                found.append(p.parse_startup(payload))
        reader.end_of_stream()
        assert found == [p.SSLRequest(), packet]


@pytest.mark.parametrize("length", [0, 7, MAX_STARTUP_LENGTH + 1, 0x1603_0100])
def test_startup_bad_length(length: int) -> None:
    reader = p.StartupReader()
    reader.feed(length.to_bytes(4, "big"))
    for _ in range(2):
        with pytest.raises(p.BadLengthError) as caught:
            reader.next_packet()
        assert (caught.value.length, caught.value.offset) == (length, 0)


def test_startup_end_inside_a_packet() -> None:
    reader = p.StartupReader()
    reader.feed(p.SSLRequest().build()[:-1])
    assert reader.next_packet() is None
    with pytest.raises(p.TruncatedMessageError):
        reader.end_of_stream()
