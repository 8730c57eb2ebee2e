"""A patched PgBouncer that can be told, from outside, not to start."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from testbed import Keeper

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed import Postgres, RunDir


class Wrapped:
    """A script in a folder `name` of the run that becomes `binary`, unless it is to misbehave."""

    def __init__(self, run_dir: RunDir, binary: Path, name: str) -> None:
        folder = run_dir.folder(name)
        self.path = folder / "pgbouncer"
        self._order = folder / "order"
        usable = run_dir.usable(binary)
        self.path.write_text(
            "#!/bin/sh\n"
            f'[ "$1" = --version ] || {{ [ -e {self._order} ] && . {self._order}; }}\n'
            f'exec {usable} "$@"\n'
        )
        self.path.chmod(0o755)

    def misbehave(self, order: str) -> None:
        """From now on run these shell commands first."""
        self._order.write_text(order + "\n")

    def behave(self) -> None:
        """From now on start as usual."""
        self._order.unlink(missing_ok=True)


@contextlib.contextmanager
def kept(
    run_dir: RunDir, postgres: Postgres, binary: Path, name: str, **options: Any
) -> Iterator[Keeper]:
    """A `Keeper` with a binary of the test's own; its logs are printed at the end."""
    keeper = Keeper(run_dir, postgres, binary, name=name, **options)
    try:
        with keeper:
            yield keeper
    finally:
        keeper.print_logs()


def expect_fatal(keeper: Keeper, text: str, times: int = 1) -> None:
    """A pgbouncer had to give up with `text`, so often; the log is clean of it from now on.

    Only for one that a test has crippled or orphaned: in any other the line fails the test at its
    end. Raises AssertionError.
    """
    found = 0
    for log in (keeper.output, keeper.log):
        lines = log.read().splitlines(keepends=True)
        wanted = [line for line in lines if "FATAL keeper" in line and text in line]
        found = max(found, len(wanted))
        # Both programs append, so a file may be cut under them.
        log.path.write_text("".join(line for line in lines if line not in wanted))
    assert found == times, f"{found} times in the log: {text}"
