"""`pgkeeper.trial.rundir`, by its name in the test bed."""

from pgkeeper.trial.rundir import RunDir

__all__ = ["RunDir"]
