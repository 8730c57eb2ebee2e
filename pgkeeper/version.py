"""The version of pgkeeper, for `--version` and `pgkeeper status`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

__all__ = ["version"]


def version() -> str:
    """The installed package's version, or "unknown" when run from a plain source tree."""
    try:
        return installed_version("pgkeeper")
    except PackageNotFoundError:
        return "unknown"
