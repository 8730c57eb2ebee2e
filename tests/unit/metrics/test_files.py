"""Alert rules, dashboard and documentation speak of metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pgkeeper.metrics.exposition import expose
from tests.promtool import promtool
from tests.unit.metrics.test_exposition import FIGURES

DOCS = Path(__file__).parents[3] / "docs"
ALERTS = DOCS / "monitoring/alerts.yml"
DASHBOARD = DOCS / "monitoring/grafana.json"
PAGE = DOCS / "monitoring.md"

#: A metric's name; labels and templates are none.
_NAME = re.compile(r"\b(?:pgkeeper|process)_[a-z_]*[a-z]\b(?!/)")


def exposed() -> set[str]:
    text = expose(FIGURES, "")[0].decode()
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD, PAGE], ids=lambda path: path.name)
def test_every_metric_named_exists(path: Path) -> None:
    names = set(_NAME.findall(path.read_text()))
    assert names
    assert names <= exposed() | {"pgkeeper_pause_seconds"}


def test_every_metric_is_documented() -> None:
    documented = set(_NAME.findall(PAGE.read_text()))
    plain = {re.sub(r"^(pgkeeper_pause_seconds)_\w+$", r"\1", name) for name in exposed()}
    assert plain <= documented


def test_every_alert_is_documented() -> None:
    alerts = re.findall(r"alert: (\w+)", ALERTS.read_text())
    page = PAGE.read_text()
    assert alerts
    assert [name for name in alerts if name not in page] == []


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(panel["targets"] for panel in dashboard["panels"])


@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", str(ALERTS)),
        ("test", "rules", str(Path(__file__).with_name("alerts_test.yml"))),
    ],
    ids=lambda words: words[0],
)
def test_promtool_agrees_with_the_rules(words: tuple[str, ...]) -> None:
    done = promtool(*words)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert b"SUCCESS" in done.stdout
