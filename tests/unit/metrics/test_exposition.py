"""The text of a scrape, letter by letter, and that it is bounded."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pgkeeper.control.report import Record
from pgkeeper.hanger.history import PAUSES
from pgkeeper.ledger.tally import Pool, Tally
from pgkeeper.metrics.exposition import OTHER, PAIRS, expose
from pgkeeper.metrics.figures import Figures, Fill, Own
from tests.fix_admin import STATUS
from tests.promtool import promtool

GOLDEN = Path(__file__).with_name("metrics.txt")

FIGURES = Figures(
    status=STATUS,
    record=Record(
        deaths={"killed": 2, "crash": 1, "start": 1},
        takeovers={"killed": 1, "crash": 1},
        lost={"in-flight": 1, "unheld": 3},
        pauses=[0, 1, *[0] * (len(PAUSES) - 2), 1],
        pause_sum=90.0025,
    ),
    sessions=Tally(
        clients=Counter({Pool("shop", "joe"): 11, Pool(): 1}),
        servers=Counter({Pool("shop", 'q"uo\\te\n'): 1}),
    ),
    vacancy=0.0,
    standby_wanted=True,
    hold_timeout=60.0,
    own=Own(started=1_700_000_000.25, cpu=1.5, resident=40_000_000),
    fill=Fill(3, 20_000_000, 2756, 14, 756, 1, 9_924_608, 5120),
    unheld={"tls": 2, "new-reason": 1},
)


def test_the_text() -> None:
    """PGKEEPER_UPDATE_GOLDEN=1 writes the file anew; look at the difference before you keep it."""
    text = expose(FIGURES, "")[0].decode()
    if os.environ.get("PGKEEPER_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_before_anything_has_happened() -> None:
    nothing = replace(FIGURES, record=Record(), sessions=Tally(), fill=None, unheld={})
    text = expose(nothing, "")[0].decode()
    assert 'pgkeeper_takeovers_total{cause="handoff"} 0.0' in text
    assert "pgkeeper_pause_seconds_count 0.0" in text
    assert "pgkeeper_ledger" not in text


def test_those_who_ask_for_openmetrics_get_it() -> None:
    body, content_type = expose(FIGURES, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics.text_string_to_metric_families(body.decode())}
    assert "pgkeeper_takeovers" in names


def test_no_crowd_of_users_makes_more_series() -> None:
    crowd = Counter({Pool("shop", f"user{n}"): 1 + n for n in range(PAIRS + 100)})
    body, _ = expose(replace(FIGURES, sessions=Tally(clients=crowd)), "")
    found = {
        sample.labels["user"]: sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == "pgkeeper_held_client_connections"
    }
    assert len(found) == PAIRS + 1
    assert found[f"user{PAIRS + 99}"] == PAIRS + 100
    assert found[OTHER] == sum(range(1, 101))
    assert sum(found.values()) == sum(crowd.values())


def test_promtool_has_nothing_to_say() -> None:
    done = promtool("check", "metrics", given=expose(FIGURES, "")[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
