"""What all tests share. The fixtures live in plugins, one subject each."""

from __future__ import annotations

import sys
from pathlib import Path

# The test bed and the fixture plugins are no part of the installed package.
_ROOT = str(Path(__file__).parent.parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)

pytest_plugins = (
    "tests.fix_bed",
    "tests.fix_bouncer",
    "tests.fix_keeper",
    "tests.fix_formats",
    "tests.fix_mutants",
    "tests.fix_scripted",
)
