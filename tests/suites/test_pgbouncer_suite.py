"""PgBouncer's own suite passes on our binary, be the keeper off or on, as on the unpatched one.

The suite and its ini are upstream's files, unchanged. With the keeper off there is no
`keeper_socket`, so no hanger; with the keeper on a `stand_in` gives each pgbouncer its own.
"""

from __future__ import annotations

import functools
import subprocess
from typing import TYPE_CHECKING, Protocol

import pytest

from pgkeeper.bouncer.build import VANILLA, binary, source_dir
from testbed import binaries
from tests.suites.outcomes import complaints, differences
from tests.suites.runner import LEFT_OUT, UpstreamSuite, facilities, tls_installation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from testbed.rundir import RunDir
    from tests.suites.runner import Part, Run

# A run takes two and a half minutes, nearly all of them slept; a busy machine may need more.
pytestmark = pytest.mark.timeout(30 * 60)

PARTS = ["plain", "tls"]


class RunOnce(Protocol):
    """Runs a part of the suite on PgBouncer with or without our patches; once a session.

    With `kept` each pgbouncer has a hanger.
    """

    def __call__(self, *, patched: bool, part: Part, kept: bool = False) -> Run: ...


@pytest.fixture(scope="session")
def suite(run_dir: RunDir) -> UpstreamSuite:
    """The suite of the unpatched source: our patches have no say in what it tests."""
    binary(VANILLA)
    return UpstreamSuite(run_dir, source_dir(VANILLA))


@pytest.fixture(scope="session")
def run_once(suite: UpstreamSuite) -> RunOnce:
    """See `RunOnce`."""

    @functools.cache
    def copy(*, patched: bool, kept: bool) -> Path:
        program = binaries.patched() if patched else binaries.vanilla()
        version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
        assert ("keeper:" in version.stdout) is patched
        name = "kept" if kept else "ours" if patched else "theirs"
        return suite.copy(name, program, kept=kept)

    @functools.cache
    def run(*, patched: bool, part: Part, kept: bool = False) -> Run:
        return suite.run(copy(patched=patched, kept=kept), part)

    return run


def need(part: Part) -> None:
    """Skip the test if the machine cannot run this part."""
    if part == "tls" and tls_installation() is None:
        pytest.skip("no PostgreSQL with OpenSSL here: apt-get install postgresql")


def judge(run: Run, *, kept: bool = False, files: Sequence[str] = ()) -> None:
    """Fail unless every test passed or is left out for a reason given in left_out.toml."""
    for test, outcome in run.outcomes.items():
        if outcome.status == "failed":
            print(f"--- {test}\n{outcome.output}")
    statuses = [outcome.status for outcome in run.outcomes.values()]
    print(*(f"{statuses.count(status)} {status}" for status in sorted(set(statuses))), sep=", ")
    assert complaints(run.outcomes, run.expected(files), LEFT_OUT, facilities(), kept=kept) == []


@pytest.mark.parametrize("part", PARTS)
def test_suite_passes_on_the_patched_binary(run_once: RunOnce, part: Part) -> None:
    need(part)
    judge(run_once(patched=True, part=part))


@pytest.mark.parametrize("part", PARTS)
def test_suite_passes_with_the_keeper_on(run_once: RunOnce, part: Part) -> None:
    need(part)
    run = run_once(patched=True, part=part, kept=True)
    judge(run, kept=True)
    evidence = run.evidence
    print(f"{evidence.bouncers} pgbouncers, sessions unheld: {dict(evidence.unheld)}")
    assert evidence.unkept == ()
    assert evidence.bouncers > len(run.outcomes) / 2
    # Reasons for which a session may be unheld; no client of the plain part uses TLS.
    assert set(evidence.unheld) <= ({"tls"} if part == "tls" else set())


@pytest.mark.parametrize(
    ("part", "files"),
    [
        pytest.param("plain", ("test_prepared.py", "test_cancel.py", "test_copy.py"), id="a part"),
        pytest.param("plain", (), id="plain", marks=pytest.mark.slow),
    ],
)
def test_suite_passes_while_pgbouncer_is_killed(
    suite: UpstreamSuite, part: Part, files: tuple[str, ...]
) -> None:
    """Four times a second on average, by SIGKILL; what is left out has its reason there.

    The other part is left out as a whole: sessions over TLS end with their pgbouncer.
    """
    need(part)
    # A short name: it becomes a part of Unix sockets' paths.
    tree = suite.copy(f"k{part[0]}{len(files)}", binaries.patched(), kept=True, kill_every_s=0.25)
    run = suite.run(tree, part, files)
    judge(run, kept=True, files=files)
    evidence = run.evidence
    print(f"{evidence.kills} kills, sessions lost: {dict(evidence.lost)}")
    assert evidence.unkept == ()
    assert evidence.kills > evidence.bouncers / 3 > 0
    # Some tests change the ini under sessions that are about to end; the suite's console uses Unix
    # sockets.
    assert set(evidence.lost) <= {"config", "unix"}


@pytest.mark.parametrize("part", PARTS)
def test_the_keeper_is_missed_where_it_is_off(run_once: RunOnce, part: Part) -> None:
    """What proves that the keeper was on finds that it was not."""
    need(part)
    evidence = run_once(patched=True, part=part).evidence
    assert len(evidence.unkept) == evidence.bouncers > 0
    assert all("it has no hanger" in line for line in evidence.unkept)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_suite_ends_the_same_on_the_unpatched_binary(run_once: RunOnce, part: Part) -> None:
    need(part)
    theirs = run_once(patched=False, part=part)
    judge(theirs)
    ours = run_once(patched=True, part=part)
    assert differences(ours.outcomes, theirs.outcomes, LEFT_OUT) == []


@pytest.mark.slow
def test_what_is_left_out_is_skipped_on_the_unpatched_binary_too(run_once: RunOnce) -> None:
    theirs = run_once(patched=False, part="plain").outcomes
    missing = [entry for entry in LEFT_OUT.skipped if entry.facility not in facilities()]
    assert missing
    for entry in missing:
        for test in entry.tests:
            assert LEFT_OUT.skips(test, theirs[test], facilities()), test


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(LEFT_OUT.racing)))
def test_what_races_can_fail_on_the_unpatched_binary_too(suite: UpstreamSuite, number: int) -> None:
    entry = LEFT_OUT.racing[number]
    tree = suite.copy(f"race-{number}", binaries.vanilla())
    path = tree / "test" / entry.test.partition("::")[0]
    text = path.read_text()
    assert text.count(entry.found) == 1
    assert entry.found.count("\n") == entry.forced.count("\n")
    path.write_text(text.replace(entry.found, entry.forced))
    outcomes = suite.run(tree, "plain", only=[entry.test]).outcomes
    assert set(outcomes) == {entry.test}
    outcome = outcomes[entry.test]
    assert entry.excuses(entry.test, outcome), f"{outcome.status}: {outcome.message}"
