"""PostgreSQL's own regression tests end the same, be pgbouncer killed five times a second or not.

Through an unpatched one that is killed they do not: `test_a_kill_that_nobody_keeps_is_noticed`.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed import Postgres
from testbed.ledgers import check_ledger
from testbed.waiting import wait_until
from tests.suites.killer import Killer
from tests.suites.outcomes import Outcome
from tests.suites.regress_source import PIN, read_pin
from tests.suites.regress_suite import (
    POOLER,
    SERVER,
    complaints,
    read_differences,
    read_outcomes,
    run,
    whole,
    why_not,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from testbed import Keeper, RunDir
    from tests.fix_bouncer import MakeBouncer
    from tests.fix_keeper import MakeKeeper

pytestmark = pytest.mark.timeout(20 * 60)

_ROOT = Path(__file__).parents[2]
_numbers = itertools.count(1)
# They need no other test but the first, and do most of what the protocol has.
_SOME = (
    ("test_setup",),
    ("copy", "copyselect", "copydml", "copyencoding", "insert", "insert_conflict"),
    ("prepare", "psql_crosstab", "psql_pipeline", "async", "advisory_lock", "cluster", "guc"),
    ("plancache", "plpgsql", "rangefuncs", "domain", "temp", "prepared_xacts", "largeobject"),
    ("strings", "numeric", "txid", "arrays", "json", "jsonb", "xml", "transactions"),
)


@pytest.fixture
def server(run_dir: RunDir) -> Iterator[Postgres]:
    """A server that the tests may litter."""
    if reason := why_not():
        pytest.skip(reason)
    with Postgres(run_dir, name=f"for-regress-{next(_numbers)}", settings=SERVER) as started:
        yield started


def target(server: Postgres) -> Mapping[str, str]:
    """A pooler's databases: whatever the tests make there."""
    return {"*": f"host={server.host} port={server.port}"}


def make(make_keeper: MakeKeeper, server: Postgres, *, reused: bool) -> Keeper:
    """Session pooling; unless `reused` no server process serves a second client."""
    lifetime: dict[str, str | int | None] = {} if reused else {"server_lifetime": 0}
    return make_keeper(settings={**POOLER, **lifetime}, databases=target(server))


def count(outcomes: Mapping[str, Outcome], status: str) -> int:
    return sum(outcome.status == status for outcome in outcomes.values())


@pytest.mark.parametrize(
    ("some", "reused"),
    [
        pytest.param(_SOME, False, id="a part"),
        pytest.param((), False, id="whole", marks=pytest.mark.slow),
        pytest.param((), True, id="whole-reused", marks=pytest.mark.slow),
    ],
)
def test_regression_tests_pass_while_pgbouncer_is_killed(
    run_dir: RunDir,
    make_keeper: MakeKeeper,
    server: Postgres,
    some: Sequence[Sequence[str]],
    reused: bool,
) -> None:
    keeper = make(make_keeper, server, reused=reused)
    groups = some or whole()
    with Killer(keeper) as killer:
        outcomes = run(run_dir, keeper, f"{keeper.name}-regress", groups)
    assert complaints(outcomes, groups, reused=reused) == []
    print(f"{killer.kills} kills, {count(outcomes, 'passed')} of {len(outcomes)} passed")
    assert killer.kills > (5 if some else 50)
    assert keeper.status().adoptions.sessions_lost == 0
    check_ledger(keeper)


@pytest.mark.slow
@pytest.mark.parametrize("reused", [False, True])
def test_regression_tests_end_the_same_without_a_kill(
    run_dir: RunDir, make_keeper: MakeKeeper, server: Postgres, reused: bool
) -> None:
    """The evidence for what regress.toml says."""
    keeper = make(make_keeper, server, reused=reused)
    outcomes = run(run_dir, keeper, f"{keeper.name}-regress", whole())
    print(f"{count(outcomes, 'passed')} of {len(outcomes)} passed")
    assert complaints(outcomes, whole(), reused=reused) == []


def test_a_kill_that_nobody_keeps_is_noticed(
    run_dir: RunDir, make_vanilla_bouncer: MakeBouncer, server: Postgres
) -> None:
    bouncer = make_vanilla_bouncer(settings=POOLER, databases=target(server))
    groups = (("test_setup",), ("plpgsql",))
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run, run_dir, bouncer, f"{bouncer.name}-regress", groups)
        wait_until(
            lambda: server.backends(application_name="pg_regress/plpgsql") > 0,
            what="the test is in its middle",
            seconds=60,
        )
        bouncer.kill()
        outcomes = running.result()
    bouncer.start()
    assert outcomes["test_setup"].status == "passed"
    (found,) = complaints(outcomes, groups, reused=False)
    assert found.startswith("plpgsql failed: test process exited with exit code 2")


def test_the_tests_are_those_of_the_test_beds_server() -> None:
    lock = (_ROOT / "requirements.txt").read_text()
    assert f"\nembedded-postgres=={PIN.version}." in lock


def test_pg_regress_is_understood() -> None:
    log = """# parallel group (2 tests):  boolean char
ok 1         + boolean                                    33 ms
not ok 2     + char                                       12 ms
not ok 3     - name                                     1012 ms
# (test process exited with exit code 2)
1..3
"""
    head = "diff -U3 /a/expected/{0}_1.out /b/results/{0}.out\n"
    head += "--- /a/expected/{0}_1.out\t2026\n+++ /b/results/{0}.out\t2026\n"
    char, name = "@@ -1,2 +1,2 @@\n-one\n+two\n \n", "@@ -5 +4 @@\n--- x\n"
    diffs = head.format("char") + char + head.format("name") + name
    assert read_outcomes(log, diffs) == {
        "boolean": Outcome("passed"),
        "char": Outcome("failed", "", char),
        "name": Outcome("failed", "test process exited with exit code 2", name),
    }


_LISTS = """
[[fails]]
tests = ["login"]
lines = \"\"\"
-welcome
\"\"\"
reason = "none hears it"

[[may_fail]]
tests = ["temp"]
lines = \"\"\"
-one
+two
\"\"\"
reason = "some were here"
"""


@pytest.mark.parametrize(
    ("test", "outcome", "reused", "right"),
    [
        ("any", Outcome("passed"), False, True),
        ("any", Outcome("failed", "", "-welcome"), False, False),
        ("login", Outcome("failed", "", " x\n-welcome\n y"), False, True),
        ("login", Outcome("failed", "", "-welcome\n+two"), False, False),
        ("login", Outcome("failed", "exit code 2", "-welcome"), False, False),
        ("login", Outcome("failed"), False, False),
        ("login", Outcome("passed"), False, False),
        ("login", Outcome("passed"), True, True),
        ("temp", Outcome("failed", "", "-one \n+two"), True, True),
        ("temp", Outcome("failed", "", "-one"), False, False),
        ("temp", Outcome("failed", "", "-two"), True, False),
        ("temp", Outcome("passed"), True, True),
    ],
)
def test_only_what_is_listed_may_differ(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    test: str,
    outcome: Outcome,
    reused: bool,
    right: bool,
) -> None:
    path = tmp_path / "regress.toml"
    path.write_text(_LISTS)
    for kind in ("fails", "may_fail"):
        monkeypatch.setattr(
            f"tests.suites.regress_suite._{kind.upper()}", read_differences(path, kind)
        )
    assert (complaints({test: outcome}, [[test]], reused=reused) == []) is right


def test_a_test_that_did_not_run_is_a_complaint() -> None:
    assert complaints({"a": Outcome("passed")}, [["a"], ["b"]], reused=True) == ["b did not run"]


def test_an_entry_without_a_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "regress.toml"
    path.write_text(_LISTS.replace('"none hears it"', '" "'))
    with pytest.raises(KeyError, match="reason"):
        read_differences(path, "fails")


def test_the_pin_names_what_it_must(tmp_path: Path) -> None:
    text = (_ROOT / "tests/suites/regress.toml").read_text()
    path = tmp_path / "regress.toml"
    path.write_text(text.replace("sha256 =", "sha1 ="))
    with pytest.raises(KeyError, match="sha256"):
        read_pin(path)
