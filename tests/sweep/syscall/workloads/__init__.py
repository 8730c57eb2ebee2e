"""The scripts that are killed at each system call, by theme.

Each leaves its traces in the table `acts`, one row a statement, so that a statement that runs twice
or not at all is seen, and in the transcripts of its clients.
"""

from __future__ import annotations

from tests.sweep.syscall.workloads import (
    absence,
    commands,
    ends,
    logins,
    pooling,
    queries,
    rarities,
    replication,
    statements,
    streams,
    timeouts,
)

__all__ = ["WORKLOADS"]

WORKLOADS = (
    *queries.WORKLOADS,
    *statements.WORKLOADS,
    *streams.WORKLOADS,
    *pooling.WORKLOADS,
    *logins.WORKLOADS,
    *ends.WORKLOADS,
    *timeouts.WORKLOADS,
    *commands.WORKLOADS,
    *absence.WORKLOADS,
    *replication.WORKLOADS,
    *rarities.WORKLOADS,
)
