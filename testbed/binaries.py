"""Which PgBouncer a test or the demo runs: what `pgkeeper build` makes, unless told otherwise."""

from __future__ import annotations

import os
from pathlib import Path

from pgkeeper.bouncer.build import PATCHED, VANILLA, binary


def vanilla() -> Path:
    """PgBouncer without our hooks: `PGKEEPER_TEST_VANILLA`, else built or taken from the cache."""
    named = os.environ.get("PGKEEPER_TEST_VANILLA")
    return Path(named) if named else binary(VANILLA)


def patched() -> Path:
    """PgBouncer with our hooks: `PGKEEPER_TEST_PGBOUNCER`, else built or taken from the cache."""
    named = os.environ.get("PGKEEPER_TEST_PGBOUNCER")
    return Path(named) if named else binary(PATCHED)
