"""`pgkeeper.trial.guard`, by its name in the test bed."""

from pgkeeper.trial.guard import MARK, describe, end_all, marked

__all__ = ["MARK", "describe", "end_all", "marked"]
