"""One life of many sessions, a death, damage to the ledger, and what must come of it."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING

import psycopg

from testbed.conversation import End, Outcome
from testbed.errors import BedError
from testbed.keeper import Keeper
from testbed.ledgers import at_rest, stopped
from testbed.process import send
from testbed.roster import (
    NAMES,
    TABLE,
    Roster,
    databases_for,
    prepare_database,
    settings_for,
    visit_pools,
)
from testbed.site import Part, opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pgkeeper.ledger.check import Usage
    from testbed.damage import Damage
    from testbed.postgres import Postgres
    from testbed.rundir import RunDir

PATIENCE = 15.0
"""Seconds for a session that must go on."""
SHORT_PATIENCE = 2.0
"""Seconds for a session of which a forger may have made anything."""

_bed_numbers = itertools.count(1)
# Beds share the table in which rosters leave their numbers.
_roster_numbers = itertools.count(1)


class Lot(Enum):
    """What has become of a session's part of the ledger."""

    UNTOUCHED = "untouched"
    NOTICED = "damaged so that checks give it away"
    FORGED = "damaged with the checks made right"


_ALLOWED = {
    Lot.UNTOUCHED: {End.EXACT},
    Lot.NOTICED: {End.EXACT, End.ENDED},
    Lot.FORGED: set(End),
}


class ScribbledBed:
    """A hanger that lives through many examples; a context manager.

    `play` is one example. After one that fails, or that has forged what stays (pools, users,
    counters), the hanger is a new one.
    """

    def __init__(self, run_dir: RunDir, postgres: Postgres, binary: Path) -> None:
        self.postgres = postgres
        self.ends: Counter[tuple[Lot, End]] = Counter()
        self._run_dir = run_dir
        self._binary = binary
        self._keeper: Keeper | None = None
        self._rest: tuple[tuple[int, ...], Usage] | None = None
        self._spoilt = False
        prepare_database(postgres)

    def __enter__(self) -> ScribbledBed:
        return self

    def __exit__(self, *error: object) -> None:
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.close()

    @property
    def keeper(self) -> Keeper:
        """The hanger, started if there is none."""
        if self._keeper is None:
            number = next(_bed_numbers)
            keeper = Keeper(
                self._run_dir,
                self.postgres,
                self._binary,
                name=f"scribbled-{number}",
                settings=settings_for(self._run_dir.path / f"scribbled-{number}.hba"),
                databases=databases_for(self.postgres),
            )
            keeper.start()
            self._keeper = keeper
            visit_pools(keeper)
            self._rest = at_rest(keeper)
        return self._keeper

    def play(self, damages: Sequence[Damage], *, twice: bool = False, usable: bool = False) -> None:
        """Open the sessions, kill, damage, let adopt (`twice`: and kill again), look at all.

        Who uses a pool of which the ledger tells lies may not be able to, unless `usable`.
        Raises AssertionError, or a `BedError` if pgbouncer crashed or hangs.
        """
        try:
            self._play(damages, twice=twice, usable=usable)
        except BaseException:
            self._discard(check=False)
            raise
        if self._spoilt:
            self._discard(check=True)

    def _discard(self, *, check: bool) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        if check:
            keeper.close()
            return
        keeper.print_logs()
        with contextlib.suppress(BedError):
            keeper.close(check_descriptors=False)

    def _play(self, damages: Sequence[Damage], *, twice: bool, usable: bool) -> None:
        keeper = self.keeper
        roster = Roster(keeper, next(_roster_numbers))
        try:
            roster.open()
            lots = self._kill_and_damage(keeper, damages)
            if twice:
                keeper.kill_bouncer()
            keeper.check_logs()
            outcomes = dict(_go_on(roster, lots))
        finally:
            roster.close()
        self.ends.update((lots[name], outcome.end) for name, outcome in outcomes.items())
        wrong = {
            name: (lots[name].name, outcome)
            for name, outcome in outcomes.items()
            if outcome.end not in _ALLOWED[lots[name]]
        }
        assert not wrong, wrong
        self._check_rows(roster, lots, outcomes)
        self._check_rest(keeper, usable=usable or not self._spoilt)

    def _kill_and_damage(self, keeper: Keeper, damages: Sequence[Damage]) -> dict[str, Lot]:
        before = keeper.status().pgbouncer
        assert before.pid is not None
        with stopped(keeper.hanger.pid):
            send(before.pid, signal.SIGKILL)
            with opened(keeper, NAMES) as site:
                needs = {name: site.needs(name) for name in NAMES}
                touched = [(damage.noticed, damage.inflict(site)) for damage in damages]
                forged = [part for noticed, parts in touched if not noticed for part in parts]
                self._spoilt = any(part.meets(fact) for part in forged for fact in site.facts())
        after = keeper.wait_active(after=before.incarnation)
        assert after.pgbouncer.incarnation == before.incarnation + 1, "a successor has crashed"
        lots = {name: _lot(needs[name], touched) for name in NAMES}
        if lots["busy"] is Lot.FORGED:
            # They share one server: a lie may say that it is busy for good.
            lots["waiting"] = Lot.FORGED
        return lots

    def _check_rows(
        self, roster: Roster, lots: dict[str, Lot], outcomes: dict[str, Outcome]
    ) -> None:
        """What was committed is there once; what was not may be there, but not twice."""
        for name, row in (("in transaction", roster.number), ("busy", -roster.number)):
            if lots[name] is Lot.FORGED:
                continue
            count = self.postgres.value(f"SELECT count(*) FROM {TABLE} WHERE n = %s", (row,))
            assert count == 1 or (count == 0 and outcomes[name].end is End.ENDED), (name, count)

    def _check_rest(self, keeper: Keeper, *, usable: bool) -> None:
        """With nobody left, hanger, pgbouncer and ledger have no more than in the beginning.

        But for pools and users that were forged: they may stay.
        """
        visited = True
        try:
            visit_pools(keeper)
        except (BedError, AssertionError, ValueError, psycopg.Error):
            if usable:
                raise
            visited = False
        descriptors, usage = at_rest(keeper)
        keeper.check_logs()
        assert self._rest is not None
        assert not visited or descriptors == self._rest[0]
        assert self._spoilt or usage == self._rest[1]


def _lot(needs: Sequence[Part], touched: Sequence[tuple[bool, Sequence[Part]]]) -> Lot:
    hits = [
        noticed
        for noticed, parts in touched
        if any(part.meets(need) for part in parts for need in needs)
    ]
    if not hits:
        return Lot.UNTOUCHED
    return Lot.NOTICED if all(hits) else Lot.FORGED


def _go_on(roster: Roster, lots: dict[str, Lot]) -> Iterator[tuple[str, Outcome]]:
    """Let all go on: those first who must, but nobody before the one that he waits for."""
    names = sorted(NAMES, key=lambda name: lots[name] is not Lot.UNTOUCHED)
    names.remove("busy")
    names.insert(names.index("waiting"), "busy")
    for name in names:
        conversation = roster.conversations[name]
        patience = SHORT_PATIENCE if lots[name] is Lot.FORGED else PATIENCE
        outcome = conversation.go_on(patience)
        if outcome.end is not End.EXACT:
            conversation.close()
        yield name, outcome
