"""The sweep would notice: each rule of the ledger, broken on purpose in the real pgbouncer, shows.

A rule that can be broken unnoticed is one that no workload needs. Where something else keeps what
it promises, the table says what (`covered_by`), and the long form sees that this is still so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sweep.controls import rules_acts, rules_adoption
from tests.sweep.controls.mutants import changed
from tests.sweep.controls.rule import Hunt
from tests.sweep.controls.workloads import WORKLOADS
from tests.sweep.syscall.sweep import every

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sweep.controls.conftest import RunHunt
    from tests.sweep.controls.mutants import Mutants
    from tests.sweep.controls.rule import Broken
    from tests.sweep.syscall.stage import Workload

RULES = (*rules_acts.RULES, *rules_adoption.RULES)
NOTICED = tuple(rule for rule in RULES if not rule.covered_by)
# Of the points at which a sound pgbouncer is killed, in the short form.
_STRIDE = 17
COVERED = tuple(rule for rule in RULES if rule.covered_by)


def _slow(rules: tuple[Broken, ...]) -> list[object]:
    """Parameters, those of slow hunts marked."""
    return [
        pytest.param(rule, id=rule.name, marks=[pytest.mark.slow] if rule.hunt.slow else [])
        for rule in rules
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_breaks_a_rule_still_fits_the_source(rule: Broken, sources: Path) -> None:
    assert changed(sources, rule.changes)


@pytest.mark.parametrize("rule", _slow(NOTICED))
def test_a_broken_rule_is_noticed(rule: Broken, mutants: Mutants, run_hunt: RunHunt) -> None:
    assert run_hunt(rule.hunt, mutants.binary(rule.changes)), rule.why


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rule", COVERED, ids=lambda rule: rule.name)
def test_a_rule_that_is_covered_is_not_missed(
    rule: Broken, mutants: Mutants, run_hunt: RunHunt
) -> None:
    assert run_hunt(rule.hunt, mutants.binary(rule.changes)) is None, rule.covered_by


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_with_all_rules_kept_nothing_differs(
    workload: Workload, patched_binary: Path, run_hunt: RunHunt
) -> None:
    assert run_hunt(Hunt(workload, lambda: every(_STRIDE)), patched_binary) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_with_all_rules_kept_nothing_differs_anywhere(
    workload: Workload, patched_binary: Path, run_hunt: RunHunt
) -> None:
    assert run_hunt(Hunt(workload), patched_binary) is None
