"""How much is measured: enough to be sure of it, or a quick look."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Scale"]


@dataclass(frozen=True, slots=True)
class Scale:
    """Rounds and sizes of all benchmarks.

    - `rounds`: paired turns of each figure; `transactions` and `connects`: of a turn.
    - `clients`: numbers of clients that are tried; `bulk_bytes`: of a turn.
    - `idle`: sessions that rest while memory is looked at; `still_s`: how long the hanger's CPU
      time is counted.
    - `herds`: numbers of sessions, `statements`: of prepared statements, that are adopted.
    """

    rounds: int
    transactions: int
    connects: int
    clients: tuple[int, ...]
    bulk_bytes: int
    idle: int
    still_s: float
    herds: tuple[int, ...]
    statements: tuple[int, ...]


FULL = Scale(
    rounds=9,
    transactions=12_000,
    connects=1_000,
    clients=(1, 32, 500),
    bulk_bytes=200_000_000,
    idle=2_000,
    still_s=30.0,
    herds=(1, 100, 1_000, 5_000, 9_000),
    statements=(1, 20, 200),
)
QUICK = Scale(
    rounds=3,
    transactions=3_000,
    connects=300,
    clients=(1, 32),
    bulk_bytes=40_000_000,
    idle=300,
    still_s=5.0,
    herds=(1, 100, 500),
    statements=(1, 50),
)
