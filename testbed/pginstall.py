"""`pgkeeper.trial.pginstall`, by its name in the test bed."""

from pgkeeper.trial.pginstall import PgInstall, installation, pg_tool, usable_installation

__all__ = ["PgInstall", "installation", "pg_tool", "usable_installation"]
