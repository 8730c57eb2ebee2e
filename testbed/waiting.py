"""`pgkeeper.trial.waiting`, by its name in the test bed."""

from pgkeeper.trial.waiting import free_port, wait_until, wait_until_async

__all__ = ["free_port", "wait_until", "wait_until_async"]
