"""A report as a trial would give it, for tests of what is made of reports."""

from __future__ import annotations

from pgkeeper.trial.figures import PATCHED, UNPATCHED, Books, Kill, Report, Result

KILLS = (
    Kill(0.1, 0.002, 0.003, (0.004, 0.006), (0.001, 0.002), 2),
    Kill(0.4, 0.004, 0.005, (0.008, 0.1), (0.001, 0.003), 2),
)
LOSSES = (
    Kill(0.1, 0.02, 0.09, (), (0.001, 0.002), 0),
    Kill(0.5, 0.04, 0.11, (), (0.001, 0.002), 0),
)
HELD = Result("busy", PATCHED, 2, 2, 0, 0, 345, 123_456, KILLS, Books(told=40))
LOST = Result(
    "busy",
    UNPATCHED,
    2,
    0,
    4,
    0,
    300,
    999,
    LOSSES,
    Books(told=30, doubtful=3),
    (("closed by the peer", 3), ("connection reset by peer", 1)),
)
REPORT = Report((HELD, LOST), {"kills": 2, "sessions": 2})
