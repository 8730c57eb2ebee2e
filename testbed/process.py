"""`pgkeeper.trial.process`, by its name in the test bed."""

from pgkeeper.trial.process import Process, alive, descriptors, environment, send, state

__all__ = ["Process", "alive", "descriptors", "environment", "send", "state"]
