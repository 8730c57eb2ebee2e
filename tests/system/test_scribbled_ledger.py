"""The ledger survives scribbling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from pgkeeper.bouncer.build import Variant, binary
from protocol.ledger_layouts import COPY, SOCKET_RECORD
from testbed.damage import (
    Act,
    BlobHead,
    BlobNoise,
    CopyNoise,
    Damage,
    Forged,
    ForgedRecord,
    HeaderWord,
    Moved,
    Note,
    Plus,
    SlotOf,
    Tail,
    Theirs,
)
from testbed.roster import LEARNT, NAMES
from tests.system.scribbled import ScribbledBed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import Postgres, RunDir

SERVERS = tuple(
    f"{name}'s server"
    for name in ("in transaction", "busy", "half asked", "slow reader", "flooded", "temp table")
)
FACTS = (
    "pool of postgres in transaction",
    "pool of postgres in session",
    "pool of postgres in tight",
    f"pool of {LEARNT} in transaction",
    f"user {LEARNT}",
    "global",
)
SOCKETS = (*NAMES, *SERVERS, "idle server")
SLOTS = (*SOCKETS, *FACTS, "free")
BLOBS = (
    *((slot, "record") for slot in (*SOCKETS, *FACTS)),
    *(("prepared", role) for role in ("catalog", "statement 0", "statement 1")),
    *(("prepared too", role) for role in ("catalog", "statement 0", "statement 1")),
    ("flooded", "catalog"),
    ("flooded", "outbox"),
    ("flooded's server", "catalog"),
    ("idle server", "catalog"),
    ("half parsed", "packet"),
    ("half logged in", "scram"),
    ("half logged in", "outbox"),
)
# The epoch alone says which copy counts: forged, it tells of a past that was.
FIELDS = tuple(field.name for field in COPY.fields if field.name not in ("check", "pad"))
RECORD_FIELDS = tuple(field.name for field in SOCKET_RECORD.fields if "pad" not in field.name)

slot = st.sampled_from(SLOTS)
socket = st.sampled_from(SOCKETS)
number = (
    st.integers(0, 40)
    | st.sampled_from([63, 64, 255, 256, 1 << 12, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
    | st.integers(0, (1 << 64) - 1)
    | st.builds(lambda bit: 1 << bit, st.integers(0, 63))
)
some_bytes = st.binary(min_size=1, max_size=100)
value = (
    number | st.builds(Plus, st.integers(-3, 3)) | st.builds(SlotOf, slot) | st.builds(Theirs, slot)
)

noise = st.builds(CopyNoise, slot, st.booleans(), st.integers(0, COPY.size - 1), some_bytes)
blob_noise = st.sampled_from(BLOBS).flatmap(
    lambda blob: st.builds(
        BlobNoise, st.just(blob[0]), st.just(blob[1]), st.integers(0, 400), some_bytes
    )
)
blob_head = st.sampled_from(BLOBS).flatmap(
    lambda blob: st.builds(
        BlobHead,
        st.just(blob[0]),
        st.just(blob[1]),
        st.sampled_from(["units", "length", "kind", "check"]),
        number,
    )
)
moved = st.builds(Moved, slot, slot, st.booleans()).filter(lambda one: one.slot != one.source)
forged = st.builds(Forged, socket, st.sampled_from(FIELDS), value)
forged_fact = st.builds(Forged, st.sampled_from(FACTS), st.sampled_from(FIELDS), value)
forged_record = st.builds(ForgedRecord, socket, st.sampled_from(RECORD_FIELDS), value)
forged_blob = st.sampled_from(BLOBS).flatmap(
    lambda blob: st.builds(
        BlobNoise,
        st.just(blob[0]),
        st.just(blob[1]),
        st.integers(0, 400),
        some_bytes,
        st.just(True),
    )
)
tail = st.builds(
    Tail, slot, st.sampled_from(["base_rx", "base_tx", "unix_rx", "unix_tx", "unix_busy"]), number
)
act = st.builds(
    Act,
    st.booleans(),
    st.sampled_from(["epoch", "watermark", "act", "slot", "source"]),
    number | st.builds(SlotOf, slot),
)
note = st.builds(
    Note,
    st.integers(0, 15),
    st.integers(0, 1),
    slot,
    st.builds(Plus, st.integers(-1, 1)),
    st.integers(0, 6) | number,
    number,
)
header = st.builds(
    HeaderWord,
    st.sampled_from(["commit", "server_token", "query_id", "socket_id", "heartbeat"]),
    number | st.builds(Plus, st.integers(-4, 4)),
)
SCRIBBLE = noise | blob_noise | blob_head | moved
FORGERY = forged | forged | forged_fact | forged_record | forged_blob | tail | act | note | header

PHASES = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


SHORT = settings(PHASES, max_examples=12, derandomize=True)
LONG = settings(PHASES, max_examples=300)
SANITIZED = Variant(cassert=True, sanitize=True)
# PgBouncer's assertions take for granted that a session's own fields do not contradict each other,
# as lies may: COPY mode that is none, say, lets a query end that had not begun.
SANITIZED_ONLY = Variant(cassert=False, sanitize=True)


@pytest.fixture(scope="module")
def bed(
    run_dir: RunDir, _postgres_server: Postgres, patched_binary: Path
) -> Iterator[ScribbledBed]:
    """A hanger and its sessions, again and again."""
    with ScribbledBed(run_dir, _postgres_server, patched_binary) as one:
        yield one
        print(one.ends)


@pytest.fixture(scope="module")
def sanitized_bed(
    run_dir: RunDir, _postgres_server: Postgres, request: pytest.FixtureRequest
) -> Iterator[ScribbledBed]:
    """The same with a pgbouncer that notices each wrong access; the parameter is its variant."""
    with ScribbledBed(run_dir, _postgres_server, binary(request.param)) as one:
        yield one
        print(one.ends)


scribbles = given(damages=st.lists(SCRIBBLE, min_size=1, max_size=4), twice=st.booleans())
forgeries = given(damages=st.lists(FORGERY, min_size=1, max_size=3), twice=st.booleans())
# What is fetched whole is skipped to its end; how much that is, a lie may say, to its own harm.
a_longer_rest = example(damages=[Forged("half parsed", "pkt_remain", 1 << 16)], twice=False)
a_shorter_rest = example(damages=[Forged("half parsed", "skip_remain", 1)], twice=False)
another_rest = example(
    damages=[Forged("half parsed", field, 1) for field in ("pkt_remain", "skip_remain")],
    twice=False,
)
# What has been handed on and has left stays named, though the IOBuf is somebody else's by then.
no_longer_its_own = example(damages=[Forged("busy", "io_recv", 4096)], twice=False)
not_all_of_it_has_left = example(damages=[Tail("busy", "base_tx", 20)], twice=False)


@SHORT
@scribbles
def test_scribbles_are_noticed(bed: ScribbledBed, damages: list[Damage], twice: bool) -> None:
    """Who was hit goes on exactly or ends; all others go on."""
    bed.play(damages, twice=twice)


@SHORT
@a_longer_rest
@a_shorter_rest
@another_rest
@no_longer_its_own
@not_all_of_it_has_left
@forgeries
def test_forgeries_hurt_nobody_else(bed: ScribbledBed, damages: list[Damage], twice: bool) -> None:
    """With right checks a lie cannot be told from the truth, but the process survives it."""
    bed.play(damages, twice=twice)


@pytest.mark.parametrize("noise", [b"\0" * 5, b"S" * 9], ids=["zeros", "letters"])
def test_a_forged_welcome_message_greets_nobody(bed: ScribbledBed, noise: bytes) -> None:
    """A driver would take it amiss; the server is asked again."""
    pool = "pool of postgres in transaction"
    bed.play([BlobNoise(pool, "record", 256, noise, True)], usable=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sanitized_bed", [SANITIZED], ids=["assertions"], indirect=True)
@LONG
@scribbles
def test_scribbles_under_sanitizers(
    sanitized_bed: ScribbledBed, damages: list[Damage], twice: bool
) -> None:
    sanitized_bed.play(damages, twice=twice)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sanitized_bed", [SANITIZED_ONLY], ids=["no assertions"], indirect=True)
@LONG
@a_longer_rest
@a_shorter_rest
@another_rest
@no_longer_its_own
@not_all_of_it_has_left
@forgeries
def test_forgeries_under_sanitizers(
    sanitized_bed: ScribbledBed, damages: list[Damage], twice: bool
) -> None:
    sanitized_bed.play(damages, twice=twice)
