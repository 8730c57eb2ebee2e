"""What two hangers say to each other: round trips, and nothing but protocol errors for nonsense."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeeper.control.report import Counts
from pgkeeper.takeover import messages
from pgkeeper.takeover.messages import TakeoverProtocolError, TakeoverVersionError, decode, encode

SERVER = 1 << 63
ALL: tuple[messages.Message, ...] = (
    messages.Ask("1.0", "/run/systemd/notify"),
    messages.Offer("1.0", 7, "/x/pgbouncer", "/x/\udcffini", True, True, 60.0, [0, 70]),
    messages.Refusal("no"),
    messages.Go(),
    messages.Inventory(1, 2, 3, 4, False, True, 1, 2, 0, 1, 0, Counts(3, 0.25, 1, True, None)),
    messages.Listening(2),
    messages.Sockets([1, SERVER | 2], [False, True]),
    messages.Unheld({str(SERVER | 9): "tls"}),
    messages.ProcessState(
        7,
        True,
        True,
        "active",
        True,
        3,
        False,
        False,
        False,
        1.5,
        "/b",
        "/i",
        [3, 3, 77],
        [3, 1, 1],
    ),
    messages.Stranger(),
    messages.Received(),
    messages.Yours(),
)


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_round_trip(message: messages.Message) -> None:
    assert decode(encode(message)) == message


def test_the_fullest_batch_fits() -> None:
    full = messages.Sockets([SERVER | n for n in range(messages.BATCH)], [True] * messages.BATCH)
    longest = messages.Offer("1", 1, "\udcff" * 4096, "\udcff" * 4096, True, True, 1.0, [2**32 - 1])
    assert max(len(encode(full)), len(encode(longest))) < messages.SIZE


def test_another_version_is_named() -> None:
    plain = {**json.loads(encode(messages.Go())), "version": 2}
    with pytest.raises(TakeoverVersionError, match=r"takeover version 2, .* version 1"):
        decode(json.dumps(plain).encode())


@given(st.binary(max_size=200))
def test_nonsense(data: bytes) -> None:
    with contextlib.suppress(TakeoverProtocolError):
        decode(data)


@given(
    st.sampled_from(["offer", "inventory", "sockets", "process", "nonsense"]),
    st.dictionaries(
        st.sampled_from(["pid", "tokens", "unix", "counts", "ready", "x"]),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()),
    ),
)
def test_objects_of_the_wrong_shape(name: str, fields: dict[str, object]) -> None:
    with contextlib.suppress(TakeoverProtocolError):
        decode(json.dumps({"version": 1, "type": name, **fields}).encode())
