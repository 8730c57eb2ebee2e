"""`pgkeeper.trial.account`, by its name in the test bed."""

from pgkeeper.trial.account import Account, give, reachable, unprivileged

__all__ = ["Account", "give", "reachable", "unprivileged"]
