"""What two hangers say to each other: round trips, and nothing but protocol errors for nonsense."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeeper.control.report import Blame, Counts, Record
from pgkeeper.takeover import messages
from pgkeeper.takeover.messages import TakeoverProtocolError, TakeoverVersionError, decode, encode

SERVER = 1 << 63
ALL: tuple[messages.Message, ...] = (
    messages.Ask("1.0", "/run/systemd/notify"),
    messages.Offer(
        "1.0", 7, "/x/pgbouncer", "/x/\udcffini", True, True, 60.0, 5.0, [0, 70], "[::1]:1"
    ),
    messages.Refusal("no"),
    messages.Go(),
    messages.Inventory(
        *(1, 2, 3, 4, False, True, True, 1, 2, 0, 1, 0, 2),
        Counts(3, 0.25, 1, True, None, 2, Record({"crash": 1}, {"crash": 1}, {}, [1, 0], 0.5)),
        Blame(SERVER | 2, [100.5], {"crash": 2}, 7),
    ),
    messages.Listening(2),
    messages.Sockets([1, SERVER | 2], [False, True], ["192.0.2.1", None], [1, 2]),
    messages.Unheld({str(SERVER | 9): "tls", "4": "tls"}, {"4": "::1"}),
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
        True,
        1.5,
        "/b",
        "/i",
        [3, 3, 77],
        [3, 1, 1],
    ),
    messages.Stranger(),
    messages.Addresses({"192.0.2.1": [3.0, 100.5, 104.5]}),
    messages.Received(),
    messages.Yours(),
)


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_round_trip(message: messages.Message) -> None:
    assert decode(encode(message)) == message


def test_the_fullest_batch_fits() -> None:
    tokens = [SERVER | n for n in range(messages.BATCH)]
    address = "fe80:1111:2222:3333:4444:5555:6666:7777%" + "i" * 15
    full = messages.Sockets(
        tokens, [True] * messages.BATCH, [address] * messages.BATCH, [2**63] * messages.BATCH
    )
    longest = messages.Offer(
        "1", 1, "\udcff" * 4096, "\udcff" * 4096, True, True, 1.0, 1.0, [2**32]
    )
    assert max(len(encode(full)), len(encode(longest))) < messages.SIZE


def test_another_version_is_named() -> None:
    plain = {**json.loads(encode(messages.Go())), "version": 1}
    with pytest.raises(TakeoverVersionError, match=r"takeover version 1, .* version 3"):
        decode(json.dumps(plain).encode())


@given(st.binary(max_size=200))
def test_nonsense(data: bytes) -> None:
    with contextlib.suppress(TakeoverProtocolError):
        decode(data)


@given(
    st.sampled_from(
        ["offer", "inventory", "sockets", "unheld", "process", "addresses", "nonsense"]
    ),
    st.dictionaries(
        st.sampled_from(["pid", "tokens", "unix", "counts", "blame", "ready", "records", "x"]),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()),
    ),
)
def test_objects_of_the_wrong_shape(name: str, fields: dict[str, object]) -> None:
    with contextlib.suppress(TakeoverProtocolError):
        decode(json.dumps({"version": 2, "type": name, **fields}).encode())
